"""Which ranges of a device are dirty, and which record of the log has the newest data of each.

The device is divided into regions; each has its ranges in order, none overlapping another. Regions
keep the lists short: 64 MiB are 16,384 ranges of a block at most, and a trim of 4 GiB is 64.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from bockd.drivers.writeback.records import Record

REGION_SHIFT = 26

SLICE = 256
"""Ranges of an epoch that are dropped at once: a millisecond of work, also in a region that is full
of ranges of a sector."""

_FILTERED_PER_CUT = 16
"""To find one range in its region and cut it out takes about as long as to look at so many."""

Piece = tuple[int, int, Record]
"""First byte, end, and the record that has its content."""


class DirtyMap:
    """For the owner thread."""

    __slots__ = ("_regions", "count")

    def __init__(self) -> None:
        self.count = 0
        """Pieces in it."""
        self._regions: dict[int, list[Piece]] = {}

    def put(self, record: Record) -> None:
        """Note a record that is newer than all others."""
        start, end = record.offset, record.end
        while start < end:
            number = start >> REGION_SHIFT
            stop = min(end, (number + 1) << REGION_SHIFT)
            self._replace(number, start, stop, (start, stop, record))
            start = stop

    def _replace(self, number: int, start: int, end: int, piece: Piece) -> None:
        pieces = self._regions.setdefault(number, [])
        low, high = _overlapping(pieces, start, end)
        new = []
        if low < high and (before := pieces[low])[0] < start:
            new.append((before[0], start, before[2]))
        new.append(piece)
        if low < high and (after := pieces[high - 1])[1] > end:
            new.append((end, after[1], after[2]))
        self.count += len(new) - (high - low)
        pieces[low:high] = new

    def find(self, start: int, end: int, most: int) -> list[tuple[int, int, Record | None]]:
        """Return a range in pieces, in order; those that are not dirty have no record. After `most`
        that are dirty it ends."""
        found: list[tuple[int, int, Record | None]] = []
        at = start
        for first, stop, record in self.overlapping(start, end):
            if at < first:
                found.append((at, first, None))
            found.append((max(first, start), min(stop, end), record))
            at = stop
            most -= 1
            if not most:
                return found
        if at < end:
            found.append((at, end, None))
        return found

    def overlapping(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the pieces that have a part in a range, in order. Nothing may change meanwhile."""
        if not self._regions:
            return
        for number in range(start >> REGION_SHIFT, ((end - 1) >> REGION_SHIFT) + 1):
            pieces = self._regions.get(number)
            if pieces:
                for nth in range(*_overlapping(pieces, start, end)):
                    yield pieces[nth]

    def forget(self, other: DirtyMap, sequence: int, most: int) -> int:
        """Drop some of the ranges of another map, that of the oldest epoch, but for what is newer
        than its last sequence: about `most`, and of that map, too. All that is as old is of that
        epoch. Return how many they were; it is done when the other map has none."""
        taken = 0
        while other._regions and taken < most:
            number = next(reversed(other._regions))
            left = other._regions[number]
            dropped = left[-most:]
            self._drop(number, dropped, sequence)
            del left[-most:]
            if not left:
                del other._regions[number]
            other.count -= len(dropped)
            taken += len(dropped)
        return taken

    def _drop(self, number: int, dropped: list[Piece], sequence: int) -> None:
        pieces = self._regions.get(number)
        if not pieces:
            return
        before = len(pieces)
        low, high = _overlapping(pieces, dropped[0][0], dropped[-1][1])
        if len(dropped) * _FILTERED_PER_CUT < high - low:
            for start, end, _ in dropped:
                low, high = _overlapping(pieces, start, end)
                pieces[low:high] = _newer(pieces[low:high], sequence)
        else:
            pieces[low:high] = _newer(pieces[low:high], sequence)
        self.count += len(pieces) - before
        if not pieces:
            del self._regions[number]

    def pieces(self) -> Iterator[Piece]:
        """Yield all that is dirty, in order within a region. Nothing may change meanwhile."""
        for pieces in self._regions.values():
            yield from pieces


def _newer(pieces: list[Piece], sequence: int) -> list[Piece]:
    return [piece for piece in pieces if piece[2].sequence > sequence]


def _overlapping(pieces: list[Piece], start: int, end: int) -> tuple[int, int]:
    """Return the places, first and end, of the pieces that overlap a range."""
    low = bisect_left(pieces, (start,))
    if low and pieces[low - 1][1] > start:
        low -= 1
    return low, bisect_left(pieces, (end,), low)
