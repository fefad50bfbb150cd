"""How large the pieces are in which new blocks are written: what a pool's file system prefers.

The page cache keeps what one write brought in a folio as large as that write. With large folios,
writing new blocks costs less. But ext4 walks a folio's blocks, all of them, whenever a part of it
is overwritten (Linux 6.16 and later; before that its folios were of one page). XFS and tmpfs do
not. So a pool measures, when it is opened, what an overwrite of 4 KiB costs in small and in large
folios: in a file that has no name, so that nothing is left of it however the process ends.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bockd.model import BLOCK_SIZE, KIB, MIB

SMALL_BYTES = 16 * KIB
"""On ext4 a later overwrite of 4 KiB takes 2.9 us of CPU where new blocks came in pieces of 16 KiB,
4.4 with 64 KiB, 10 with 1 MiB. New blocks cost 0.31 ms a MiB in such pieces, 0.23 in those of
64 KiB (Linux 6.18)."""

LARGE_BYTES = 256 * KIB
"""More saves nothing that can be measured."""

MAX_RATIO = 1.3
"""Overwrites that take longer than this in large folios, beside small ones, are dearer there: 2.0
was measured on ext4, 1.0 on XFS and tmpfs, give or take 0.1."""

_REGION_BYTES = 1 * MIB
"""Also the large folio: the larger it is, the clearer the difference."""

_ROUNDS = 6
_OVERWRITES = 40
"""In each round, of each region. The fastest round counts, so other load does not matter."""

_MAX_SECONDS = 0.1
"""Some two milliseconds are usual. A file system that writes through takes longer, and has no use
for the answer."""


@dataclass(frozen=True, slots=True)
class WritePieces:
    """How new blocks are written."""

    size_bytes: int
    why: str

    def __str__(self) -> str:
        return f"in pieces of {self.size_bytes // KIB} KiB: {self.why}"


def choose_write_pieces(directory: Path) -> WritePieces:
    """Measure the file system of a directory, for some milliseconds. Never fails: where it cannot
    be measured the pieces are small."""
    try:
        ratio = _measure(directory)
    except OSError as error:
        return WritePieces(SMALL_BYTES, f"not measured ({error.strerror or error})")
    if ratio > MAX_RATIO:
        why = f"overwrites take {ratio:.1f} times as long here in large folios"
        return WritePieces(SMALL_BYTES, why)
    return WritePieces(LARGE_BYTES, "overwrites take no longer here in large folios")


def _measure(directory: Path) -> float:
    """How many times as long an overwrite of a block takes in a large folio. Raises OSError."""
    deadline = time.monotonic() + _MAX_SECONDS
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        data = memoryview(b"x" * _REGION_BYTES)
        for base, piece_bytes in ((0, SMALL_BYTES), (_REGION_BYTES, _REGION_BYTES)):
            for offset in range(0, _REGION_BYTES, piece_bytes):
                os.pwrite(fd, data[:piece_bytes], base + offset)
                _refuse_late(deadline)
        small: list[int] = []
        large: list[int] = []
        for number in range(_ROUNDS):
            small.append(_overwrite(fd, 0, number, data[:BLOCK_SIZE]))
            large.append(_overwrite(fd, _REGION_BYTES, number, data[:BLOCK_SIZE]))
            _refuse_late(deadline)
    finally:
        os.close(fd)
    return min(large) / min(small)


def _overwrite(fd: int, base: int, number: int, block: memoryview) -> int:
    """The nanoseconds that a round of overwrites takes, of blocks here and there in a region."""
    blocks = _REGION_BYTES // BLOCK_SIZE
    offsets = [base + (at * 37 + number) % blocks * BLOCK_SIZE for at in range(_OVERWRITES)]
    begun = time.perf_counter_ns()
    for offset in offsets:
        os.pwrite(fd, block, offset)
    return time.perf_counter_ns() - begun


def _refuse_late(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("it writes too slowly")
