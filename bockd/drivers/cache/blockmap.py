"""Which blocks of a device are in its cache file: the map that the fast lane looks at.

A *leaf* is 256 neighbouring blocks, 1 MiB, as in `FastView`: for each block its slot, which says
where a read finds it. A block whose slot is MISS_SLOT is not cached. Leaves are *warm*, which the
lane sees, or *cool*: hidden from it, so that the next read of one must ask, and shows that it is
used. Nothing else would: the lane does not say what it reads.

What takes space in the file is counted by itself (`allocated`): a block that was written in the
device below is a miss, and its place in the file is used again, or punched with its leaf.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from bockd.model import BLOCK_SIZE, MIB

LEAF_SHIFT = 8
LEAF_BLOCKS = 1 << LEAF_SHIFT
LEAF_MASK = LEAF_BLOCKS - 1
LEAF_BYTES = LEAF_BLOCKS * BLOCK_SIZE
assert LEAF_BYTES == MIB

HOLE_SLOT = 0
"""All zeros; the file has nothing of it that counts."""
FILE_SLOT = 1
"""In the cache file, at its own offset."""
MISS_SLOT = 2
SLOTS = 3

_UNIFORM = [array("H", (slot,)) * LEAF_BLOCKS for slot in range(SLOTS)]
_MISSES = _UNIFORM[MISS_SLOT]


class BlockMap:
    """Leaves of one device. For the owner thread."""

    def __init__(self) -> None:
        self.leaves: dict[int, array[int]] = {}
        """The warm ones, by number. One dictionary from the beginning to the end."""
        self.allocated: dict[int, int] = {}
        """For each leaf the blocks that take space in the file, a bit for each."""
        self._cool: dict[int, array[int]] = {}

    # -- looking -----------------------------------------------------------------------------

    def find(self, number: int) -> array[int] | None:
        """Return a leaf, warm or cool."""
        return self.leaves.get(number) or self._cool.get(number)

    def is_cool(self, number: int) -> bool:
        return number in self._cool

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of all leaves."""
        yield from self.leaves
        yield from self._cool

    def runs(self, first: int, end: int) -> list[tuple[int, int, int]] | None:
        """Return which slots blocks first..end-1 are in, as (first, end, slot) of neighbours in
        one. None if one of them is a miss."""
        found: list[tuple[int, int, int]] = []
        for number, start, stop in _parts(first, end):
            leaf = self.find(number)
            if leaf is None:
                return None
            base = number << LEAF_SHIFT
            for run_start, run_stop, slot in _runs_of(leaf, start, stop):
                if slot == MISS_SLOT:
                    return None
                if found and found[-1][2] == slot:
                    found[-1] = (found[-1][0], base + run_stop, slot)
                else:
                    found.append((base + run_start, base + run_stop, slot))
        return found

    def unallocated(self, first: int, end: int) -> int:
        """Return how many of blocks first..end-1 take no space in the file."""
        count = end - first
        for number, start, stop in _parts(first, end):
            count -= (self.allocated.get(number, 0) & _mask(start, stop)).bit_count()
        return count

    # -- changing ----------------------------------------------------------------------------

    def note_written(self, first: int, zeros: bytes) -> int:
        """Note that blocks from `first` on were written to the file, but for those that are
        `zeros` (a byte for each, 1 if so). Return how many did not take space before."""
        added = 0
        for number, start, stop in _parts(first, first + len(zeros)):
            base = (number << LEAF_SHIFT) - first
            before = self.allocated.get(number, 0)
            after = before | _mask(start, stop)
            for block in range(start, stop) if any(zeros[base + start : base + stop]) else ():
                if zeros[base + block]:
                    after &= before | ~(1 << block)
            self.allocated[number] = after
            added += (after ^ before).bit_count()
        return added

    def add(self, first: int, zeros: bytes) -> Iterator[int]:
        """Make blocks from `first` on hits: of the file, or of zeros where `zeros` says so. Yield
        the numbers of their leaves, which are warm then."""
        slots = array("H", [HOLE_SLOT if zero else FILE_SLOT for zero in zeros])
        for number, start, stop in _parts(first, first + len(zeros)):
            at = (number << LEAF_SHIFT) + start - first
            self.warm(number)
            leaf = self.leaves.get(number)
            if leaf is None:
                leaf = self.leaves[number] = _MISSES[:]
            leaf[start:stop] = slots[at : at + stop - start]
            yield number

    def clear(self, first: int, end: int) -> None:
        """Make blocks first..end-1 misses."""
        for number, start, stop in self._present(first, end):
            leaf = self.find(number)
            assert leaf is not None
            leaf[start:stop] = _MISSES[: stop - start]

    def drop(self, number: int) -> None:
        """Forget a leaf. What it takes in the file stays counted until `punched`."""
        self.leaves.pop(number, None)
        self._cool.pop(number, None)

    def punched(self, number: int) -> int:
        """Note that a leaf takes no space any more. Return how many blocks of it did."""
        return self.allocated.pop(number, 0).bit_count()

    def cool(self, number: int) -> None:
        """Hide a leaf from the lane."""
        leaf = self.leaves.pop(number, None)
        if leaf is not None:
            self._cool[number] = leaf

    def warm(self, number: int) -> None:
        """Show a leaf to the lane, if there is one."""
        leaf = self._cool.pop(number, None)
        if leaf is not None:
            self.leaves[number] = leaf

    def forget(self) -> None:
        """Make everything misses."""
        self.leaves.clear()
        self._cool.clear()

    def kept_leaves(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield all that `load` takes, for each leaf that has or takes something."""
        for number in sorted({*self.numbers(), *self.allocated}):
            leaf = self.find(number) or _MISSES
            yield number, bytes(array("B", leaf)), self.allocated.get(number, 0)

    def load(self, number: int, slots: bytes, allocated: int) -> None:
        """Take in a leaf as it was kept: a byte for each slot. It is cool until somebody reads."""
        self._cool[number] = array("H", array("B", slots))
        self.allocated[number] = allocated

    def _present(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The parts of a range whose leaves there are."""
        count = ((end - 1) >> LEAF_SHIFT) + 1 - (first >> LEAF_SHIFT)
        if count <= len(self.leaves) + len(self._cool):
            for number, start, stop in _parts(first, end):
                if self.find(number) is not None:
                    yield number, start, stop
            return
        for number in list(self.numbers()):
            base = number << LEAF_SHIFT
            start, stop = max(first - base, 0), min(end - base, LEAF_BLOCKS)
            if start < stop:
                yield number, start, stop


def _parts(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """For each leaf of blocks first..end-1: its number, and where they begin and end in it."""
    while first < end:
        number, start = first >> LEAF_SHIFT, first & LEAF_MASK
        stop = min(LEAF_BLOCKS, start + end - first)
        yield number, start, stop
        first += stop - start


def _runs_of(leaf: array[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The runs of one slot among blocks start..stop-1 of a leaf."""
    if leaf[start:stop] == _UNIFORM[leaf[start]][: stop - start]:
        yield start, stop, leaf[start]
        return
    for block in range(start + 1, stop):
        if leaf[block] != leaf[start]:
            yield start, block, leaf[start]
            start = block
    yield start, stop, leaf[start]


def _mask(start: int, stop: int) -> int:
    return (1 << stop) - (1 << start)
