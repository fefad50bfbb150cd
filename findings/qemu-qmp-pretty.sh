#!/bin/bash
# qemu.qmp: QEMU's own client cannot talk to a QEMU that was started with -qmp-pretty.
#
# Expected: the QEMU project's Python package speaks QMP as QEMU does, however it is laid out: the
# option only adds blanks and line ends between JSON's tokens. Seen (qemu.qmp 0.0.6; QEMU 7.2.22 and
# 10.0.13): it reads one line as one document, so the first line, "{", is "Did not understand Greeting".
#
# Uses the distribution's qemu-system-x86_64 and python3 with venv.
set -euo pipefail

work=$(mktemp -d)
trap 'jobs -p | xargs -r kill; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps qemu.qmp==0.0.6
qemu-system-x86_64 --version | head -n1

for option in qmp qmp-pretty; do
    qemu-system-x86_64 -machine none -accel tcg -nodefaults -display none \
        "-$option" "unix:$work/$option,server=on,wait=off" &
    until [[ -S $work/$option ]]; do sleep 0.1; done
    "$work/venv/bin/python" - "$work/$option" <<'END' | tee "$work/said.$option"
import asyncio, logging, sys
from qemu.qmp import ConnectError, QMPClient
logging.disable()
async def ask():
    client = QMPClient()
    try:
        await client.connect(sys.argv[1])
        print("connected", await client.execute("query-status"))
        await client.disconnect()
    except ConnectError as error:
        print("refused", error)
asyncio.run(ask())
END
done
grep -q '^connected' "$work/said.qmp" || { echo "plain QMP does not work"; exit 1; }
grep -q 'Did not understand Greeting' "$work/said.qmp-pretty" || { echo "the behaviour has changed"; exit 1; }
echo "as described: -qmp is understood, -qmp-pretty is not"
