"""Ranges of a head that were trimmed and wait to be given back to the file system.

The map says *hole* at once; punching is slow (a file system frees extents one by one), so it
happens in the background, a piece at a time. A write to a waiting block takes it off the list.

What waits may never have been written: a trim does not ask. So the file system says first what
takes space, data or allocated zeros, and only that is punched.
"""

from __future__ import annotations

from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.ranges import RangeSet
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, GIB, MIB
from bockd.runtime.steps import blocking
from bockd.runtime.waiting import Mutex, RangeLocks

PIECE_BLOCKS = 16 * MIB // BLOCK_SIZE
"""Blocks punched under one lock: what a write to them may have to wait for, some milliseconds."""

LOOK_BLOCKS = 4 * GIB // BLOCK_SIZE
"""Blocks among which such are looked for under one lock: some microseconds, but a write to any of
them has to wait for a thread's turn."""


class Puncher:
    """Punches one head's pending ranges in the background."""

    def __init__(self, head: Layer, locks: RangeLocks) -> None:
        self.pending = RangeSet()
        """Blocks that no map shows, and that may take space."""
        self.scheduled = False
        """A run was spawned and has not ended."""
        self.head = head
        self._locks = locks
        self._turn = Mutex()

    @property
    def idle(self) -> bool:
        """True when nothing waits to be punched, and nothing is being punched."""
        return not (self.pending or self._turn.held)

    def forget(self) -> None:
        """Forget what waits to be punched."""
        self.pending = RangeSet()

    async def run(self) -> None:
        """Punch until nothing waits. If a punch is under way, wait for its end. Raises OSError."""
        async with self._turn:
            while (waiting := self.pending.first()) is not None:
                first, end = waiting
                if end - first > PIECE_BLOCKS:
                    end = min(end, first + LOOK_BLOCKS)
                    first = await self._pass_over_holes(first, end)
                if first < end:
                    await self._punch_piece(first, min(end, first + PIECE_BLOCKS))

    async def _pass_over_holes(self, first: int, end: int) -> int:
        """Take what is a hole from the beginning of blocks first..end-1 off the list, and return
        where they go on."""
        held = await self._locks.acquire(first, end)
        try:
            allocated = await blocking(self._first_allocated, first, end)
            self.pending.remove(first, allocated)
        finally:
            self._locks.release(held)
        return allocated

    def _first_allocated(self, first: int, end: int) -> int:
        """In a thread: the first of blocks first..end-1 that may take space; `end` if none does."""
        found = self.head.first_allocated(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)
        return min(end, found // BLOCK_SIZE)

    async def _punch_piece(self, first: int, end: int) -> None:
        held = await self._locks.acquire(first, end)
        try:
            # Writes may have taken blocks back while the lock was waited for.
            ranges = self.pending.remove(first, end)
            await blocking(self._punch, ranges)
        finally:
            self._locks.release(held)

    def _punch(self, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            first = self._first_allocated(start, end)
            if first < end:
                hit(Failpoint.PUNCH_BEGUN)
                self.head.punch(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)
                hit(Failpoint.PUNCH_DONE)
