"""A bit that flips in a file, as on a disk that ages."""

from __future__ import annotations

import os
from pathlib import Path


def flip_bit(path: Path, at: int) -> None:
    """Flip a bit of the byte at `at`; a second time flips it back."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, at)[0]
        os.pwrite(fd, bytes([byte ^ 0x10]), at)
        os.fsync(fd)
    finally:
        os.close(fd)
