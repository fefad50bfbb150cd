"""Ends what hangs: a file request that is never answered would block its test for ever.

The watchdog is a process of its own, started before anything is mounted: a process that hangs in
the view it serves itself cannot even start another one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HANGS_SECONDS = 240
"""No test takes this long, unless it hangs."""

_RANG = 3

_WATCH = f"""
import ctypes, select, sys
if not select.select([sys.stdin], [], [], {HANGS_SECONDS})[0]:
    # MNT_FORCE aborts the connection: whatever waits for an answer fails.
    ctypes.CDLL(None).umount2(sys.argv[1].encode(), 1)
    sys.exit({_RANG})
"""


@contextmanager
def watched(mount: Path) -> Iterator[None]:
    """For the duration; after too long the mount's connection is aborted, which fails every
    request that waits, and then the test."""
    watchdog = subprocess.Popen([sys.executable, "-c", _WATCH, str(mount)], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        status = watchdog.wait()
        # A test that failed may leave its mount behind; who cleans up after pytest cannot enter it.
        while is_mounted(mount):
            subprocess.run(["umount", "--lazy", mount], check=True)
    assert status == 0, "a request to the file view hung"


def is_mounted(mount: Path) -> bool:
    """Asks no file system."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    return any(line.split(" ")[4] == str(mount) for line in mountinfo.splitlines())
