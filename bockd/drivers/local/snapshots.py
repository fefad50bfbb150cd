"""A pool's snapshots: freezing a volume under a new name, and deleting one.

What bockd.pool.pool says about errors and about `in_transaction` holds here.
"""

from __future__ import annotations

from dataclasses import replace

from bockd.drivers.local.format.catalogue import Catalogue, LocalSnapshotRecord, LocalVolumeRecord
from bockd.drivers.local.format.forgetting import forget_node
from bockd.drivers.local.format.layout import unlink_leftover
from bockd.drivers.local.format.locks import touch_if_possible
from bockd.drivers.local.newheads import HeadChange, change_head
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.opening import (
    close_snapshot,
    lock_snapshot,
    lock_volume,
    recover_if_needed,
)
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import InUseError
from bockd.failpoints import Failpoint, hit
from bockd.model import LayerId, NodeKind, SnapshotId, VolumeId
from bockd.pool.choices import name_of
from bockd.pool.index import Transaction
from bockd.pool.pool import Naming, WithSnapshot, nothing_more
from bockd.runtime.steps import Steps, blocking
from bockd.validation import check_name

_Freeze = HeadChange[LocalSnapshotRecord]


class SnapshotOperations:
    """What can be done to an open pool's snapshots."""

    def __init__(self, registry: Registry, layers: LayerMaker) -> None:
        self._registry = registry
        self._store = registry.store
        self._layers = layers

    def create(
        self, volume: VolumeId, name: str | Naming, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[LocalSnapshotRecord]:
        """Freeze the volume's head and map under a new name (promise D4); O(1)."""
        if isinstance(name, str):
            check_name(name)
        packed = self._registry.packs_head()

        def freeze(
            txn: Transaction, record: LocalVolumeRecord, layer: LayerId
        ) -> tuple[LocalVolumeRecord, LocalSnapshotRecord]:
            changed, snapshot = self._freeze(Catalogue(txn), record, name, layer, packed)
            in_transaction(txn, snapshot)
            hit(Failpoint.SNAPSHOT_CHANGED)
            return changed, snapshot

        doing = f"taking a snapshot of volume {volume}"
        return self._registry.exclusive(volume, doing, self._create, volume, freeze, packed)

    async def _create(self, volume: VolumeId, freeze: _Freeze, packed: bool) -> LocalSnapshotRecord:
        opened = self._registry.volumes.get(volume)
        if opened is None:
            snapshot = await self._snapshot_closed(volume, freeze, packed=packed)
        else:
            async with self._layers.turn:
                snapshot = await self._snapshot_open(opened.volume, freeze, packed=packed)
        hit(Failpoint.SNAPSHOT_COMMITTED)
        # Made now: when it is read the file system may have no file to give.
        await blocking(lambda: touch_if_possible(self._store.layout.snapshot_lock(snapshot.id)))
        self._registry.on_frozen()
        return snapshot

    async def _snapshot_closed(
        self, volume: VolumeId, freeze: _Freeze, *, packed: bool
    ) -> LocalSnapshotRecord:
        self._registry.refuse_failed(volume)
        lock = await blocking(lock_volume, self._store, volume)
        try:
            record = await blocking(recover_if_needed, self._store, volume)

            def change(txn: Transaction, layer: LayerId) -> LocalSnapshotRecord:
                catalogue = Catalogue(txn)
                changed, snapshot = freeze(txn, catalogue.volume(volume), layer)
                catalogue.put_volume(changed)
                return snapshot

            result = await self._layers.make_with(record.size_bytes, change, packed=packed)
        finally:
            lock.release()
        return result

    async def _snapshot_open(
        self, volume: Volume, freeze: _Freeze, *, packed: bool
    ) -> LocalSnapshotRecord:
        def adopt(record: LocalVolumeRecord) -> None:
            volume.loader.chain = (record.map, *volume.loader.chain)

        return await change_head(
            self._store,
            self._layers,
            volume,
            freeze,
            adopt,
            packed=packed,
            made=Failpoint.SNAPSHOT_LAYER,
        )

    def _freeze(
        self,
        catalogue: Catalogue,
        record: LocalVolumeRecord,
        naming: str | Naming,
        layer: LayerId,
        packed: bool,
    ) -> tuple[LocalVolumeRecord, LocalSnapshotRecord]:
        """Give the volume's map to a new snapshot, and the volume a new map and head."""
        node = SnapshotId(catalogue.new_node())
        name = name_of(naming, catalogue, node)
        snapshot = LocalSnapshotRecord(
            id=node,
            name=name,
            volume=record.id,
            size_bytes=record.size_bytes,
            map=record.map,
            created_at=self._registry.clock(),
            content_bytes=record.content_bytes,
        )
        catalogue.take_name(NodeKind.SNAPSHOT, name, snapshot.id)
        catalogue.put_snapshot(snapshot)
        fresh = catalogue.new_map(record.map, record.size_bytes)
        catalogue.add_layer(layer, record.size_bytes, fresh.id, packed=packed)
        return replace(record, map=fresh.id, head=layer), snapshot

    def delete(
        self, snapshot: SnapshotId, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[None]:
        """Forget a snapshot; its blocks are reclaimed in the background. Raises InUseError while it
        is read."""

        async def steps() -> None:
            opened = self._registry.snapshots.get(snapshot)
            if opened is not None:
                if opened.users:
                    raise InUseError(f"snapshot {snapshot} is being read; disconnect first")
                await close_snapshot(self._registry.snapshots.pop(snapshot))
            await blocking(self._forget, snapshot, in_transaction)
            self._registry.on_garbage()

        return self._registry.exclusive(snapshot, f"deleting snapshot {snapshot}", steps)

    def _forget(self, snapshot: SnapshotId, in_transaction: WithSnapshot) -> None:
        lock = lock_snapshot(self._store, snapshot, shared=False)

        def change(txn: Transaction) -> None:
            record = Catalogue(txn).snapshot(snapshot)
            forget_node(txn, record)
            in_transaction(txn, record)
            hit(Failpoint.DELETE_SNAPSHOT_CHANGED)

        try:
            self._store.index.update(change)
            hit(Failpoint.DELETE_SNAPSHOT_COMMITTED)
            unlink_leftover(lock.path)
        finally:
            lock.release()
