#!/bin/bash
# msgspec's errors for malformed input: whether `except ValueError` catches them depends on the release.
#
# Seen with msgspec 0.19.0, 0.20.0, 0.21.0 and 0.22.0 from PyPI. The json module's JSONDecodeError is a
# ValueError, and so is msgspec.DecodeError (and with it ValidationError) from 0.21 on; until 0.20 it
# derived from Exception alone. Code that was written against a newer release and admits an older one
# lets a peer's broken JSON through as an unhandled error, and no import or signature tells.
# `except msgspec.MsgspecError` is right with all of them.
#
# Output that was seen:
#     0.19.0 DecodeError: not a ValueError
#     0.20.0 DecodeError: not a ValueError
#     0.21.0 DecodeError: a ValueError
#     0.22.0 DecodeError: a ValueError
#
# Exits with 1 if this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python=/usr/bin/python3
"$python" -m venv "$work/venv"
for version in 0.19.0 0.20.0 0.21.0 0.22.0; do
    "$work/venv/bin/pip" --quiet --disable-pip-version-check install "msgspec==$version" 2>/dev/null
    "$work/venv/bin/python" - "$version" <<'PYTHON'
import importlib.metadata
import sys

import msgspec

version = importlib.metadata.version("msgspec")
assert version == sys.argv[1]
try:
    msgspec.json.decode(b'{"id": ')
except msgspec.MsgspecError as error:
    caught = isinstance(error, ValueError)
    print(version, f"{type(error).__name__}:", "a ValueError" if caught else "not a ValueError")
sys.exit(caught != (version >= "0.21"))
PYTHON
done
echo 'as described'
