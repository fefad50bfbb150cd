"""A pool's volumes: creating, cloning, growing, reverting, filling, reopening and deleting them.

What bockd.pool.pool says about errors and about `in_transaction` holds here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.drivers.local.format.catalogue import (
    NO_MAP,
    Catalogue,
    LocalSnapshotRecord,
    LocalVolumeRecord,
)
from bockd.drivers.local.format.forgetting import forget_node, kill_map
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.locks import touch_if_possible
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.opening import (
    abandon_volume,
    lock_volume,
    recover_if_needed,
    remove_traces,
)
from bockd.drivers.local.registry import Registry
from bockd.errors import ConflictError, InvalidRequestError
from bockd.failpoints import Failpoint, hit
from bockd.model import LayerId, NodeKind, SnapshotId, VolumeId
from bockd.pool.choices import check_new_volume, content_of, name_of, size_of
from bockd.pool.index import Transaction
from bockd.pool.pool import Naming, WithVolume, nothing_more
from bockd.runtime.steps import Steps, blocking
from bockd.validation import check_volume_size


class VolumeOperations:
    """What can be done to an open pool's volumes."""

    def __init__(self, registry: Registry, layers: LayerMaker) -> None:
        self._registry = registry
        self._store = registry.store
        self._layers = layers

    # -- creating ----------------------------------------------------------------------------

    def create(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None = None,
        in_transaction: WithVolume = nothing_more,
        content_bytes: int | None = None,
    ) -> Steps[LocalVolumeRecord]:
        """Create a blank volume, or a clone of a snapshot. A clone is at least as large as the
        snapshot, and by default as large. `content_bytes` is the size of what will be imported into
        a blank volume.

        Raises InvalidRequestError, ConflictError (the name), NotFoundError (the snapshot).
        """
        check_new_volume(name, size_bytes, is_clone=from_snapshot is not None)

        async def steps() -> LocalVolumeRecord:
            source: LocalSnapshotRecord | None = None
            with self._registry.catalogue() as catalogue:
                if from_snapshot is not None:
                    source = catalogue.snapshot(from_snapshot)
            size = size_of(source, size_bytes)
            packed = source is not None and self._registry.packs_head()

            def change(txn: Transaction, layer: LayerId) -> LocalVolumeRecord:
                content = content_of(source, size) if source else content_bytes
                catalogue = Catalogue(txn)
                added = self._add(catalogue, name, size, from_snapshot, layer, packed, content)
                in_transaction(txn, added)
                hit(Failpoint.CLONE_CHANGED if source else Failpoint.CREATE_CHANGED)
                return added

            record = await self._layers.make_with(size, change, packed=packed)
            hit(Failpoint.CLONE_COMMITTED if source else Failpoint.CREATE_COMMITTED)
            # Made now: when it is opened the file system may have no file to give.
            await blocking(lambda: touch_if_possible(self._store.layout.volume_lock(record.id)))
            return record

        # While it is being cloned a snapshot must not be deleted.
        return (
            steps()
            if from_snapshot is None
            else self._registry.exclusive(from_snapshot, f"cloning snapshot {from_snapshot}", steps)
        )

    def _add(
        self,
        catalogue: Catalogue,
        naming: str | Naming,
        size: int,
        from_snapshot: SnapshotId | None,
        layer: LayerId,
        packed: bool,
        content_bytes: int | None,
    ) -> LocalVolumeRecord:
        parent = NO_MAP if from_snapshot is None else catalogue.snapshot(from_snapshot).map
        volume = VolumeId(catalogue.new_node())
        name = name_of(naming, catalogue, volume)
        catalogue.take_name(NodeKind.VOLUME, name, volume)
        map_record = catalogue.new_map(parent, size)
        catalogue.add_layer(layer, size, map_record.id, packed=packed)
        record = LocalVolumeRecord(
            id=volume,
            name=name,
            size_bytes=size,
            map=map_record.id,
            head=layer,
            created_at=self._registry.clock(),
            from_snapshot=from_snapshot,
            generation=0,
            segment=0,
            opened=False,
            failed=None,
            content_bytes=content_bytes,
        )
        catalogue.put_volume(record)
        return record

    # -- volumes -----------------------------------------------------------------------------

    def extend(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume = nothing_more
    ) -> Steps[LocalVolumeRecord]:
        """Grow a volume, open or not. Raises InvalidRequestError when it would not grow."""
        check_volume_size(size_bytes)
        doing = f"extending volume {volume}"
        return self._registry.exclusive(
            volume, doing, self._extend, volume, size_bytes, in_transaction
        )

    async def _extend(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume
    ) -> LocalVolumeRecord:
        with self._registry.catalogue() as catalogue:
            current = catalogue.volume(volume).size_bytes
        if size_bytes <= current:
            raise InvalidRequestError(
                f"volume {volume} has {current} bytes already; it can only grow"
            )

        def change(
            txn: Transaction, record: LocalVolumeRecord
        ) -> tuple[LocalVolumeRecord, LocalVolumeRecord]:
            catalogue = Catalogue(txn)
            catalogue.put_layer(replace(catalogue.layer(record.head), size_bytes=size_bytes))
            catalogue.put_map(replace(catalogue.map(record.map), size_bytes=size_bytes))
            record = replace(record, size_bytes=size_bytes, content_bytes=None)
            in_transaction(txn, record)
            hit(Failpoint.EXTEND_CHANGED)
            return record, record

        opened = self._registry.volumes.get(volume)
        if opened is None:
            self._registry.refuse_failed(volume)
            extended = await self._extend_closed(volume, size_bytes, change)
        else:
            device = opened.volume
            await device.durability.begin(reserve=False)
            await blocking(self._layers.grow, device.durability.head, size_bytes)
            extended = await device.durability.quiesced_commit(
                change, lambda _record, _result: device.adopt_size(size_bytes)
            )
        hit(Failpoint.EXTEND_COMMITTED)
        return extended

    async def _extend_closed(
        self,
        volume: VolumeId,
        size_bytes: int,
        change: Callable[
            [Transaction, LocalVolumeRecord], tuple[LocalVolumeRecord, LocalVolumeRecord]
        ],
    ) -> LocalVolumeRecord:
        def run(txn: Transaction) -> LocalVolumeRecord:
            catalogue = Catalogue(txn)
            record, result = change(txn, catalogue.volume(volume))
            catalogue.put_volume(record)
            return result

        def extend() -> LocalVolumeRecord:
            lock = lock_volume(self._store, volume)
            try:
                record = recover_if_needed(self._store, volume)
                with self._store.index.reading() as txn:
                    known = Catalogue(txn).layer(record.head)
                head = Layer.of(self._store.layout, known, writable=True)
                try:
                    self._layers.grow(head, size_bytes)
                finally:
                    head.close()
                return self._store.index.update(run)
            finally:
                lock.release()

        return await blocking(extend)

    def delete(self, volume: VolumeId, in_transaction: WithVolume = nothing_more) -> Steps[None]:
        """Forget a volume; its space is reclaimed in the background. Raises InUseError while it is
        used."""
        doing = f"deleting volume {volume}"
        return self._registry.exclusive(volume, doing, self._delete, volume, in_transaction)

    async def _delete(self, volume: VolumeId, in_transaction: WithVolume) -> None:
        if volume in self._registry.volumes:
            self._registry.refuse_used(volume)
            await self._abandon(volume)
        hit(Failpoint.DELETE_CLOSED)
        await blocking(self._forget, volume, in_transaction)
        hit(Failpoint.DELETE_DONE)
        self._registry.refusals.pop(volume, None)
        self._registry.failures.pop(volume, None)
        self._registry.on_garbage()

    async def _abandon(self, volume: VolumeId) -> None:
        try:
            await abandon_volume(self._registry.volumes[volume])
        finally:
            self._registry.forget_open(volume)

    def _forget(self, volume: VolumeId, in_transaction: WithVolume) -> None:
        lock = lock_volume(self._store, volume)

        def change(txn: Transaction) -> None:
            record = Catalogue(txn).volume(volume)
            forget_node(txn, record)
            in_transaction(txn, record)
            hit(Failpoint.DELETE_CHANGED)

        try:
            self._store.index.update(change)
            hit(Failpoint.DELETE_COMMITTED)
            remove_traces(self._store, volume, lock)
        finally:
            lock.release()

    def reopen(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> Steps[LocalVolumeRecord]:
        """Accept what a failed sync may have lost, and let the volume be opened again."""
        doing = f"reopening volume {volume}"
        return self._registry.exclusive(volume, doing, self._reopen, volume, in_transaction)

    async def _reopen(self, volume: VolumeId, in_transaction: WithVolume) -> LocalVolumeRecord:
        if volume in self._registry.volumes:
            self._registry.refuse_used(volume)
            await self._abandon(volume)

        def reopen() -> LocalVolumeRecord:
            lock = lock_volume(self._store, volume)

            def change(txn: Transaction) -> LocalVolumeRecord:
                catalogue = Catalogue(txn)
                record = replace(catalogue.volume(volume), failed=None)
                catalogue.put_volume(record)
                in_transaction(txn, record)
                hit(Failpoint.REOPEN_CHANGED)
                return record

            try:
                return self._store.index.update(change)
            finally:
                lock.release()

        result = await blocking(reopen)
        hit(Failpoint.REOPEN_COMMITTED)
        self._registry.refusals.pop(volume, None)
        self._registry.failures.pop(volume, None)
        return result

    # -- showing a snapshot ------------------------------------------------------------------

    def revert(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume = nothing_more
    ) -> Steps[LocalVolumeRecord]:
        """Make the volume show its snapshot's content again. The size stays; what lies beyond the
        snapshot's end becomes holes. Raises InUseError while a client is connected."""
        doing = f"reverting volume {volume} to snapshot {snapshot}"
        return self._registry.exclusive(
            volume, doing, self._revert, volume, snapshot, in_transaction
        )

    async def _revert(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> LocalVolumeRecord:
        with self._registry.catalogue() as catalogue:
            source = catalogue.snapshot(snapshot)
        if source.volume != volume:
            raise ConflictError(f"snapshot {snapshot} is not one of volume {volume}")
        return await self._show_snapshot(volume, snapshot, in_transaction)

    def fill(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> Steps[LocalVolumeRecord]:
        """Make an existing volume a clone of a snapshot, whatever it holds now. Raises InUseError
        while a client is connected, InvalidRequestError when it is smaller."""

        async def steps() -> LocalVolumeRecord:
            with self._registry.catalogue() as catalogue:
                size_of(catalogue.snapshot(snapshot), catalogue.volume(volume).size_bytes)
            return await self._show_snapshot(volume, snapshot, in_transaction)

        doing = f"filling volume {volume} from snapshot {snapshot}"
        return self._registry.exclusive(
            volume, doing, self._registry.exclusive, snapshot, doing, steps
        )

    async def _show_snapshot(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> LocalVolumeRecord:
        if volume in self._registry.volumes:
            self._registry.refuse_used(volume)
            await self._registry.close_volume(volume, give_up=False)
        self._registry.refuse_failed(volume)
        lock = await blocking(lock_volume, self._store, volume)
        try:
            record = await blocking(recover_if_needed, self._store, volume)
            packed = self._registry.packs_head()
            hit(Failpoint.REVERT_CLOSED)

            def change(txn: Transaction, layer: LayerId) -> LocalVolumeRecord:
                catalogue = Catalogue(txn)
                current = catalogue.volume(volume)
                source = catalogue.snapshot(snapshot)
                fresh = catalogue.new_map(source.map, current.size_bytes)
                catalogue.add_layer(layer, current.size_bytes, fresh.id, packed=packed)
                kill_map(txn, current.map)
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

            result = await self._layers.make_with(record.size_bytes, change, packed=packed)
        finally:
            lock.release()
        hit(Failpoint.REVERT_COMMITTED)
        self._registry.on_garbage()
        return result
