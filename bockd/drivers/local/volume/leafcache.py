"""The live block map of an open device, in memory leaf by leaf.

Layers are known by *slots*: small numbers given out as layers are met, slot 0 meaning hole and slot
1 what is damaged. A leaf
is an array of 256 slots; equal uniform leaves share one, which is copied when a block changes.
Freezing a head changes no leaf: its slot goes on meaning the same layer.

A leaf with changes that the index does not have is *dirty* and stays; clean ones are evicted in
groups, oldest first, when the cache outgrows its budget. Leaves are read from the index in a
thread, a group at a time, because neighbours cost next to nothing once the cursor is there. What
the index does not have of a group that was read is all holes, and takes no place in memory.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TypeAlias

from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.blockmap import present_leaves, stored_leaves
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.frozenlayer import FrozenLayer, OpenFiles
from bockd.drivers.local.format.layer import DamagedBlocks, Layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.leaf import HOLE, LEAF_BLOCKS, LEAF_MASK, LEAF_SHIFT, Leaf, runs_of
from bockd.errors import DamagedError
from bockd.index.index import Index, Table, Transaction
from bockd.model import KIB, MIB, LayerId, MapId
from bockd.runtime.steps import Signal, blocking

SlotLeaf: TypeAlias = "array[int]"
"""256 slots, typecode H."""

HOLE_SLOT = 0
DAMAGED_SLOT = 1
"""Of blocks that a scrub has found damaged, whatever layer they are in."""

GROUP_LEAVES = 64
"""Leaves read together: 64 MiB of volume, one cursor walk."""

CACHE_BYTES = 28 * MIB
"""Per open device. About 33,000 leaves of scattered blocks (the worst kind), or 280,000 uniform
ones. With what checkpoints take for a while, an open volume is to cost no more than 64 MiB."""

_EVICTED_SHARE = 16
"""One in so many bytes is made free at once, so that not every load has to look for victims."""

_GROUP_BYTES = 200
"""What a group costs beside its leaves: its entries in a dictionary and a set."""

_SHARED_LEAF_BYTES = 104
_PRIVATE_LEAF_BYTES = _SHARED_LEAF_BYTES + 740
_SPARE_SLOTS = 1024
_MAX_SLOTS = 64 * KIB
"""What a slot's 16 bits hold: layers met by one opening of one device."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a thread brought back from the index."""

    first: int
    end: int
    leaves: dict[int, Leaf]
    layers: dict[LayerId, FrozenLayer]
    damaged: dict[int, list[int]]
    """Leaf number to those of its blocks that are known to be damaged."""


class LeafCache:
    """Leaves, slots and layers of one open device. For the owner thread, but for `_read`."""

    def __init__(
        self, index: Index, layout: Layout, files: OpenFiles, chain: tuple[MapId, ...]
    ) -> None:
        self.leaves: dict[int, SlotLeaf] = {}
        self.slots: list[Layer | None] = [None, DamagedBlocks()]
        self.dirty: dict[int, int] = {}
        """Leaf number to the journal sequence of its last change."""
        self.chain = chain
        self.index = index
        self.files = files
        """Those of frozen layers; for all open devices together."""
        self._layout = layout
        self._slot_of: dict[LayerId, int] = {HOLE: HOLE_SLOT}
        self._uniform: dict[int, SlotLeaf] = {}
        self._groups: dict[int, None] = {}
        self._whole: set[int] = set()
        """Groups that were read and have lost no leaf since: what is absent is all holes."""
        self._private = 0
        self._evict_above = CACHE_BYTES
        self._loading: dict[int, Signal] = {}
        self._pins: dict[int, int] = {}
        self._era = 0

    # -- slots -------------------------------------------------------------------------------

    def add_layer(self, layer: Layer) -> int:
        """Give an open layer a slot; the cache closes it in the end."""
        slot = len(self.slots)
        assert slot < _MAX_SLOTS
        self.slots.append(layer)
        self._slot_of[layer.id] = slot
        return slot

    def frozen_layer(self, layer_id: LayerId, size_bytes: int) -> FrozenLayer:
        """Return a layer to read from that is not open yet and has no slot."""
        return FrozenLayer(self._layout, layer_id, size_bytes, self.files)

    def slot_of(self, layer: Layer) -> int:
        """Return the slot of an open layer. A layer without one gets one."""
        slot = self._slot_of.get(layer.id)
        return self.add_layer(layer) if slot is None else slot

    def take_over(self, layer: Layer) -> Layer | None:
        """Replace the layer object of the same id, which was opened in another way, by `layer`.
        Return the replaced one, which the caller closes when no read uses it any more. None if the
        layer has no slot."""
        slot = self._slot_of.get(layer.id)
        if slot is None:
            return None
        replaced = self.slots[slot]
        # Aliases share the files: all of the slots go together.
        self.slots = [layer if other is replaced else other for other in self.slots]
        return replaced

    @property
    def full(self) -> bool:
        """True when another layer may find no slot."""
        return len(self.slots) >= _MAX_SLOTS - _SPARE_SLOTS

    def uniform(self, slot: int) -> SlotLeaf:
        """Return the shared leaf with all blocks in one slot."""
        leaf = self._uniform.get(slot)
        if leaf is None:
            leaf = self._uniform[slot] = array("H", (slot,)) * LEAF_BLOCKS
        return leaf

    def forget_map(self, map_id: MapId) -> None:
        """Remove a map from the chain. It was folded into its child and has no leaves any more."""
        self.chain = tuple(member for member in self.chain if member != map_id)

    def outdate_loads(self) -> None:
        """Invalidate what threads are reading from the index now: it may name a layer that is about
        to be removed."""
        self._era += 1

    def knows(self, layer_id: LayerId) -> bool:
        """Return whether the layer has a slot."""
        return layer_id in self._slot_of

    def alias(self, source: LayerId, target: Layer) -> Layer | None:
        """Read `target` (or the layer of that id that is open already, closing this one)
        wherever `source` is remembered. Returns the source's files, to be closed when no read
        uses them any more."""
        self._era += 1
        slot = self._slot_of.pop(source, None)
        known = self._slot_of.get(target.id)
        if slot is None:
            target.close()
            return None
        if known is not None:
            target.close()
            opened = self.slots[known]
            assert opened is not None
            target = opened
        else:
            self._slot_of[target.id] = slot
        # Earlier aliases share the files: all of the slots go together.
        old = self.slots[slot]
        self.slots = [target if layer is old else layer for layer in self.slots]
        return old

    def forget_layer(self, layer_id: LayerId) -> None:
        """Close a layer that no map reaches any more. No read may be under way."""
        slot = self._slot_of.pop(layer_id, None)
        if slot is not None:
            gone = self.slots[slot]
            assert gone is not None
            self.slots = [None if layer is gone else layer for layer in self.slots]
            gone.close()

    # -- damage ------------------------------------------------------------------------------

    def mark_damaged(self, layer_id: LayerId, block: int) -> None:
        """Mark a block of a frozen layer as damaged. Reading it fails then, wherever it is
        shown."""
        self._era += 1  # loads under way do not know
        number, at = block >> LEAF_SHIFT, block & LEAF_MASK
        slot, leaf = self._slot_of.get(layer_id), self.leaves.get(number)
        # An alias of the layer has another slot, and the same files.
        if slot is None or leaf is None or self.slots[leaf[at]] is not self.slots[slot]:
            return
        if self._is_shared(leaf):
            self._private += 1
            leaf = self.leaves[number] = leaf[:]
        leaf[at] = DAMAGED_SLOT

    def clear_damaged(self, block: int) -> None:
        """Drop the leaf of a block that is in order again in some layer, so that it is read from
        the index again. A leaf with changes that the index does not have stays: then reading the
        block fails for as long as the device is open."""
        self._era += 1
        number = block >> LEAF_SHIFT
        if number not in self.dirty and (leaf := self.leaves.pop(number, None)) is not None:
            self._private -= not self._is_shared(leaf)
            self._whole.discard(number // GROUP_LEAVES)

    def close(self) -> None:
        """Close all layers. (Aliases close theirs more than once; a layer does not mind.)"""
        for layer in self.slots:
            if layer is not None:
                layer.close()
        self.slots.clear()
        self.leaves.clear()
        self._whole.clear()

    # -- changing ----------------------------------------------------------------------------

    def assign(self, first: int, end: int, slot: int, sequence: int) -> None:
        """Assign blocks first..end-1 to `slot`. Their leaves are loaded."""
        while first < end:
            number = first >> LEAF_SHIFT
            stop = min(end, (number + 1) << LEAF_SHIFT)
            base = number << LEAF_SHIFT
            if stop - first == LEAF_BLOCKS:
                self.replace(number, self.uniform(slot), sequence)
            else:
                leaf = self._at(number)[:]
                leaf[first - base : stop - base] = self.uniform(slot)[: stop - first]
                self.replace(number, leaf, sequence)
            first = stop

    def assign_one(self, block: int, slot: int, sequence: int) -> None:
        """Assign one block to `slot`, as `assign` does. This is the short way for random writes."""
        number = block >> LEAF_SHIFT
        leaf = self.leaves.get(number) or self._at(number)
        if self._uniform.get(leaf[0]) is leaf:
            self._private += 1
            leaf = self.leaves[number] = leaf[:]
        leaf[block & LEAF_MASK] = slot
        self.dirty[number] = sequence

    def replace(self, number: int, leaf: SlotLeaf, sequence: int) -> None:
        """Put a changed leaf in place."""
        old = self.leaves.get(number)
        if old is not None and not self._is_shared(old):
            self._private -= 1
        if old is None:
            self._groups[number // GROUP_LEAVES] = None
        if not self._is_shared(leaf):
            self._private += 1
        self.leaves[number] = leaf
        self.dirty[number] = sequence

    def mark_clean(self, applied: int) -> None:
        """Mark leaves as clean. The index now has all changes up to sequence `applied`."""
        later = {number: last for number, last in self.dirty.items() if last > applied}
        # The same dictionary: `JournalRoom` looks at it, too.
        self.dirty.clear()
        self.dirty.update(later)
        self._evict_above = CACHE_BYTES
        self._evict()

    def _is_shared(self, leaf: SlotLeaf) -> bool:
        return self._uniform.get(leaf[0]) is leaf

    # -- loading -----------------------------------------------------------------------------

    def find(self, number: int) -> SlotLeaf | None:
        """Return a leaf, to be read only. None if it must be loaded from the index."""
        leaf = self.leaves.get(number)
        if leaf is None and number // GROUP_LEAVES in self._whole:
            return self.uniform(HOLE_SLOT)
        return leaf

    def _at(self, number: int) -> SlotLeaf:
        """A leaf that is loaded."""
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

    async def load(self, first: int, end: int) -> None:
        """Load the leaves of blocks first..end-1 into memory. They stay there until the next
        step."""
        if self.missing(first, end) is None:
            return
        numbers = range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1)
        await self.load_leaves(set(numbers))

    async def load_leaves(self, numbers: set[int]) -> None:
        """Load some leaves into memory, as `load` does."""
        groups = {number // GROUP_LEAVES for number in numbers}
        # What one operation needs at once must not be evicted while it loads the rest, or two
        # large operations could evict each other's leaves for ever.
        for group in groups:
            self._pins[group] = self._pins.get(group, 0) + 1
        try:
            while absent := [number for number in numbers if self.find(number) is None]:
                await self._load_group(min(absent) // GROUP_LEAVES)
        finally:
            for group in groups:
                self._pins[group] -= 1
                if not self._pins[group]:
                    del self._pins[group]

    async def _load_group(self, group: int) -> None:
        if (running := self._loading.get(group)) is not None:
            await running
            return
        done = self._loading[group] = Signal()
        try:
            # The chain as it is now: were it shortened (a map folded into its child) after the
            # thread's transaction began, leaves still in the folded map would be missed.
            chain, known = self.chain, frozenset(self._slot_of)
            era = self._era
            try:
                loaded = await blocking(self._read, group, chain, known)
            except DamagedError:
                if era == self._era:
                    raise
                return  # the layer was merged into another one: the caller asks again
            if era != self._era:
                for layer in loaded.layers.values():
                    layer.close()
                return
            for layer in loaded.layers.values():
                if layer.id in self._slot_of:
                    layer.close()
                else:
                    self.add_layer(layer)
            # What was not in memory has not changed since it was read: the group is pinned, so
            # no leaf of it was changed, stored and evicted meanwhile.
            self._install(group, loaded)
            self.files.make_room()
        finally:
            del self._loading[group]
            done.fire()

    def _read(self, group: int, chain: tuple[MapId, ...], known: frozenset[LayerId]) -> _Loaded:
        """In a thread: the group's leaves, and the layers met in them for the first time."""
        last_error: str | None = None
        while True:
            try:
                return self._read_once(group, chain, known)
            except DamagedError as error:
                # Another process may have merged the layer into another one since the transaction
                # began. The next one does not name it then; what is really damaged stays so.
                if str(error) == last_error:
                    raise
                last_error = str(error)

    def _read_once(
        self, group: int, chain: tuple[MapId, ...], known: frozenset[LayerId]
    ) -> _Loaded:
        first, end = group * GROUP_LEAVES, (group + 1) * GROUP_LEAVES
        layers: dict[LayerId, FrozenLayer] = {}
        with self.index.reading() as txn:
            leaves = {
                number: Leaf.decode(payload)
                for number, payload in stored_leaves(txn, chain, first, end).items()
            }
            catalogue = Catalogue(txn)
            try:
                for layer_id in _layers_of(leaves) - known:
                    size = catalogue.layer(layer_id).size_bytes
                    layers[layer_id] = self.frozen_layer(layer_id, size)
                    layers[layer_id].prepare()
                damaged = _damaged_in(txn, leaves)
            except BaseException:
                for layer in layers.values():
                    layer.close()
                raise
        return _Loaded(first, end, leaves, layers, damaged)

    def _install(self, group: int, loaded: _Loaded) -> None:
        self._evict()
        for number, leaf in loaded.leaves.items():
            if number in self.leaves:
                continue
            slots = [self._slot_of[LayerId(layer)] for layer in leaf.palette]
            damaged = loaded.damaged.get(number)
            if len(slots) == 1 and damaged is None:
                self.leaves[number] = self.uniform(slots[0])
            else:
                self.leaves[number] = array("H", [slots[code] for code in leaf.index])
                self._private += 1
                for block in damaged or ():
                    self.leaves[number][block] = DAMAGED_SLOT
        self._groups[group] = None
        self._whole.add(group)

    def _evict(self) -> None:
        """Drop clean groups, oldest first, until the cache is within its budget."""
        if self._weight() <= self._evict_above:
            return
        at_once = CACHE_BYTES // _EVICTED_SHARE
        for group in list(self._groups):
            if self._weight() <= CACHE_BYTES - at_once:
                break
            if group not in self._pins:
                self._drop(group)
        # When all that is left is dirty, looking for more would find nothing each time.
        self._evict_above = max(CACHE_BYTES, self._weight() + at_once)

    def _drop(self, group: int) -> None:
        """Forget what is clean of a group; one that has something dirty becomes the newest."""
        del self._groups[group]
        self._whole.discard(group)
        for number in range(group * GROUP_LEAVES, (group + 1) * GROUP_LEAVES):
            if number in self.dirty:
                self._groups[group] = None
            elif (leaf := self.leaves.pop(number, None)) is not None:
                self._private -= not self._is_shared(leaf)

    def _weight(self) -> int:
        """An estimate of the leaves' memory in bytes."""
        private = self._private * (_PRIVATE_LEAF_BYTES - _SHARED_LEAF_BYTES)
        groups = len(self._groups) * _GROUP_BYTES
        return len(self.leaves) * _SHARED_LEAF_BYTES + private + groups

    # -- looking -----------------------------------------------------------------------------

    def runs(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """Return blocks first..end-1 as runs (first, end, slot). Their leaves are loaded.
        Neighbouring runs have different slots."""
        found: list[tuple[int, int, int]] = []
        while first < end:
            number = first >> LEAF_SHIFT
            base = number << LEAF_SHIFT
            stop = min(end, base + LEAF_BLOCKS)
            leaf = self._at(number)
            if self._is_shared(leaf):
                pieces = [(first - base, stop - base, leaf[0])]
            else:
                pieces = runs_of(leaf, first - base, stop - base)
            for start, until, slot in pieces:
                if found and found[-1][2] == slot:
                    found[-1] = (found[-1][0], base + until, slot)
                else:
                    found.append((base + start, base + until, slot))
            first = stop
        return found

    def holds_only(self, first: int, end: int, slot: int) -> bool:
        """Return whether blocks first..end-1 are all in `slot`. Their leaves are loaded."""
        while first < end:
            number = first >> LEAF_SHIFT
            base = number << LEAF_SHIFT
            stop = min(end, base + LEAF_BLOCKS)
            leaf, wanted = self._at(number), self.uniform(slot)
            if leaf is not wanted and leaf[first - base : stop - base] != wanted[: stop - first]:
                return False
            first = stop
        return True

    async def present(self, first: int, end: int) -> list[int]:
        """Return the numbers of the leaves of blocks first..end-1 that may hold something, in
        order. All others are holes. Absent leaves are not visited."""
        chain = self.chain
        # Taken before, too: a leaf may be stored after the thread's transaction began, and
        # evicted before it returns.
        before = self._filled(first, end)
        stored = await blocking(self._present, chain, first, end)
        stored |= before | self._filled(first, end)
        hole = self.uniform(HOLE_SLOT)
        return sorted(number for number in stored if self.leaves.get(number) is not hole)

    def _filled(self, first: int, end: int) -> set[int]:
        """Leaves within first..end-1 that are in memory and not all holes."""
        hole = self.uniform(HOLE_SLOT)
        if end - first < len(self.leaves):
            found = range(first, end)
            return {n for n in found if (leaf := self.leaves.get(n)) and leaf is not hole}
        return {n for n, leaf in self.leaves.items() if first <= n < end and leaf is not hole}

    def _present(self, chain: tuple[MapId, ...], first: int, end: int) -> set[int]:
        with self.index.reading() as txn:
            return present_leaves(txn, chain, first, end)


def _damaged_in(txn: Transaction, leaves: dict[int, Leaf]) -> dict[int, list[int]]:
    if not txn.count(Table.DAMAGED):
        return {}
    found: dict[int, list[int]] = {}
    for number, leaf in leaves.items():
        base = number << LEAF_SHIFT
        layers = leaf.layers()
        for layer in set(leaf.palette) - {HOLE}:
            for block in checksums.damaged_blocks(txn, LayerId(layer), base, base + LEAF_BLOCKS):
                if layers[block - base] == layer:
                    found.setdefault(number, []).append(block - base)
    return found


def _layers_of(leaves: dict[int, Leaf]) -> set[LayerId]:
    return {LayerId(layer) for leaf in leaves.values() for layer in leaf.palette}
