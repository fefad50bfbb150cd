"""Which cells of a packed head are given to the blocks that it does not hold yet.

A *cell* is 4 KiB of a packed layer's file, by number. New blocks lie one behind the other, from
the *tail* on, the first cell that was never given out. What trims empty is used again when nothing
can confuse old with new, not even after a power cut. On its way there a cell is

    emptied   by a trim, or a write that failed half-way: no map leads to it, and it may hold data
    punched   it reads as zeros, but a power cut may undo that, and a read may still be under way
    free      the trim and the punch are durable, and the reads that saw the cell have ended

and then given out again. Only a checkpoint makes cells free: those that were punched before its
seal began, when it has ended. Pure bookkeeping, in memory only: after an opening nothing is on its
way, which loses numbers of cells and no space.

Invariants:
* A cell that is given out is durably a hole in the file: behind its end, or punched and synced.
* A cell is in one place at most: given out, emptied, being punched, punched, or free.
"""

from __future__ import annotations

from heapq import heappop, heappush

from bockd.drivers.local.format.layer import SEGMENT_BYTES
from bockd.drivers.local.format.ranges import RangeSet
from bockd.errors import NoSpaceError
from bockd.model import BLOCK_SIZE, GIB

MAX_CELLS = SEGMENT_BYTES // BLOCK_SIZE
"""Cells of one head: its file has one segment. The volume gets another head before they run out."""

ROTATION_CELLS = 64 * GIB // BLOCK_SIZE
"""That other head is wanted when so many cells are left: it is made while writes go on."""

MIN_FREE_RUN = 16
"""Shorter runs of free cells stay holes until neighbours make them longer. Single cells would
scatter new blocks over the file, which is what cells are there to avoid."""


class HeadCells:
    """The cells of one open packed head. For the owner thread."""

    def __init__(self, tail: int) -> None:
        self.tail = tail
        """The first cell that was never given out."""
        self.emptied = RangeSet()
        """Cells that wait to be punched."""
        self._punched = RangeSet()
        self._sealing = RangeSet()
        """What was punched before the seal under way began."""
        self._free = FreeRuns()
        self.touched: RangeSet | None = None
        """Takes the cells that are emptied, for as long as somebody wants to know."""
        self._current = range(0)
        """What is left of the free run that cells are taken from."""

    @property
    def free(self) -> int:
        """How many cells can be given out before the tail moves on."""
        return len(self._current) + self._free.usable

    @property
    def is_short(self) -> bool:
        """True when the volume should get another head soon."""
        return self.tail > MAX_CELLS - ROTATION_CELLS

    def has_room(self, count: int) -> bool:
        """Return whether `take` can give so many cells."""
        return (
            self.tail + count <= MAX_CELLS
            or len(self._current) >= count
            or self._free.longest() >= count
        )

    def take(self, count: int) -> int:
        """Give out the next `count` cells, which follow each other, and return the first. Raises
        NoSpaceError when the head has no such run left."""
        if len(self._current) < count and self._free.longest() >= count:
            rest, self._current = self._current, self._free.take_longest()
            self._free.add(rest.start, rest.stop)
        if len(self._current) >= count:
            first = self._current.start
            self._current = self._current[count:]
            return first
        first = self.tail
        if first + count > MAX_CELLS:
            raise NoSpaceError("the volume's layer is full: a snapshot gives it a new one")
        self.tail = first + count
        return first

    def empty(self, first: int, end: int) -> None:
        """Note that no map leads to cells first..end-1 any more, and that they may hold data."""
        if first < end:
            self.emptied.add(first, end)
            if self.touched is not None:
                self.touched.add(first, end)

    def take_emptied(self, count: int) -> range:
        """Take the next emptied cells off their list, `count` at most, to be punched. An empty
        range if there are none. The caller calls `note_punched` when that is done; if it is not,
        they are never used again."""
        waiting = self.emptied.first()
        if waiting is None:
            return range(0)
        first, end = waiting[0], min(waiting[1], waiting[0] + count)
        self.emptied.remove(first, end)
        return range(first, end)

    def note_punched(self, cells: range) -> None:
        """Note that these cells read as zeros now. No sync of the file has covered that yet."""
        if cells:
            self._punched.add(cells.start, cells.stop)

    def forget_emptied(self) -> None:
        """Forget what waits to be punched: the journal may not know that it was emptied."""
        self.emptied = RangeSet()

    # -- checkpoints -------------------------------------------------------------------------

    def begin_seal(self) -> None:
        """Note that a seal begins: it will cover every trim that was committed by now, and sync
        every punch that has returned by now."""
        for first, end in self._punched:
            self._sealing.add(first, end)
        self._punched = RangeSet()

    def end_seal(self) -> None:
        """Make free what was punched when the last seal began. That seal is durable, and every read
        that had begun by then has ended."""
        self._free.add(self._current.start, self._current.stop)  # it may have new neighbours
        self._current = range(0)
        for first, end in self._sealing:
            self._free.add(first, end)
        self._sealing = RangeSet()


class FreeRuns:
    """Runs of free cells, the longest found first. Runs that touch become one."""

    def __init__(self) -> None:
        self.usable = 0
        """Cells in runs of MIN_FREE_RUN and more."""
        self._end_of: dict[int, int] = {}
        self._first_of: dict[int, int] = {}
        self._longest: list[tuple[int, int]] = []
        """A heap of (minus the length, first cell); some are outdated."""

    def add(self, first: int, end: int) -> None:
        """Add cells first..end-1, none of which is in."""
        if first >= end:
            return
        if (left := self._first_of.get(first)) is not None:
            self._remove(left)
            first = left
        if (right := self._end_of.get(end)) is not None:
            self._remove(end)
            end = right
        self._end_of[first], self._first_of[end] = end, first
        if end - first >= MIN_FREE_RUN:
            self.usable += end - first
            heappush(self._longest, (first - end, first))

    def _remove(self, first: int) -> None:
        end = self._end_of.pop(first)
        del self._first_of[end]
        if end - first >= MIN_FREE_RUN:
            self.usable -= end - first

    def longest(self) -> int:
        """Return the length of the longest run; 0 if none is long enough to be used."""
        heap = self._longest
        while heap:
            negative, first = heap[0]
            if self._end_of.get(first) == first - negative:
                return -negative
            heappop(heap)
        return 0

    def take_longest(self) -> range:
        """Take the longest run out. There is one (`longest`)."""
        first = self._longest[0][1]
        run = range(first, self._end_of[first])
        self._remove(first)
        heappop(self._longest)
        return run
