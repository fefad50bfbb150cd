"""The partitions of a device: made known to the kernel, and which sectors their table counts in."""

from __future__ import annotations

import sys
import tempfile

from bockd.host.tools import TOOL_SECONDS, run_within

# A process of its own, because one that waits for a device cannot be ended. The kernel reads the
# table again at an open that follows a change of size; BLKRRPART (linux/fs.h) asks for it. It is
# refused for a device that can have no partitions, or one of whose partitions is used.
_SCAN = """
import fcntl, os, sys
device = os.open(sys.argv[1], os.O_RDONLY)
try:
    fcntl.ioctl(device, 0x125F)
except OSError:
    pass
for size in (512, 4096):
    if os.pread(device, 8, size) == b"EFI PART":
        print(size)
        break
"""


def scan(device: str) -> int | None:
    """Make the kernel see the partitions that a device has now. Return the size of the sectors that
    its partition table was made for, in bytes, if it says that: a GPT's header is in the second
    sector (UEFI 2.10, 5.3.1). What does not succeed within a minute is given up."""
    with tempfile.TemporaryFile() as out:
        try:
            run_within(TOOL_SECONDS, [sys.executable, "-I", "-S", "-c", _SCAN, device], out)
        except TimeoutError:
            return None
        out.seek(0)
        printed = out.read().strip()
    return int(printed) if printed else None
