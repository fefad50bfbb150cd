"""Disk images with known content: random data, holes, and what lies between."""

from __future__ import annotations

import os
import random
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
BLOCK = 4 * KIB


def write_sparse_image(path: Path, size_bytes: int, seed: int) -> int:
    """A raw image of random runs of data and holes, in whole blocks; returns the bytes of data."""
    print(f"seed {seed}")
    choose = random.Random(seed)
    written = 0
    with path.open("wb") as file:
        at = 0
        while at < size_bytes:
            # Short runs and ones longer than any client's buffer.
            length = min(choose.choice((1, 2, 7, 16, 300, 1000)) * BLOCK, size_bytes - at)
            if choose.random() < 0.5:
                file.seek(at)
                file.write(choose.randbytes(length))
                written += length
            at += length
        file.truncate(size_bytes)
        os.fsync(file.fileno())
    return written


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two images hold the same."""
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            expected, found = first.read(MIB), second.read(MIB)
            if expected != found:
                return False
            if not expected:
                return True
