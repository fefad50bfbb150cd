"""Loading leaves of an open device from the index into its leaf cache.

Leaves are read in a thread, a group at a time, because neighbours cost next to nothing once the
cursor is there; a leaf that the device's map does not have is looked up in its parents.

Invariants:
* What is in memory is newer than what the index has: a load never replaces it.
* A load is void, and made again, if the meaning of the index's leaves has changed since it began:
  a layer was merged into another one, or a block was found damaged (`LayerSlots.era`).
* What one operation needs at once is not evicted while it loads the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.blockmap import next_leaf, present_leaves, stored_leaves
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.checksums import DAMAGED
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import HOLE, LEAF_BLOCKS, LEAF_BYTES, LEAF_SHIFT, Leaf
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.slots import LayerSlots
from bockd.errors import DamagedError
from bockd.model import GIB, LayerId, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Signal, blocking

ONWARD_LEAVES = 64 * GIB // LEAF_BYTES
"""How far `load_onward` looks: so many empty groups are noted in under 1 ms."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a thread brought back from the index."""

    leaves: dict[int, Leaf]
    layers: dict[LayerId, Layer]
    damaged: dict[int, list[int]]
    """Leaf number to those of its blocks that are known to be damaged."""
    empty: range
    """Groups behind it that hold nothing."""


class LeafLoader:
    """Brings leaves as seen through a chain of maps into `cache`, and their layers into `layers`.
    For the owner thread, but for `_read`."""

    def __init__(
        self, store: StoreAccess, chain: tuple[MapId, ...], layers: LayerSlots, cache: LeafCache
    ) -> None:
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

    async def load_onward(self, number: int, end: int) -> None:
        """Load a leaf, as `load` does, and learn up to which leaf behind its group there is
        nothing, looking no further than leaf `end`."""
        await self.load_leaves({number}, end)

    async def load_leaves(self, numbers: set[int], onward: int = 0) -> None:
        """Load some leaves into memory, as `load` does; with `onward`, also as `load_onward`."""
        cache = self.cache
        groups = {cache.group_of(number) for number in numbers}
        # Otherwise two large operations could evict each other's leaves for ever.
        cache.pin(groups)
        try:
            while absent := [number for number in numbers if cache.find(number) is None]:
                await self._load_group(cache.group_of(min(absent)), onward)
        finally:
            cache.unpin(groups)

    async def _load_group(self, group: int, onward: int) -> None:
        if (running := self._loading.get(group)) is not None:
            await running
            return
        done = self._loading[group] = Signal()
        layers, cache = self.layers, self.cache
        try:
            # The chain as it is now: were it shortened (a map folded into its child) after the
            # thread's transaction began, leaves still in the folded map would be missed.
            chain, known = self.chain, layers.known()
            era, drops = layers.era, cache.drops
            numbers = cache.leaves_of(group)
            try:
                loaded = await blocking(self._read, numbers, onward, chain, known)
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
            cache.install(group, loaded.leaves, loaded.damaged)
            # The groups behind it are not: nor was one of them, if none was at all.
            if drops == cache.drops:
                cache.install_empty(loaded.empty)
            self._store.files.make_room()
        finally:
            del self._loading[group]
            done.fire()

    def _read(
        self, numbers: range, onward: int, chain: tuple[MapId, ...], known: frozenset[LayerId]
    ) -> _Loaded:
        """In a thread: a group's leaves, and the layers met in them for the first time."""
        last_error: str | None = None
        while True:
            try:
                return self._read_once(numbers, onward, chain, known)
            except DamagedError as error:
                # Another process may have merged the layer into another one since the transaction
                # began. The next one does not name it then; what is really damaged stays so.
                if str(error) == last_error:
                    raise
                last_error = str(error)

    def _read_once(
        self, numbers: range, onward: int, chain: tuple[MapId, ...], known: frozenset[LayerId]
    ) -> _Loaded:
        layers: dict[LayerId, Layer] = {}
        with self._store.index.reading() as txn:
            stored = stored_leaves(txn, chain, numbers.start, numbers.stop)
            leaves = {number: Leaf.decode(payload) for number, payload in stored.items()}
            catalogue = Catalogue(txn)
            try:
                for layer_id in _layers_of(leaves) - known:
                    layer = self._store.frozen_layer(catalogue.layer(layer_id))
                    layers[layer_id] = layer
                    layer.prepare()
                damaged = _damaged_in(txn, leaves)
            except BaseException:
                for opened in layers.values():
                    opened.close()
                raise
            empty = _empty_behind(txn, chain, numbers, onward)
        return _Loaded(leaves, layers, damaged, empty)

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

    def _present(self, chain: tuple[MapId, ...], first: int, end: int) -> set[int]:
        with self._store.index.reading() as txn:
            return present_leaves(txn, chain, first, end)


def _empty_behind(txn: Transaction, chain: tuple[MapId, ...], numbers: range, onward: int) -> range:
    """Return the groups behind the one of leaves `numbers` that hold nothing, up to the first that
    does or leaf `onward`."""
    first, size = numbers.stop, len(numbers)
    end = -(-min(onward, first + ONWARD_LEAVES) // size) * size
    try:
        end = next_leaf(txn, chain, first, end)
    except DamagedError:  # whoever needs what was lost meets the error
        end = first
    return range(first // size, end // size)


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
