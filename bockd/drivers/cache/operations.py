"""Which reads and changes of a cached device are under way, and which of them may fill the cache.

An operation is open from before it is sent below until its data is in the cache, or given up. Its
data is *stale* if, at any moment of that time, a change (a write, trim or zeroing, or an eviction)
of one of its blocks was under way: what the block holds then depends on an order that nobody
knows. Stale data fills nothing and is given to nobody.

So two things are enough. A change that begins makes every open operation stale that it overlaps.
An operation that begins while a change of its blocks is under way is stale from its beginning: it
may have read what was there before, and may end after the change.
"""

from __future__ import annotations

from collections.abc import Iterable

from bockd.drivers.cache.blockmap import LEAF_SHIFT
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Signal

_WIDE_LEAVES = 64
"""A range of more leaves is not entered in each of them: a trim may cover the whole volume."""


class Operation:
    """A read or a change of blocks first..end-1."""

    __slots__ = ("answered", "changing", "data", "data_first", "end", "first", "stale")

    def __init__(self, first: int, end: int, *, changing: bool) -> None:
        self.first = first
        self.end = end
        self.changing = changing
        """A change that the device below has not ended."""
        self.stale = False
        self.data: bytes | None = None
        """What blocks from `data_first` on hold, whole blocks, once it is known."""
        self.data_first = first
        self.answered = Signal()
        """Fires when `data` is known, or never will be."""

    def overlaps(self, first: int, end: int) -> bool:
        return self.first < end and first < self.end

    def covers(self, first: int, end: int) -> bool:
        """Return whether its data are, or may be, that of all of blocks first..end-1."""
        if self.data is None:
            return self.first <= first and end <= self.end
        return self.data_first <= first and end <= self.data_first + len(self.data) // BLOCK_SIZE


class Operations:
    """The open operations of one device. For the owner thread."""

    def __init__(self) -> None:
        self._by_leaf: dict[int, list[Operation]] = {}
        self._wide: list[Operation] = []

    def read(self, first: int, end: int) -> Operation:
        """Open a read."""
        read = Operation(first, end, changing=False)
        read.stale = any(other.changing for other in self._overlapping(first, end))
        self._enter(read)
        return read

    def change(self, first: int, end: int) -> Operation:
        """Open a change, before it is sent below. All else that is open of its blocks is stale."""
        change = Operation(first, end, changing=True)
        for other in self._overlapping(first, end):
            change.stale = change.stale or other.changing
            other.stale = True
        self._enter(change)
        return change

    def answer(self, operation: Operation, data: bytes | None, data_first: int) -> None:
        """Note what the device below has answered: a read's data, or what a write has written of
        whole blocks; None if there is nothing to keep. The change is over."""
        operation.changing = False
        operation.data, operation.data_first = data, data_first
        operation.answered.fire()

    def close(self, operation: Operation) -> None:
        """Forget an operation. Doing so again does nothing."""
        operation.changing = False
        operation.data = None
        operation.answered.fire()
        for entered in self._lists(operation.first, operation.end):
            if operation in entered:
                entered.remove(operation)
        if _is_wide(operation.first, operation.end):
            return
        for number in _leaves(operation.first, operation.end):
            if not self._by_leaf.get(number, True):
                del self._by_leaf[number]

    def covering(self, first: int, end: int) -> Operation | None:
        """Return an operation whose data is, or will be, that of all of blocks first..end-1, and is
        what a read that begins now may be given. None if there is none."""
        for entered in (self._by_leaf.get(first >> LEAF_SHIFT, ()), self._wide):
            for one in entered:
                if not (one.stale or one.changing) and one.covers(first, end):
                    return one
        return None

    def __len__(self) -> int:
        return len(set(self._all()))

    def _enter(self, operation: Operation) -> None:
        if _is_wide(operation.first, operation.end):
            self._wide.append(operation)
            return
        for number in _leaves(operation.first, operation.end):
            self._by_leaf.setdefault(number, []).append(operation)

    def _lists(self, first: int, end: int) -> Iterable[list[Operation]]:
        """Lists that have all operations overlapping a range."""
        yield self._wide
        if _is_wide(first, end):
            yield from self._by_leaf.values()
            return
        for number in _leaves(first, end):
            if (entered := self._by_leaf.get(number)) is not None:
                yield entered

    def _all(self) -> Iterable[Operation]:
        yield from self._wide
        for entered in self._by_leaf.values():
            yield from entered

    def _overlapping(self, first: int, end: int) -> Iterable[Operation]:
        for entered in self._lists(first, end):
            for other in entered:
                if other.overlaps(first, end):
                    yield other


def _leaves(first: int, end: int) -> range:
    return range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1)


def _is_wide(first: int, end: int) -> bool:
    return len(_leaves(first, end)) > _WIDE_LEAVES
