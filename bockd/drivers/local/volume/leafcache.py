"""The live block map of an open device in memory, leaf by leaf.

A leaf is an array of 256 slots (volume.slots); equal uniform leaves share one, which is copied when
a block changes. Beside it, in `cells`, is where its blocks lie in their layers, if one of these is
packed (format.cells): an array of 256 cells, which no other leaf shares.

Invariants:
* A leaf with a block in a packed layer has cells. What they say of other blocks means nothing, so
  merging a packed layer into a raw one (`LayerSlots.alias`) changes none.
* A leaf with changes that the index does not have is *dirty* and stays. Clean ones are evicted in
  groups, oldest first, when the cache outgrows its budget.
* What the index does not have of a group that was read is all holes, and takes no place in memory.
* A group that was made holes as a whole is *holed*, and stays, until the index has that: whatever
  the index has of it is outdated. Its leaves in memory have later changes, if any.
* `leaves`, `cells`, `dirty` and `shared` are the same dictionaries from the beginning to the end;
  others hold on to them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TypeAlias

from bockd.drivers.local.format.cells import runs_of_cells
from bockd.drivers.local.format.leaf import (
    LEAF_BLOCKS,
    LEAF_MASK,
    LEAF_SHIFT,
    Leaf,
    Numbering,
)
from bockd.drivers.local.volume.slots import DAMAGED_SLOT, HOLE_SLOT, LayerSlots
from bockd.model import MIB, LayerId

SlotLeaf: TypeAlias = "array[int]"
"""256 slots, typecode H."""

GROUP_LEAVES = 64
"""Leaves that are read and evicted together: 64 MiB of volume, one cursor walk."""

CACHE_BYTES = 28 * MIB
"""Per open device. About 33,000 leaves of scattered blocks (the worst kind; 14,000 if they lead to
packed layers, whose cells come with them), or 280,000 uniform ones. With what checkpoints take for
a while, an open volume is to cost no more than 64 MiB."""

_EAGER_SHARE = 3 / 4
"""With less than this of its budget used the cache takes in more than was asked for. Once it has
been full it uses more for ever, as an eviction frees little: where a volume has more leaves than
the cache can hold, nothing is loaded in vain."""

_EVICTED_SHARE = 16
"""One in so many bytes is made free at once, so that not every load has to look for victims."""

_GROUP_BYTES = 200
"""What a group costs beside its leaves: its entries in a dictionary and a set. A holed one costs
less than as much again."""

_CELLS_BYTES = 1200
_NO_CELLS = bytes(4 * LEAF_BLOCKS)
_SHARED_LEAF_BYTES = 104
_PRIVATE_LEAF_BYTES = _SHARED_LEAF_BYTES + 740


class LeafCache:
    """Leaves of one open device, whose slots are those of `layers`. For the owner thread."""

    def __init__(self, layers: LayerSlots) -> None:
        self.leaves: dict[int, SlotLeaf] = {}
        self.cells: dict[int, array[int]] = {}
        """See FastView.cells."""
        self.dirty: dict[int, int] = {}
        """Leaf number to the journal sequence of its last change."""
        self._layers = layers
        self.shared: dict[int, SlotLeaf] = {}
        """By its slot: the leaf with all blocks in it, which may stand in many places."""
        self._groups: dict[int, None] = {}
        self._whole: set[int] = set()
        """Groups that were read, or made holes, and have lost no leaf since: what is absent is all
        holes."""
        self._kinds: dict[int, bool] = {}
        """Those of them that are known to be all holes (True) or all data (False)."""
        self.drops = 0
        """How many groups have been evicted so far."""
        self._holed: dict[int, int] = {}
        """Holed group to the journal sequence of the change."""
        self._private = 0
        self._evict_above = CACHE_BYTES
        self._pins: dict[int, int] = {}

    def close(self) -> None:
        """Forget all leaves, and close the layers."""
        self._layers.close()
        self.leaves.clear()
        self.cells.clear()
        self._whole.clear()
        self._kinds.clear()
        self._holed.clear()

    # -- looking -----------------------------------------------------------------------------

    def find(self, number: int) -> SlotLeaf | None:
        """Return a leaf, to be read only. None if it must be loaded from the index."""
        leaf = self.leaves.get(number)
        if leaf is None and number // GROUP_LEAVES in self._whole:
            return self.uniform(HOLE_SLOT)
        return leaf

    def is_whole(self, group: int) -> bool:
        """Return whether what is absent of a group is known to be holes."""
        return group in self._whole

    def kind(self, group: int) -> bool | None:
        """Return True if a group is known to be all holes, and False if it is known to have none.
        Both hold until something of it changes."""
        return self._kinds.get(group)

    def note_kind(self, group: int, *, holes: bool) -> None:
        """Remember whether a group that is all in memory is all holes or all data. The leaves of
        one that is all holes are absent or shared, because the cache is not told of changes to a
        leaf that it gave out with `own`."""
        if group in self._whole:
            self._kinds[group] = holes

    def leaf(self, number: int) -> SlotLeaf:
        """Return a leaf that is in memory, to be read only."""
        leaf = self.find(number)
        assert leaf is not None
        return leaf

    def missing(self, first: int, end: int) -> int | None:
        """Return the number of the first leaf of blocks first..end-1 that is not in memory, or
        None."""
        for number in range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1):
            if self.find(number) is None:
                return number
        return None

    def uniform(self, slot: int) -> SlotLeaf:
        """Return the shared leaf with all blocks in one slot."""
        leaf = self.shared.get(slot)
        if leaf is None:
            leaf = self.shared[slot] = array("H", (slot,)) * LEAF_BLOCKS
        return leaf

    def is_shared(self, leaf: SlotLeaf) -> bool:
        """Return whether a leaf is the shared one of its slot, and so uniform."""
        return self.shared.get(leaf[0]) is leaf

    def is_packed(self, slot: int) -> bool:
        """Return whether a slot is that of a packed layer."""
        layer = self._layers.slots[slot]
        return layer is not None and layer.packed

    def cells_in(self, number: int, first: int, end: int, slot: int) -> tuple[range, ...]:
        """Return the cells of those of a leaf's blocks first..end-1 that are in `slot`; of a raw
        layer an empty tuple."""
        row = self.cells.get(number)
        if row is None or slot < 0 or not self.is_packed(slot):
            return ()
        leaf = self.leaf(number)
        held = sorted(row[block] for block in range(first, end) if leaf[block] == slot)
        return tuple(range(low, high) for low, high in runs_of_cells(held))

    def holds_only(self, first: int, end: int, slot: int) -> bool:
        """Return whether blocks first..end-1 are all in `slot`. Their leaves are in memory."""
        while first < end:
            number = first >> LEAF_SHIFT
            base = number << LEAF_SHIFT
            stop = min(end, base + LEAF_BLOCKS)
            leaf, wanted = self.leaf(number), self.uniform(slot)
            if leaf is not wanted and leaf[first - base : stop - base] != wanted[: stop - first]:
                return False
            first = stop
        return True

    def filled(self, first: int, end: int) -> set[int]:
        """Return the numbers of the leaves within first..end-1 that are in memory and not all
        holes."""
        hole = self.uniform(HOLE_SLOT)
        if end - first < len(self.leaves):
            found = range(first, end)
            return {n for n in found if (leaf := self.leaves.get(n)) and leaf is not hole}
        return {n for n, leaf in self.leaves.items() if first <= n < end and leaf is not hole}

    def is_hole(self, number: int) -> bool:
        """Return whether a leaf is known to be all holes, whatever the index has."""
        return self.find(number) is self.uniform(HOLE_SLOT)

    def unstored(self) -> int:
        """Return how many leaves and holed groups wait to be stored in the index."""
        return len(self.dirty) + len(self._holed)

    # -- changing ----------------------------------------------------------------------------

    def assign(self, first: int, end: int, slot: int, sequence: int, cell: int = -1) -> None:
        """Assign blocks first..end-1 to `slot`, and in a packed layer to cells from `cell` on.
        Their leaves are in memory."""
        while first < end:
            number = first >> LEAF_SHIFT
            stop = min(end, (number + 1) << LEAF_SHIFT)
            base = number << LEAF_SHIFT
            if stop - first == LEAF_BLOCKS:
                self.replace(number, self.uniform(slot), sequence)
            else:
                leaf = self.leaf(number)[:]
                leaf[first - base : stop - base] = self.uniform(slot)[: stop - first]
                self.replace(number, leaf, sequence)
                self.share(number)
            if cell >= 0:
                given = range(cell, cell + stop - first)
                self._own_cells(number)[first - base : stop - base] = array("I", given)
                cell += stop - first
            first = stop

    def assign_one(self, block: int, slot: int, sequence: int, cell: int = -1) -> None:
        """Assign one block to `slot`, as `assign` does, but faster: for random writes."""
        number = block >> LEAF_SHIFT
        leaf = self.leaves.get(number) or self.leaf(number)
        if self.shared.get(leaf[0]) is leaf:
            leaf = self._copied(number, leaf)
        leaf[block & LEAF_MASK] = slot
        if cell >= 0:
            self._own_cells(number)[block & LEAF_MASK] = cell
        self.dirty[number] = sequence

    def own(self, number: int, *, packed: bool = False) -> SlotLeaf | None:
        """Return a leaf that is not shared. The caller may change it, and then marks it as dirty.
        With `packed` it has cells from now on. None if it must be loaded from the index."""
        leaf = self.find(number)
        if leaf is not None and packed:
            self._own_cells(number)
        if leaf is None or not self.is_shared(leaf):
            return leaf
        return self._copied(number, leaf)

    def _own_cells(self, number: int) -> array[int]:
        """The cells of a leaf, to be changed. A leaf without cells gets some."""
        row = self.cells.get(number)
        if row is None:
            row = self.cells[number] = array("I", _NO_CELLS)
        return row

    def _copied(self, number: int, leaf: SlotLeaf) -> SlotLeaf:
        """Put a copy of a shared leaf in its place, to be changed."""
        self._private += 1
        self._kinds.pop(number // GROUP_LEAVES, None)
        copy = self.leaves[number] = leaf[:]
        return copy

    def share(self, number: int) -> None:
        """Replace a leaf by the shared one if it has become uniform."""
        leaf = self.leaves[number]
        if leaf[0] == leaf[-1] and not self.is_shared(leaf):
            shared = self.uniform(leaf[0])
            if leaf == shared:
                self._private -= 1
                self.leaves[number] = shared
                self._drop_cells(number, leaf[0])

    def _drop_cells(self, number: int, slot: int) -> None:
        """Forget the cells of a leaf whose blocks are all in `slot` now, if that is raw."""
        if number in self.cells and not self.is_packed(slot):
            del self.cells[number]

    def replace(self, number: int, leaf: SlotLeaf, sequence: int) -> None:
        """Put a changed leaf in place."""
        old = self.leaves.get(number)
        if old is not None and not self.is_shared(old):
            self._private -= 1
        if old is None:
            self._groups[number // GROUP_LEAVES] = None
        self._kinds.pop(number // GROUP_LEAVES, None)
        if not self.is_shared(leaf):
            self._private += 1
        else:
            self._drop_cells(number, leaf[0])
        self.leaves[number] = leaf
        self.dirty[number] = sequence

    def mark_clean(self, applied: int) -> None:
        """Mark leaves and groups as clean if they have no change after sequence `applied`, up to
        which the index now has all."""
        later = {number: last for number, last in self.dirty.items() if last > applied}
        self.dirty.clear()
        self.dirty.update(later)
        self._holed = {group: last for group, last in self._holed.items() if last > applied}
        self._evict_above = CACHE_BYTES
        self._evict()

    def hole_groups(self, groups: range, head: int, sequence: int) -> dict[int, tuple[range, ...]]:
        """Make whole groups holes; nothing of them need be in memory. Return those that were not
        known to be holes, each with the cells that its blocks in memory had in a packed layer of
        slot `head`."""
        made: dict[int, tuple[range, ...]] = {}
        for group in groups:
            if self._kinds.get(group):
                continue
            numbers = self.leaves_of(group)
            if group in self._whole and (
                self.leaves.keys().isdisjoint(numbers)
                or not self.filled(numbers.start, numbers.stop)
            ):
                continue
            cells: tuple[range, ...] = ()
            if group in self._groups:
                for number in self.leaves.keys() & numbers:
                    cells += self.cells_in(number, 0, LEAF_BLOCKS, head)
                    self._forget(number)
                    self.dirty.pop(number, None)
            self._groups[group] = None
            self._whole.add(group)
            self._kinds[group] = True
            self._holed[group] = sequence
            made[group] = cells
        return made

    # -- damage ------------------------------------------------------------------------------

    def mark_damaged(self, layer_id: LayerId, block: int) -> None:
        """Mark a block of a frozen layer as damaged, so that reading it fails."""
        self._layers.outdate_loads()
        number, at = block >> LEAF_SHIFT, block & LEAF_MASK
        leaf = self.leaves.get(number)
        if leaf is None:  # not loaded, or all of the device is closed
            return
        layer = self._layers.opened(layer_id)
        # An alias of the layer has another slot, and the same files.
        if layer is None or self._layers.slots[leaf[at]] is not layer:
            return
        if self.is_shared(leaf):
            leaf = self._copied(number, leaf)
        leaf[at] = DAMAGED_SLOT

    def clear_damaged(self, block: int) -> None:
        """Drop the leaf of a block that was repaired in some layer, so that it is loaded again. A
        dirty leaf stays: then reading the block fails until the device is closed."""
        self._layers.outdate_loads()
        number = block >> LEAF_SHIFT
        if number // GROUP_LEAVES in self._holed:
            return  # what the index has is outdated
        if number not in self.dirty and number in self.leaves:
            self._forget(number)
            self._whole.discard(number // GROUP_LEAVES)
            self._kinds.pop(number // GROUP_LEAVES, None)

    # -- groups ------------------------------------------------------------------------------

    def group_of(self, number: int) -> int:
        """Return the group of a leaf."""
        return number // GROUP_LEAVES

    def leaves_of(self, group: int) -> range:
        """Return the numbers of the leaves of a group."""
        return range(group * GROUP_LEAVES, (group + 1) * GROUP_LEAVES)

    def pin(self, groups: Iterable[int]) -> None:
        """Keep groups from being evicted until as many calls of `unpin`."""
        for group in groups:
            self._pins[group] = self._pins.get(group, 0) + 1

    def unpin(self, groups: Iterable[int]) -> None:
        """Undo one `pin` of groups."""
        for group in groups:
            self._pins[group] -= 1
            if not self._pins[group]:
                del self._pins[group]

    def next_whole(self, group: int, end: int) -> int:
        """Return the first group from `group` on that is whole, or `end`."""
        whole = self._whole
        while group < end and group not in whole:
            group += 1
        return group

    @property
    def has_room(self) -> bool:
        """Whether a load is to take in more than what was asked for."""
        return self._weight() < CACHE_BYTES * _EAGER_SHARE

    def install(
        self,
        group: int,
        leaves: dict[int, Leaf],
        damaged: dict[int, list[int]],
        cells: dict[int, array[int]],
    ) -> None:
        """Take in what the index has of a group: its leaves, by their numbers; which blocks of
        which leaf are damaged; the cells of the leaves that lead to packed layers. Leaves that are
        in memory already are newer, and stay. All of the layers have slots."""
        self._evict()
        self.install_more((group,), leaves, damaged, cells)

    def install_more(
        self,
        groups: Iterable[int],
        leaves: dict[int, Leaf],
        damaged: dict[int, list[int]],
        cells: dict[int, array[int]],
    ) -> None:
        """Take in several groups, as `install` does, and evict nothing. No group has been evicted
        since they were read (`drops`): it might have been one of them, with later changes."""
        held = set[int]()
        numberings: dict[tuple[int, ...], Numbering] = {}
        for number, leaf in leaves.items():
            group = number // GROUP_LEAVES
            held.add(group)
            # Of a group that is whole all has changed since it was read, or nothing has.
            if number in self.leaves or group in self._whole:
                continue
            if number in cells:
                self.cells[number] = cells[number]
            palette, bad = tuple(leaf.palette), damaged.get(number)
            if len(palette) == 1 and bad is None:
                self.leaves[number] = self.uniform(self._layers.slots_of(palette)[0])
            else:
                numbering = numberings.get(palette)
                if numbering is None:  # many leaves have the same palette
                    numbering = Numbering.of(self._layers.slots_of(palette))
                    numberings[palette] = numbering
                self.leaves[number] = leaf.numbered(numbering)
                self._private += 1
                for block in bad or ():
                    self.leaves[number][block] = DAMAGED_SLOT
        for group in groups:
            if group not in self._groups:
                self._groups[group] = None
                if group not in held:  # nor has the memory anything of it
                    self._kinds[group] = True
            self._whole.add(group)

    def _evict(self) -> None:
        """Drop clean groups, oldest first, until the cache is within its budget."""
        if self._weight() <= self._evict_above:
            return
        at_once = CACHE_BYTES // _EVICTED_SHARE
        for group in list(self._groups):
            if self._weight() <= CACHE_BYTES - at_once:
                break
            if group not in self._pins and group not in self._holed:
                self._drop(group)
        # When all that is left is dirty, looking for more would find nothing each time.
        self._evict_above = max(CACHE_BYTES, self._weight() + at_once)

    def _drop(self, group: int) -> None:
        """Forget the clean leaves of a group. A group with dirty ones becomes the newest."""
        self.drops += 1
        del self._groups[group]
        self._whole.discard(group)
        self._kinds.pop(group, None)
        for number in self.leaves_of(group):
            if number in self.dirty:
                self._groups[group] = None
            elif number in self.leaves:
                self._forget(number)

    def _forget(self, number: int) -> None:
        """Forget a leaf in memory."""
        self._private -= not self.is_shared(self.leaves.pop(number))
        self.cells.pop(number, None)

    def _weight(self) -> int:
        """Estimate the memory that the leaves take, in bytes."""
        private = self._private * (_PRIVATE_LEAF_BYTES - _SHARED_LEAF_BYTES)
        groups = (len(self._groups) + len(self._holed)) * _GROUP_BYTES
        leaves = len(self.leaves) * _SHARED_LEAF_BYTES + len(self.cells) * _CELLS_BYTES
        return leaves + private + groups
