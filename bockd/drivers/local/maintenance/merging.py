"""Keeping the number of layers small: the smallest dead layer of a map moves into another one.

Snapshots that come and go leave a layer each: what a deleted one held and others still show. All
of them end up at home in the same map. Merging copies the live blocks of the smallest into its
neighbour at their own offsets, syncs them, points every leaf there, and only then forgets it. So
the neighbour is raw, and a home without a raw layer gets one. The smallest may be packed.

Checksums, and marks of damage, go with the leaf of the home that leads to the copies; those of the
source stay until it is removed.

Why the place is free: a home's own view of a block never changes once it is frozen, descendants
refer to what it shows, and a live home has no descendants. So if the home shows a block in one of
its layers, nobody refers to that block in another of them. Queued punches are done before, so none
of them hits what was moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from bockd.drivers.local.format import queue
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue, LayerRecord
from bockd.drivers.local.format.forgetting import forget_layer
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, Leaf
from bockd.drivers.local.maintenance.copying import Window, copy_blocks
from bockd.drivers.local.maintenance.leading import Merge, lead_to_copies, read_again
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.volume.reading import Reader
from bockd.errors import from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.index.keys import id_key
from bockd.model import LayerId, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import blocking

MAX_DEAD_LAYERS = 8
"""Of one home, besides a live head. Each costs a descriptor in every device that reads it, and a
file; merging costs the smallest one's bytes once."""

BATCH_LEAVES = 512
"""Leaves looked at in one transaction."""


@dataclass(frozen=True, slots=True)
class _Crowded:
    """A home with too many layers, and none that they could move into."""

    home: MapId
    size_bytes: int
    """Of its largest layer."""


class LayerMerger:
    """Plans and carries out merges of one pool; for the reclaimer, one at a time."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._crowded: _Crowded | None = None
        """Found by the last `plan`, if it found no merge."""

    async def next(self) -> Merge | None:
        """Return the next merge, as `plan` does. If it lacks a layer to move into, make that."""
        merge = await blocking(self.plan)
        crowded = self._crowded
        if merge is not None or crowded is None:
            return merge

        await self.make_layer(crowded.home, crowded.size_bytes)
        return await blocking(self.plan)

    async def make_layer(self, home: MapId, size_bytes: int) -> None:
        """Give a home an empty raw layer to move into. No other layer can be made until it is
        named, and copying takes long: so this is a transaction of its own. Raises BockdError."""

        def add(txn: Transaction, layer: LayerId) -> None:
            catalogue = Catalogue(txn)
            catalogue.add_layer(layer, size_bytes, catalogue.map(home).id)

        await self._registry.layer_maker.make_with(size_bytes, add)

    def plan(self) -> Merge | None:
        """Choose the next merge: one that was interrupted, or one that is due. None if there is
        none. Blocks."""
        self._crowded = None
        abandoned: LayerId | None = None
        with self._store.index.reading() as txn:
            catalogue = Catalogue(txn)
            # Looked up in the same transaction: what is frozen by now and yet queued would hit
            # what is moved there. Nothing that the home shows in `source` can be queued later.
            waiting = queue.punched_layers(txn)
            for begun, into in queue.begun_merges(txn):
                if any(txn.get(LAYERS, id_key(layer)) is None for layer in (begun, into)):
                    abandoned = begun  # older code forgot a layer that was empty at the moment
                    break
                source, target = catalogue.layer(begun), catalogue.layer(into)
                return None if into in waiting else Merge(source.home, source, target)
            heads = {volume.head for volume in catalogue.volumes()}
            homes: dict[MapId, list[LayerRecord]] = {}
            for layer in catalogue.layers():
                if layer.id not in heads:
                    homes.setdefault(layer.home, []).append(layer)
            folded = {home for home in homes if is_folded(catalogue, home)}
        if abandoned is not None:
            self._store.index.update(lambda txn: queue.end_merge(txn, abandoned))
        for home, layers in homes.items():
            if len(layers) <= MAX_DEAD_LAYERS or home in folded:
                continue
            layers.sort(key=self._allocated)
            for source in layers:
                for target in layers:
                    if (
                        target is not source
                        and not target.packed
                        and target.size_bytes >= source.size_bytes
                        and target.id not in waiting
                    ):
                        return Merge(home, source, target)
            largest = max(layer.size_bytes for layer in layers)
            if not any(x.size_bytes == largest for x in layers if not x.packed):
                self._crowded = _Crowded(home, largest)
        return None

    def _allocated(self, layer: LayerRecord) -> int:
        opened = Layer.of(self._store.layout, layer, writable=False)
        try:
            return opened.allocated_bytes()
        finally:
            opened.close()

    async def run(self, merge: Merge) -> None:
        """Carry out a merge. A crash at any point leaves both layers valid. The next `plan` then
        returns the same merge, to be continued."""
        for opened in list(self._registry.volumes.values()):
            # A former head may still be punched where the other layer's blocks are to go.
            await opened.volume.heads.finish_punching()
        await blocking(self._copy, merge)
        await blocking(self._begin, merge)
        await blocking(self._redirect, merge)
        await self.end(merge)

    async def end(self, merge: Merge) -> None:
        """Let who has the source open read the target, and forget the source: no leaf leads there
        any more. Raises BockdError; a crash leaves both layers valid."""
        for device in self._registry.devices():
            await self._alias(device, merge)
        hit(Failpoint.MERGE_ALIASED)
        await blocking(self._forget, merge)
        self._registry.on_frozen()

    def _copy(self, merge: Merge) -> None:
        layout = self._store.layout
        source = Layer.of(layout, merge.source, writable=False)
        try:
            target = Layer.of(layout, merge.target, writable=True)
        except BaseException:
            source.close()
            raise
        try:
            with self._store.index.reading() as txn:
                leaves = own_leaves(txn, merge.home)
                if source.packed:
                    _copy_cells(txn, source, target, leaves)
                    leaves = iter(())
                for number, payload in leaves:
                    for first, end, layer in Leaf.decode(payload).runs():
                        if layer == source.id:
                            base = number * LEAF_BLOCKS
                            copy_blocks(source, target, base + first, base + end)
            hit(Failpoint.MERGE_COPIED)
            target.sync()
            hit(Failpoint.MERGE_SYNCED)
        except OSError as error:
            raise from_os_error(error, f"moving layer {source.id} to {target.id}") from error
        finally:
            source.close()
            target.close()

    def _begin(self, merge: Merge) -> None:
        """From now on the home may show copies, and a descendant what was copied."""
        source, target = merge.source.id, merge.target.id
        self._store.index.update(lambda txn: queue.begin_merge(txn, source, target))
        hit(Failpoint.MERGE_BEGUN)

    def _redirect(self, merge: Merge) -> None:
        """Point all leaves of the home and its descendants at the target, in batches."""
        # A map that is made meanwhile copies leaves of one that this has not come to yet: only a
        # whole pass that finds nothing to change says that nothing refers to the source.
        while self._redirect_pass(merge):
            pass

    def _redirect_pass(self, merge: Merge) -> bool:
        with self._store.index.reading() as txn:
            members = list(Catalogue(txn).subtree(merge.home))
        changed = False
        for member in members:
            position: int | None = 0
            while position is not None:
                position, some = self._store.index.update(
                    partial(_redirect_batch, member=member, start=position, merge=merge)
                )
                changed |= some
        return changed

    def _forget(self, merge: Merge) -> None:
        def change(txn: Transaction) -> None:
            read_again(txn, merge)
            forget_layer(txn, merge.source.id)

        self._store.index.update(change)
        hit(Failpoint.MERGE_DONE)

    async def _alias(self, device: Reader, merge: Merge) -> None:
        """Let a device read the target wherever it remembers the source."""
        device.layers.outdate_loads()
        if not device.layers.knows(merge.source.id):
            return
        target = self._store.frozen_layer(merge.target)
        await blocking(target.prepare)
        if device not in self._registry.devices():  # closed meanwhile
            target.close()
            return
        old = device.layers.alias(merge.source.id, target)
        await device.drain_reads()
        if old is not None:
            old.close()


def _copy_cells(
    txn: Transaction, source: Layer, target: Layer, leaves: Iterator[tuple[int, bytes]]
) -> None:
    """Copy what leaves show of a packed layer, window by window. Raises DamagedError, OSError."""
    window = Window(source.id)
    for number, payload in leaves:
        leaf = Leaf.decode(payload)
        if not window.take(txn, number, leaf):
            window.copy(source, target)
            window = Window.of(source.id, txn, number, leaf)
    window.copy(source, target)


def _redirect_batch(
    txn: Transaction, member: MapId, start: int, merge: Merge
) -> tuple[int | None, bool]:
    """Redirect up to BATCH_LEAVES leaves from number `start` on; where to go on, or None."""
    batch = list(islice(own_leaves(txn, member, start), BATCH_LEAVES))
    changed = False
    for number, payload in batch:
        leaf = Leaf.decode(payload)
        if merge.source.id in leaf.palette:
            lead_to_copies(txn, member, number, leaf, merge)
            changed = True
    hit(Failpoint.MERGE_REDIRECTED)
    return (batch[-1][0] + 1 if len(batch) == BATCH_LEAVES else None), changed


def is_folded(catalogue: Catalogue, home: MapId) -> bool:
    """Return whether a map is being dropped or folded, or is to be. Its only child may have some of
    its leaves already: then it does not show any more all that anybody shows of its layers."""
    return catalogue.map(home).dead and len(catalogue.children(home)) <= 1
