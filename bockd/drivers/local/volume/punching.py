"""Ranges of a head that were trimmed and wait to be given back to the file system.

The map says *hole* at once; punching is slow (a file system frees extents one by one), so it
happens in the background, a piece at a time. A write to a waiting block takes it off the list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from bockd.drivers.local.format.layer import Layer
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import blocking
from bockd.runtime.waiting import Mutex, RangeLocks

PIECE_BLOCKS = 16 * MIB // BLOCK_SIZE
"""Blocks punched under one lock: what a write to them may have to wait for, some milliseconds."""


class PendingPunches:
    """A set of blocks as sorted, disjoint ranges. Pure bookkeeping."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def add(self, first: int, end: int) -> None:
        """Add blocks first..end-1, merging with what touches them."""
        low = bisect_left(self._ends, first)
        high = bisect_right(self._firsts, end)
        if low < high:
            first = min(first, self._firsts[low])
            end = max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]

    def remove(self, first: int, end: int) -> list[tuple[int, int]]:
        """Take blocks first..end-1 out and return those that were in, as ranges."""
        low = bisect_right(self._ends, first)
        high = bisect_left(self._firsts, end)
        taken, kept = [], []
        for start, stop in zip(self._firsts[low:high], self._ends[low:high], strict=True):
            taken.append((max(start, first), min(stop, end)))
            if start < first:
                kept.append((start, first))
            if stop > end:
                kept.append((end, stop))
        self._firsts[low:high] = [start for start, _ in kept]
        self._ends[low:high] = [stop for _, stop in kept]
        return taken

    def next_piece(self) -> tuple[int, int] | None:
        """Return the first blocks to punch, at most PIECE_BLOCKS. They stay on the list. None if it
        is empty."""
        if not self._firsts:
            return None
        return self._firsts[0], min(self._ends[0], self._firsts[0] + PIECE_BLOCKS)


class Puncher:
    """Punches one head's pending ranges in the background."""

    def __init__(self, head: Layer, locks: RangeLocks) -> None:
        self.pending = PendingPunches()
        self.scheduled = False
        """A run was spawned and has not ended."""
        self.head = head
        self._locks = locks
        self._turn = Mutex()

    @property
    def running(self) -> bool:
        return self._turn.held

    async def run(self) -> None:
        """Punch until nothing waits. If a punch is under way, wait for its end. Raises OSError."""
        async with self._turn:
            while (piece := self.pending.next_piece()) is not None:
                await self._punch_piece(*piece)

    async def _punch_piece(self, first: int, end: int) -> None:
        held = await self._locks.acquire(first, end)
        try:
            # Writes may have taken blocks back while the lock was waited for.
            ranges = self.pending.remove(first, end)
            await blocking(self._punch, ranges)
        finally:
            self._locks.release(held)

    def _punch(self, ranges: list[tuple[int, int]]) -> None:
        for first, end in ranges:
            hit(Failpoint.PUNCH_BEGUN)
            self.head.punch(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)
            hit(Failpoint.PUNCH_DONE)
