"""Asking the kernel to read a range of a file ahead.

The kernel cuts one request short, and does not say so: after the larger of what its device takes at
once and what its readahead takes (`force_page_cache_ra` in Linux's mm/readahead.c). So a long range
is asked for in pieces.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from bockd.model import KIB, MIB

LEAST_PIECE_BYTES = 128 * KIB
"""What a device's readahead takes unless somebody has changed that; also where nothing says it."""

MOST_PIECE_BYTES = 1 * MIB
"""Larger ones gain nothing."""


def prefetch_range(fd: int, offset: int, length: int) -> None:
    """Ask for a range of bytes. It may wait for the file's metadata, and for memory. Raises
    OSError."""
    piece = piece_bytes(os.fstat(fd).st_dev)
    end = offset + length
    while offset < end:
        count = min(end - offset, piece)
        os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
        offset += count


@lru_cache(maxsize=16)
def piece_bytes(device: int) -> int:
    """Return how much of a file on a block device the kernel reads ahead for one request."""
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
    if not queue.exists():  # a partition's is its disk's
        queue = queue.parent.resolve().parent / "queue"
    found = [LEAST_PIECE_BYTES]
    for name in ("max_sectors_kb", "read_ahead_kb"):
        try:
            found.append(int((queue / name).read_text()) * KIB)
        except (OSError, ValueError):  # no such device (btrfs and others have none), or no sysfs
            continue
    return min(max(found), MOST_PIECE_BYTES)
