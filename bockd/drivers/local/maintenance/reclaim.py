"""Giving space back after deletions, in the background, from synced maps only.

A dead map without children is dropped, its layers with it: every reference to a layer lies in its
home map or below. A dead map with one child is folded into it, leaf by leaf, in batches; each batch
leaves what every live map shows unchanged, so a crash between two costs nothing. Blocks that
lose their last reference are queued in the same transaction and punched after it. A dead map with
several children waits.

Layers that outlive their snapshots are merged when they are many (maintenance.merging).

Checksums and cells of blocks go when these are queued, those of a forgotten layer before its files
do.

Nothing is punched or unlinked before every read that may have begun with an older map has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from itertools import islice

from bockd.drivers.local.format import cells, checksums, queue
from bockd.drivers.local.format.blockmap import FrozenLayers, own_leaves, queue_orphans
from bockd.drivers.local.format.catalogue import (
    CHILDREN,
    HOMES,
    LAYERS,
    MAPS,
    NO_MAP,
    Catalogue,
    LayerRecord,
)
from bockd.drivers.local.format.forgetting import forget_layer
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import unlink_layer
from bockd.drivers.local.format.leaf import LEAVES, Leaf, leaf_key
from bockd.drivers.local.maintenance.merging import LayerMerger
from bockd.drivers.local.registry import Registry
from bockd.durable import sync_directory
from bockd.errors import BockdError, DamagedError, NoSpaceError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.index.keys import id_key, pair_key
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import blocking

log = logging.getLogger(__name__)

BATCH_LEAVES = 1024
"""Leaves moved or dropped in one transaction: a few milliseconds of the index's only writer."""

BATCH_PUNCHES = 256
"""Queued punches done between two transactions."""

PUNCH_PIECE_BYTES = 16 * 1024 * 1024
"""Given back in one call: bounds how long the file system's locks are held."""


_NO_RESERVE = "the file system is full: what is kept in reserve for that is not complete"


class _Outcome(Enum):
    WAITING = "several maps fall through to it"
    MORE = "a batch was done, there are more"
    GONE = "the map is no more"


class Reclaimer:
    """Background reclaim of one pool. `run` is spawned when something was deleted."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._merger = LayerMerger(registry)
        self._stopping = False
        self.put_off: BockdError | None = None
        """What the last run ended with, when it left something to do."""

    def stop(self) -> None:
        """End after the batch under way; the queue in the index remembers the rest."""
        self._stopping = True

    async def run(self) -> None:
        """Reclaim until nothing is left that can be done now. Concurrent runs queue up."""
        async with self._registry.maintenance_lock:
            try:
                damage = await self._dead_maps()
                await self._punches()
                await self._unlinks()
                await self._merges()
                # What was used up of the reserve is taken back now that there is room.
                whole = await blocking(self._registry.store.ensure_reserve)
                self.put_off = damage if whole else NoSpaceError(_NO_RESERVE)
            except (BockdError, OSError) as error:
                # The queue is in the index: the next run, or the next start, goes on from here.
                log.info("reclaim stopped: %s", error)
                failed = error if isinstance(error, BockdError) else from_os_error(error, "reclaim")
                self.put_off = failed

    async def _merges(self) -> None:
        while not self._stopping:
            await self._punches()
            merge = await self._merger.next()
            if merge is None:
                return
            await self._merger.run(merge)
            await self._unlinks()

    async def _dead_maps(self) -> DamagedError | None:
        """Drop and fold dead maps until none is left that can go. Return why one cannot be read."""
        damage: dict[MapId, DamagedError] = {}
        progress = True
        while progress and not self._stopping:
            progress = False
            with self._registry.store.index.reading() as txn:
                dead = [map_id for map_id in queue.dead_maps(txn) if map_id not in damage]
            await self._checkpoint_children(set(dead))
            for map_id in dead:
                try:
                    outcome = await self._drop_or_fold(map_id)
                except DamagedError as error:  # of no other map
                    log.info("a deleted snapshot or volume stays: %s", error)
                    damage[map_id] = error
                    continue
                if outcome is _Outcome.GONE:
                    progress = True
                    for device in self._registry.devices():
                        device.loader.forget_map(map_id)
            if not progress and not self._stopping:
                self._registry.kept_dead = frozenset({*dead, *damage})
        return next(iter(damage.values()), None)

    async def _checkpoint_children(self, dead: set[MapId]) -> None:
        """Checkpoint the open volumes whose maps descend from a dead map. What they have
        overwritten is then reclaimed together with that map, and not only after some later
        checkpoint."""
        for volume, opened in list(self._registry.volumes.items()):
            if not dead.isdisjoint(opened.volume.loader.chain):
                await self._registry.try_checkpoint(volume)

    async def _drop_or_fold(self, map_id: MapId) -> _Outcome:
        outcome = _Outcome.MORE
        while outcome is _Outcome.MORE and not self._stopping:
            outcome = await blocking(lambda: self._registry.store.index.update(_burial(map_id)))
        return outcome

    async def _drain_reads(self) -> None:
        for device in self._registry.devices():
            await device.drain_reads()

    # -- punching ----------------------------------------------------------------------------

    async def _punches(self) -> None:
        store = self._registry.store
        touched: set[LayerId] = set()
        while True:
            with store.index.reading() as txn:
                batch = queue.punches(txn, BATCH_PUNCHES)
            if not batch or self._stopping:
                break
            await self._drain_reads()
            await blocking(self._punch, batch)
            touched.update(entry.layer for entry in batch)
        for layer in sorted(touched):
            await blocking(self._forget_if_empty, layer)

    def _punch(self, batch: list[queue.PunchEntry]) -> None:
        store = self._registry.store
        records: dict[LayerId, LayerRecord] = {}
        with store.index.reading() as txn:
            for entry in batch:
                payload = txn.get(LAYERS, id_key(entry.layer))
                if payload is not None:
                    records[entry.layer] = Catalogue(txn).layer(entry.layer)
        for layer_id, record in records.items():
            layer = Layer.of(store.layout, record, writable=True)
            try:
                for entry in batch:
                    if entry.layer == layer_id:
                        _punch_run(layer, entry)
            except OSError as error:
                raise from_os_error(error, f"punching layer {layer_id}") from error
            finally:
                layer.close()

        hit(Failpoint.RECLAIM_PUNCHED)

        def done(txn: Transaction) -> None:
            for entry in batch:
                queue.remove_punch(txn, entry)

        store.index.update(done)

    def _forget_if_empty(self, layer_id: LayerId) -> None:
        """Forget a layer that was punched until nothing was left.

        Only frozen layers are punched by reclaim, and no reference to a frozen layer is ever made
        but by copying another one, so a walk that finds none stays true.
        """
        store = self._registry.store
        with store.index.reading() as txn:
            catalogue = Catalogue(txn)
            if txn.get(LAYERS, id_key(layer_id)) is None:
                return
            record = catalogue.layer(layer_id)
            if any(volume.head == layer_id for volume in catalogue.volumes()):
                return
            if any(layer_id in merge for merge in queue.begun_merges(txn)):
                return  # blocks are on their way into it, or out of it
            layer = Layer.of(store.layout, record, writable=False)
            try:
                if not layer.is_empty():
                    return
            finally:
                layer.close()
            if any(_refers(txn, member, layer_id) for member in catalogue.subtree(record.home)):
                return
        store.index.update(lambda txn: forget_layer(txn, layer_id))
        hit(Failpoint.RECLAIM_FORGOT)

    # -- unlinking ---------------------------------------------------------------------------

    def _forget_blocks(self, layer: LayerId) -> bool:
        """Forget a batch of what was known of a layer's blocks; True while there is more."""
        index = self._registry.store.index
        with index.reading() as txn:
            if not (checksums.knows_layer(txn, layer) or cells.ROWS.has_rows(txn, layer)):
                return False

        def forget(txn: Transaction) -> bool:
            more = cells.ROWS.forget_some(txn, layer, BATCH_LEAVES)
            more |= checksums.forget_some(txn, layer, BATCH_LEAVES)
            hit(Failpoint.RECLAIM_UNCHECKED)
            return more

        return index.update(forget)

    async def _unlinks(self) -> None:
        store = self._registry.store
        with store.index.reading() as txn:
            layers = queue.unlinks(txn)
        if not layers:
            return
        for layer in layers:
            while await blocking(self._forget_blocks, layer):
                pass
        await self._drain_reads()
        for device in self._registry.devices():
            for layer in layers:
                device.layers.forget(layer)

        def unlink() -> None:
            for layer in layers:
                try:
                    unlink_layer(store.layout, layer)
                except OSError as error:
                    raise from_os_error(error, f"removing layer {layer}") from error
            try:
                # Nobody would know a file that comes back after the queue has forgotten it.
                sync_directory(store.layout.layers)
            except OSError as error:
                raise from_os_error(error, "removing layers") from error
            hit(Failpoint.RECLAIM_UNLINKED)

            def done(txn: Transaction) -> None:
                for layer in layers:
                    queue.remove_unlink(txn, layer)

            store.index.update(done)

        await blocking(unlink)


def _punch_run(layer: Layer, entry: queue.PunchEntry) -> None:
    start, length = entry.first * BLOCK_SIZE, entry.count * BLOCK_SIZE
    for offset in range(0, length, PUNCH_PIECE_BYTES):
        layer.punch(start + offset, min(PUNCH_PIECE_BYTES, length - offset))


def _refers(txn: Transaction, map_id: MapId, layer_id: LayerId) -> bool:
    return any(
        layer == layer_id
        for _, payload in own_leaves(txn, map_id)
        for _, _, layer in Leaf.decode(payload).runs()
    )


def _burial(map_id: MapId) -> Callable[[Transaction], _Outcome]:
    """Return a transaction that does one batch of dropping or folding a dead map."""

    def step(txn: Transaction) -> _Outcome:
        catalogue = Catalogue(txn)
        children = catalogue.children(map_id)
        if len(children) > 1:
            return _Outcome.WAITING
        if children:
            more = _fold_batch(catalogue, map_id, children[0])
        else:  # not read: damaged ones go, too
            start, stop = leaf_key(map_id, 0), leaf_key(MapId(map_id + 1), 0)
            more = txn.erase(LEAVES, start, stop, BATCH_LEAVES)
        hit(Failpoint.RECLAIM_BURIED)
        if more:
            return _Outcome.MORE
        _remove_map(catalogue, map_id, children[0] if children else None)
        return _Outcome.GONE

    return step


def _fold_batch(catalogue: Catalogue, map_id: MapId, child: MapId) -> bool:
    """Give leaves to the only child, unless it has its own. Return whether there may be more."""
    txn = catalogue.txn
    layers = FrozenLayers.at_home(catalogue, map_id)
    batch = list(islice(own_leaves(txn, map_id), BATCH_LEAVES))
    for number, payload in batch:
        key = leaf_key(child, number)
        own = txn.get(LEAVES, key)
        if own is None:
            txn.put(LEAVES, key, payload)
        else:
            queue_orphans(txn, number, Leaf.decode(payload), Leaf.decode(own), layers)
        txn.delete(LEAVES, leaf_key(map_id, number))
    return len(batch) == BATCH_LEAVES


def _remove_map(catalogue: Catalogue, map_id: MapId, child: MapId | None) -> None:
    """Remove a map without leaves. Its layers and its parent go to its child. Without a child the
    layers are forgotten, because nothing else refers to them."""
    txn = catalogue.txn
    record = catalogue.map(map_id)
    for layer_id in catalogue.layers_of(map_id):
        if child is None:
            forget_layer(txn, layer_id)
        else:
            txn.delete(HOMES, pair_key(map_id, layer_id))
            catalogue.put_layer(replace(catalogue.layer(layer_id), home=child))
            txn.put(HOMES, pair_key(child, layer_id), b"")
    if child is not None:
        txn.delete(CHILDREN, pair_key(map_id, child))
        catalogue.put_map(replace(catalogue.map(child), parent=record.parent))
    if record.parent != NO_MAP:
        txn.delete(CHILDREN, pair_key(record.parent, map_id))
        if child is not None:
            txn.put(CHILDREN, pair_key(record.parent, child), b"")
    txn.delete(MAPS, id_key(map_id))
    queue.remove_dead_map(txn, map_id)
