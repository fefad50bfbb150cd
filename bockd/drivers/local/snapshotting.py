"""A pool's snapshots: freezing a volume under a new name, going back to one, and deleting one.

An operation that raises a BockdError has changed nothing.

Who keeps records of its own about volumes and snapshots passes `in_transaction`, which changes
them inside the transaction that changes the catalogue: both happen or neither. It may run twice, so
it must have no effect outside the transaction; what it raises undoes the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import Catalogue, SnapshotRecord, VolumeRecord, id_key
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import unlink_leftover
from bockd.drivers.local.format.locks import FileLock, touch_if_possible
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.opening import (
    close_snapshot,
    lock_snapshot,
    lock_volume,
    recover_if_needed,
)
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import ConflictError, InUseError, InvalidRequestError
from bockd.failpoints import Failpoint, hit
from bockd.index.index import Table, Transaction
from bockd.model import LayerId, NodeKind, SnapshotId, VolumeId, format_size
from bockd.runtime.steps import Spawn, Steps, blocking
from bockd.validation import check_name

AlsoVolume = Callable[[Transaction, VolumeRecord], None]
"""More to do in the transaction that creates, grows, reverts or forgets this volume."""

AlsoSnapshot = Callable[[Transaction, SnapshotRecord], None]
"""More to do in the transaction that creates or forgets this snapshot."""

Naming = Callable[[Catalogue, int], str]
"""Chooses a valid, free name for a node whose id is known now."""

_Freeze = Callable[[Transaction, VolumeRecord, LayerId], tuple[VolumeRecord, SnapshotRecord]]


def nothing_more(_txn: Transaction, _record: VolumeRecord | SnapshotRecord) -> None:
    """Do nothing: the `in_transaction` of an operation whose caller keeps no records of its own."""


class SnapshotOperations(Registry):
    """An open pool, and what can be done to its snapshots."""

    def __init__(self, store: StoreAccess, lock: FileLock, spawn: Spawn) -> None:
        super().__init__(store, lock, spawn)
        self._layers = LayerMaker(store)

    def create_snapshot(
        self, volume: VolumeId, name: str | Naming, in_transaction: AlsoSnapshot = nothing_more
    ) -> Steps[SnapshotRecord]:
        """Freeze the volume's head and map under a new name (promise D4); O(1)."""
        if isinstance(name, str):
            check_name(name)

        def freeze(
            txn: Transaction, record: VolumeRecord, layer: LayerId
        ) -> tuple[VolumeRecord, SnapshotRecord]:
            changed, snapshot = self._freeze(Catalogue(txn), record, name, layer)
            in_transaction(txn, snapshot)
            hit(Failpoint.SNAPSHOT_CHANGED)
            return changed, snapshot

        doing = f"taking a snapshot of volume {volume}"
        return self.exclusive(volume, doing, self._create_snapshot, volume, freeze)

    async def _create_snapshot(self, volume: VolumeId, freeze: _Freeze) -> SnapshotRecord:
        opened = self.volumes.get(volume)
        if opened is None:
            snapshot = await self._snapshot_closed(volume, freeze)
        else:
            async with self._layers.turn:
                snapshot = await self._snapshot_open(opened.volume, freeze)
        hit(Failpoint.SNAPSHOT_COMMITTED)
        # Made now: when it is read the file system may have no file to give.
        await blocking(lambda: touch_if_possible(self.store.layout.snapshot_lock(snapshot.id)))
        self.on_frozen()
        return snapshot

    async def _snapshot_closed(self, volume: VolumeId, freeze: _Freeze) -> SnapshotRecord:
        self.refuse_failed(volume)
        lock = await blocking(lock_volume, self.store, volume)
        try:
            record = await blocking(recover_if_needed, self.store, volume)

            def change(txn: Transaction, layer: LayerId) -> SnapshotRecord:
                catalogue = Catalogue(txn)
                changed, snapshot = freeze(txn, catalogue.volume(volume), layer)
                catalogue.put_volume(changed)
                return snapshot

            result = await self._layers.make_with(record.size_bytes, change)
        finally:
            lock.release()
        return result

    async def _snapshot_open(self, volume: Volume, freeze: _Freeze) -> SnapshotRecord:
        if volume.layers.full:
            raise ConflictError("too many snapshots since the volume was opened; reconnect")
        size = volume.size_bytes
        layer = await blocking(self._layers.make, size)
        hit(Failpoint.SNAPSHOT_LAYER)
        head: Layer | None = None
        try:
            head = await blocking(Layer.open, self.store.layout, layer, size, writable=True)
            fresh_head = head

            def change(
                txn: Transaction, record: VolumeRecord
            ) -> tuple[VolumeRecord, SnapshotRecord]:
                return freeze(txn, record, layer)

            def adopt(record: VolumeRecord, _snapshot: SnapshotRecord) -> None:
                volume.loader.chain = (record.map, *volume.loader.chain)
                volume.adopt_head(fresh_head)

            return await volume.durability.quiesced_commit(change, adopt)
        except BaseException:
            if volume.durability.head is not head:
                if head is not None:
                    head.close()
                self._layers.unmake(layer)
            raise

    def _freeze(
        self, catalogue: Catalogue, record: VolumeRecord, naming: str | Naming, layer: LayerId
    ) -> tuple[VolumeRecord, SnapshotRecord]:
        """Give the volume's map to a new snapshot, and the volume a new map and head."""
        node = SnapshotId(catalogue.new_node())
        name = name_of(naming, catalogue, node)
        snapshot = SnapshotRecord(
            id=node,
            name=name,
            volume=record.id,
            size_bytes=record.size_bytes,
            map=record.map,
            created_at=self.clock(),
            content_bytes=record.content_bytes,
        )
        catalogue.take_name(NodeKind.SNAPSHOT, name, snapshot.id)
        catalogue.put_snapshot(snapshot)
        fresh = catalogue.new_map(record.map, record.size_bytes)
        catalogue.add_layer(layer, record.size_bytes, fresh.id)
        return replace(record, map=fresh.id, head=layer), snapshot

    def delete_snapshot(
        self, snapshot: SnapshotId, in_transaction: AlsoSnapshot = nothing_more
    ) -> Steps[None]:
        """Forget a snapshot; its blocks are reclaimed in the background. Raises InUseError while it
        is read."""

        async def steps() -> None:
            opened = self.snapshots.get(snapshot)
            if opened is not None:
                if opened.users:
                    raise InUseError(f"snapshot {snapshot} is being read; disconnect first")
                await close_snapshot(self.snapshots.pop(snapshot))
            await blocking(self._forget_snapshot, snapshot, in_transaction)
            self.on_garbage()

        return self.exclusive(snapshot, f"deleting snapshot {snapshot}", steps)

    def _forget_snapshot(self, snapshot: SnapshotId, in_transaction: AlsoSnapshot) -> None:
        lock = lock_snapshot(self.store, snapshot, shared=False)

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            record = catalogue.snapshot(snapshot)
            catalogue.free_name(NodeKind.SNAPSHOT, record.name)
            txn.delete(Table.SNAPSHOTS, id_key(snapshot))
            catalogue.kill_map(record.map)
            in_transaction(txn, record)
            hit(Failpoint.DELETE_SNAPSHOT_CHANGED)

        try:
            self.store.index.update(change)
            hit(Failpoint.DELETE_SNAPSHOT_COMMITTED)
            unlink_leftover(lock.path)
        finally:
            lock.release()

    def revert_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: AlsoVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Make the volume show its snapshot's content again. The size stays; what lies beyond the
        snapshot's end becomes holes. Raises InUseError while a client is connected."""
        doing = f"reverting volume {volume} to snapshot {snapshot}"
        return self.exclusive(volume, doing, self._revert_volume, volume, snapshot, in_transaction)

    async def _revert_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: AlsoVolume
    ) -> VolumeRecord:
        with self.catalogue() as catalogue:
            source = catalogue.snapshot(snapshot)
        if source.volume != volume:
            raise ConflictError(f"snapshot {snapshot} is not one of volume {volume}")
        return await self._show_snapshot(volume, snapshot, nothing_more)

    def fill_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: AlsoVolume
    ) -> Steps[VolumeRecord]:
        """Make an existing volume a clone of a snapshot, whatever it holds now. Raises InUseError
        while a client is connected, InvalidRequestError when it is smaller."""

        async def steps() -> VolumeRecord:
            with self.catalogue() as catalogue:
                clone_size(catalogue.snapshot(snapshot), catalogue.volume(volume).size_bytes)
            return await self._show_snapshot(volume, snapshot, in_transaction)

        doing = f"filling volume {volume} from snapshot {snapshot}"
        return self.exclusive(volume, doing, self.exclusive, snapshot, doing, steps)

    async def _show_snapshot(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: AlsoVolume
    ) -> VolumeRecord:
        if volume in self.volumes:
            self.refuse_used(volume)
            await self._close_volume(volume, give_up=False)
        self.refuse_failed(volume)
        lock = await blocking(lock_volume, self.store, volume)
        try:
            record = await blocking(recover_if_needed, self.store, volume)
            hit(Failpoint.REVERT_CLOSED)

            def change(txn: Transaction, layer: LayerId) -> VolumeRecord:
                catalogue = Catalogue(txn)
                current = catalogue.volume(volume)
                source = catalogue.snapshot(snapshot)
                fresh = catalogue.new_map(source.map, current.size_bytes)
                catalogue.add_layer(layer, current.size_bytes, fresh.id)
                catalogue.kill_map(current.map)
                reverted = replace(
                    current,
                    map=fresh.id,
                    head=layer,
                    generation=current.generation + 1,
                    content_bytes=content_of(source, current.size_bytes),
                )
                if source.volume != volume:
                    reverted = replace(reverted, from_snapshot=snapshot)
                catalogue.put_volume(reverted)
                in_transaction(txn, reverted)
                hit(Failpoint.REVERT_CHANGED)
                return reverted

            result = await self._layers.make_with(record.size_bytes, change)
        finally:
            lock.release()
        hit(Failpoint.REVERT_COMMITTED)
        self.on_garbage()
        return result


def name_of(naming: str | Naming, catalogue: Catalogue, node: int) -> str:
    return naming if isinstance(naming, str) else check_name(naming(catalogue, node))


def content_of(source: SnapshotRecord, size_bytes: int) -> int | None:
    """Return the `content_bytes` of a volume of `size_bytes` that shows a snapshot. None if the
    volume is larger than the snapshot: then it was made for more than the image."""
    return source.content_bytes if source.size_bytes == size_bytes else None


def clone_size(source: SnapshotRecord | None, size_bytes: int | None) -> int:
    if source is None:
        assert size_bytes is not None
        return size_bytes
    if size_bytes is not None and size_bytes < source.size_bytes:
        raise InvalidRequestError(
            f"snapshot {source.id} has {format_size(source.size_bytes)}; a volume made from it "
            "cannot be smaller"
        )
    return size_bytes or source.size_bytes
