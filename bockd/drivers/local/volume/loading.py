"""Loading leaves of an open device from the index into its leaf cache.

Leaves are read in a thread, a group at a time, because neighbours cost next to nothing once the
cursor is there; a leaf that the device's map does not have is looked up in its parents. While the
cache has room a load goes on behind the group, until it has met as many leaves as a few groups may
have. Where little is stored that is far, and a new volume is known after a few loads.

Invariants:
* What is in memory is newer than what the index has: a load never replaces it.
* A load is void, and made again, if the meaning of the index's leaves has changed since it began:
  a layer was merged into another one, or a block was found damaged (`LayerSlots.era`).
* What one operation needs at once is not evicted while it loads the rest.
* What was read beyond what was asked for counts only if no group was evicted meanwhile, and fails
  no operation: it leads to no layer that is not open yet, and ends where the index is damaged.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import cells, checksums
from bockd.drivers.local.format.blockmap import (
    first_leaves,
    lose_leaves,
    present_leaves,
    stored_leaves,
)
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.checksums import DAMAGED
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import HOLE, LEAF_BLOCKS, LEAF_BYTES, LEAF_SHIFT, Leaf
from bockd.drivers.local.volume.leafcache import GROUP_LEAVES, LeafCache
from bockd.drivers.local.volume.slots import LayerSlots
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Signal, blocking

MORE_LEAVES = 4 * GROUP_LEAVES
"""So many stored leaves a load brings in beside its group. With a few blocks in each they take half
a millisecond, several times as long as to hand the load to a thread."""

REACH_GROUPS = 256
"""It goes no further for them: each group takes some memory, be it empty."""

ONWARD_GROUPS = 1024
"""How far `load_onward` looks: so many empty groups are noted in under 1 ms."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a thread is to read: leaves as seen through a chain of maps."""

    chain: tuple[MapId, ...]
    numbers: range
    """Those of a group."""
    more: range
    """Those of the groups behind it, and at most `most` that are stored."""
    most: int
    known: frozenset[LayerId]
    """Layers that are open."""
    packed: frozenset[LayerId]
    """Those of them whose blocks lie in cells."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a thread brought back from the index."""

    leaves: dict[int, Leaf]
    layers: dict[LayerId, Layer]
    damaged: dict[int, list[int]]
    """Leaf number to those of its blocks that are known to be damaged."""
    cells: dict[int, array[int]]
    """Leaf number to its cells, where some layer is packed (format.cells.cells_of_leaf)."""
    more: _More


class _More(NamedTuple):
    """What was found behind a group: all that the index has of some groups."""

    groups: range
    leaves: dict[int, Leaf]
    damaged: dict[int, list[int]]
    cells: dict[int, array[int]]


class LeafLoader:
    """Brings leaves as seen through a chain of maps into `cache`, and their layers into `layers`.
    For the owner thread, but for `_read`."""

    def __init__(
        self,
        store: StoreAccess,
        chain: tuple[MapId, ...],
        layers: LayerSlots,
        cache: LeafCache,
        size_bytes: int,
    ) -> None:
        self.size_bytes = size_bytes
        """Of the device. Nothing is looked for behind its end."""
        self.chain = chain
        """The device's map, its parent, and so on."""
        self.layers = layers
        self.cache = cache
        self._store = store
        self._loading: dict[int, Signal] = {}

    def forget_map(self, map_id: MapId) -> None:
        """Remove a map from the chain. It was folded into its child and has no leaves any more."""
        self.chain = tuple(member for member in self.chain if member != map_id)

    async def load(self, first: int, end: int) -> None:
        """Load the leaves of blocks first..end-1 into memory. They stay there until the next
        step. Raises DamagedError."""
        if self.cache.missing(first, end) is None:
            return
        numbers = range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1)
        await self.load_leaves(set(numbers))

    async def load_onward(self, number: int) -> None:
        """Load a leaf, as `load` does, and learn up to which leaf behind its group there is
        nothing."""
        await self.load_leaves({number}, onward=True)

    async def load_leaves(self, numbers: set[int], *, onward: bool = False) -> None:
        """Load some leaves into memory, as `load` does; with `onward`, also as `load_onward`."""
        cache = self.cache
        groups = {cache.group_of(number) for number in numbers}
        # Otherwise two large operations could evict each other's leaves for ever.
        cache.pin(groups)
        try:
            while absent := [number for number in numbers if cache.find(number) is None]:
                await self._load_group(cache.group_of(min(absent)), onward=onward)
        finally:
            cache.unpin(groups)

    async def _load_group(self, group: int, *, onward: bool) -> None:
        if (running := self._loading.get(group)) is not None:
            await running
            return
        done = self._loading[group] = Signal()
        layers, cache = self.layers, self.cache
        try:
            # The chain as it is now: were it shortened (a map folded into its child) after the
            # thread's transaction began, leaves still in the folded map would be missed.
            wanted = self._wanted(group, onward=onward)
            era, drops = layers.era, cache.drops
            try:
                loaded = await blocking(self._read, wanted)
            except DamagedError:
                if era == layers.era:
                    raise
                return  # the layer was merged into another one: the caller asks again
            if era != layers.era:
                for layer in loaded.layers.values():
                    layer.close()
                return
            for layer in loaded.layers.values():
                if layers.knows(layer.id):
                    layer.close()
                else:
                    layers.add(layer)
            # What was not in memory has not changed since it was read: the group is pinned, so
            # no leaf of it was changed, stored and evicted meanwhile.
            cache.install(group, loaded.leaves, loaded.damaged, loaded.cells)
            # The groups behind it are not: nor was one of them, if none was at all.
            if drops == cache.drops:
                cache.install_more(*loaded.more)
            self._store.files.make_room()
        finally:
            del self._loading[group]
            done.fire()

    def _wanted(self, group: int, *, onward: bool) -> _Wanted:
        cache = self.cache
        most = MORE_LEAVES if cache.has_room else 0
        reach = ONWARD_GROUPS if onward else REACH_GROUPS if most else 0
        last = cache.group_of((self.size_bytes - 1) // LEAF_BYTES)
        end = cache.next_whole(group + 1, min(group + reach, last) + 1)
        more = range(cache.leaves_of(group + 1).start, cache.leaves_of(end).start)
        known, packed = self.layers.known(), self.layers.packed()
        return _Wanted(self.chain, cache.leaves_of(group), more, most, known, packed)

    def _read(self, wanted: _Wanted) -> _Loaded:
        """In a thread: a group's leaves, and the layers met in them for the first time."""
        last_error: str | None = None
        while True:
            try:
                return self._read_once(wanted)
            except DamagedError as error:
                # Another process may have merged the layer into another one since the transaction
                # began. The next one does not name it then; what is really damaged stays so.
                if str(error) == last_error:
                    raise
                last_error = str(error)

    def _read_once(self, wanted: _Wanted) -> _Loaded:
        layers: dict[LayerId, Layer] = {}
        numbers = wanted.numbers
        with self._store.index.reading() as txn:
            stored = stored_leaves(txn, wanted.chain, numbers.start, numbers.stop)
            leaves = {number: Leaf.decode(payload) for number, payload in stored.items()}
            catalogue = Catalogue(txn)
            try:
                for layer_id in _layers_of(leaves) - wanted.known:
                    layers[layer_id] = layer = self._store.frozen_layer(catalogue.layer(layer_id))
                    layer.prepare()
                fresh = {layer_id for layer_id, layer in layers.items() if layer.packed}
                packed = wanted.packed | fresh
                found = _cells_of(txn, leaves, packed)
                damaged = _damaged_in(txn, leaves)
                more = _read_more(txn, wanted, wanted.known | layers.keys(), packed)
            except BaseException:
                for opened in layers.values():
                    opened.close()
                raise
        return _Loaded(leaves, layers, damaged, found, more)

    async def present(self, first: int, end: int) -> list[int]:
        """Return the numbers of the leaves first..end-1 that may hold something, in order. All
        others are holes. Absent leaves are not visited."""
        chain = self.chain
        # Taken before, too: a leaf may be stored after the thread's transaction began, and
        # evicted before it returns.
        before = self.cache.filled(first, end)
        stored = await blocking(self._present, chain, first, end)
        stored |= before | self.cache.filled(first, end)
        return sorted(number for number in stored if not self.cache.is_hole(number))

    async def lose(self, first: int, end: int) -> None:
        """Store that leaves which cannot be read are holes, if all of their blocks are among
        first..end-1: these are about to become holes.

        It is done at once and not by the checkpoint of that. When it comes, or after a crash, other
        neighbours of a lost leaf may be gone, and nobody could tell any more which leaf it was.
        Raises DamagedError, with nothing changed, where something else may have been lost.
        """
        touched = range(first >> LEAF_SHIFT, -(-end // LEAF_BLOCKS))
        whole = range(-(-first // LEAF_BLOCKS), end // LEAF_BLOCKS)
        if end * BLOCK_SIZE >= self.size_bytes:  # the last leaf may be short
            whole = range(whole.start, touched.stop)
        await blocking(self._store.index.update, partial(_lose, self.chain[0], whole, touched))

    def _present(self, chain: tuple[MapId, ...], first: int, end: int) -> set[int]:
        with self._store.index.reading() as txn:
            return present_leaves(txn, chain, first, end)


def _lose(map_id: MapId, whole: range, touched: range, txn: Transaction) -> None:
    lose_leaves(txn, Catalogue(txn).chain(map_id), whole, touched)


def _read_more(
    txn: Transaction, wanted: _Wanted, known: frozenset[LayerId], packed: frozenset[LayerId]
) -> _More:
    """Return what is behind a group, up to the first leaf that names a layer which is not `known`.
    Some of these are `packed`."""
    first, end, size = wanted.more.start, wanted.more.stop, len(wanted.numbers)
    leaves: dict[int, Leaf] = {}
    if first == end:
        return _More(range(0), {}, {}, {})
    try:
        stored, end = first_leaves(txn, wanted.chain, first, end, size, wanted.most)
        for number in sorted(stored):
            leaf = Leaf.decode(stored[number])
            if not known.issuperset(leaf.palette):
                end = number // size * size
                break
            leaves[number] = leaf
        leaves = {number: leaf for number, leaf in leaves.items() if number < end}
        damaged, found = _damaged_in(txn, leaves), _cells_of(txn, leaves, packed)
        return _More(range(first // size, end // size), leaves, damaged, found)
    except DamagedError:  # whoever needs what was lost meets the error
        return _More(range(0), {}, {}, {})


def _cells_of(
    txn: Transaction, leaves: dict[int, Leaf], packed: frozenset[LayerId]
) -> dict[int, array[int]]:
    """The cells of leaves that lead to packed layers. Raises DamagedError."""
    return {
        number: cells.cells_of_leaf(txn, number, leaf, packed)
        for number, leaf in leaves.items()
        if not packed.isdisjoint(leaf.palette)
    }


def _damaged_in(txn: Transaction, leaves: dict[int, Leaf]) -> dict[int, list[int]]:
    if not txn.count(DAMAGED):
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
