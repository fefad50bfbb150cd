"""Ranges of bytes as blocks, and where the pieces of a read are that is a hit."""

from __future__ import annotations

from collections.abc import Iterator

from bockd.model import BLOCK_SIZE
from bockd.pool.device import MappedWindow

BLOCK_SHIFT = 12
assert 1 << BLOCK_SHIFT == BLOCK_SIZE


class Miss:
    """Stands in the map for blocks that are not cached: whoever finds it asks."""

    first_descriptor = -1
    nowait_flag = 0
    packed = False

    def __init__(self) -> None:
        self.used = False

    def window(self, _offset: int) -> MappedWindow | None:
        return None


def touched(offset: int, length: int) -> tuple[int, int]:
    """Return the blocks that a range of bytes touches: the first, and the one behind the last."""
    return offset >> BLOCK_SHIFT, ((offset + length - 1) >> BLOCK_SHIFT) + 1


def pieces_of(
    runs: list[tuple[int, int, int]], offset: int, into: memoryview
) -> Iterator[tuple[int, memoryview, int]]:
    """Yield for each run of `BlockMap.runs` where it begins in bytes, its part of `into`, and
    its slot."""
    stop = offset + len(into)
    for first, end, slot in runs:
        start = max(offset, first << BLOCK_SHIFT)
        yield start, into[start - offset : min(stop, end << BLOCK_SHIFT) - offset], slot


def fill_zeros(into: memoryview) -> None:
    """Fill a buffer with zeros."""
    into[:] = bytes(len(into))
