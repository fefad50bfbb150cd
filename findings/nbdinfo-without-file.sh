#!/bin/bash
# nbdinfo where file(1) is not installed: what it says about the content is stray bytes, and with
# --json it prints what is no JSON.
#
# Seen with libnbd-bin 1.14.2 of Debian 12. (1.20 of Ubuntu 24.04 and 1.22 of Debian 13 leave it out.)
# nbdinfo hands the first bytes of an export to file(1) to say what is in it. Debian's package
# recommends the program and does not depend on it. Without it one would expect no "content" at all,
# or an empty one. Instead the field has some bytes that are different each time, often no UTF-8, so
# that a JSON parser refuses the whole; the exit status is 0. `nbdinfo --no-content` helps.
#
# Output that was seen:
#     sh: 1: file: not found
#     of 10: 8 are no JSON, 2 more have a content that nobody has looked for
#
# Exits with 1 if this has changed, with 2 if the tools are missing.
set -euo pipefail
nbdinfo=$(command -v nbdinfo) || { echo 'needs nbdinfo (package libnbd-bin)' >&2; exit 2; }
nbdkit=$(command -v nbdkit) || { echo 'needs nbdkit' >&2; exit 2; }
"$nbdinfo" --version | head -n1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" # a PATH on which there is no file(1)
ln -s "$(command -v sh)" "$work/bin/sh"
cat >"$work/look.sh" <<END
for run in 1 2 3 4 5 6 7 8 9 10; do
    PATH=$work/bin "$nbdinfo" --json "\$uri" >$work/\$run.json 2>>$work/errors
done
END
"$nbdkit" -U - pattern 1M --run ". $work/look.sh"
echo 'exit status 0'
sort "$work/errors" | uniq -c
python3 - "$work" <<'END'
import json
import sys
from pathlib import Path

broken = strange = 0
for path in Path(sys.argv[1]).glob("*.json"):
    raw = path.read_bytes()
    try:
        content = json.loads(raw)["exports"][0].get("content")
    except ValueError as error:  # UnicodeDecodeError is one
        broken += 1
        print(path.name, type(error).__name__)
    else:
        strange += bool(content)
        print(path.name, "content:", ascii(content))
print(f"of 10: {broken} are no JSON, {strange} more have a content that nobody has looked for")
sys.exit(0 if broken + strange else 1)
END
echo 'as described'
