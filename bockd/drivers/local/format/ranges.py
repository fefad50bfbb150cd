"""Sets of numbers (blocks, leaves) that come in long ranges. Pure bookkeeping."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """A set of numbers as sorted, disjoint ranges (first, end), `end` exclusive."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number)
        return at > 0 and number < self._ends[at - 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges in order."""
        return zip(self._firsts, self._ends, strict=True)

    def first(self) -> tuple[int, int] | None:
        """Return the first range, None if the set is empty."""
        return (self._firsts[0], self._ends[0]) if self._firsts else None

    def add(self, first: int, end: int) -> None:
        """Add first..end-1, merging with what touches them."""
        low = bisect_left(self._ends, first)
        high = bisect_right(self._firsts, end)
        if low < high:
            first = min(first, self._firsts[low])
            end = max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]

    def remove(self, first: int, end: int) -> list[tuple[int, int]]:
        """Take first..end-1 out and return those that were in, as ranges."""
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
