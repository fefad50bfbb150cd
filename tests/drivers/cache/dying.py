"""A process that opens what is cached of volume "one" in DIRECTORY, writes to it and closes it.

    python -m tests.drivers.cache.dying DIRECTORY

It dies at the failpoint that its environment names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bockd.failpoints import arm
from bockd.model import BLOCK_SIZE, MIB

from .opened import CountingDevice, Opened

if __name__ == "__main__":
    arm(os.environ)
    opened = Opened(Path(sys.argv[1]))
    device = opened.volume(CountingDevice(2 * MIB), 6)
    opened.write(device, 0, b"w" * BLOCK_SIZE)
    opened.release(device)
