"""A pool's operations: creating, cloning, growing, reopening and deleting volumes, and, inherited,
those on snapshots.

What engine.snapshotting says about errors and about `in_transaction` holds here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.drivers.local.format.catalogue import (
    NO_MAP,
    Catalogue,
    SnapshotRecord,
    VolumeRecord,
    id_key,
)
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.locks import touch_if_possible
from bockd.drivers.local.opening import (
    abandon_volume,
    lock_volume,
    recover_if_needed,
    remove_traces,
)
from bockd.drivers.local.snapshotting import (
    AlsoVolume,
    Naming,
    SnapshotOperations,
    clone_size,
    content_of,
    name_of,
    nothing_more,
)
from bockd.errors import InvalidRequestError
from bockd.failpoints import Failpoint, hit
from bockd.index.index import Table, Transaction
from bockd.model import LayerId, NodeKind, SnapshotId, VolumeId
from bockd.runtime.steps import Steps, blocking
from bockd.validation import check_name, check_volume_size


class Pool(SnapshotOperations):
    """An open pool and all that can be done to its catalogue."""

    # -- creating ----------------------------------------------------------------------------

    def create_volume(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None = None,
        in_transaction: AlsoVolume = nothing_more,
        content_bytes: int | None = None,
    ) -> Steps[VolumeRecord]:
        """Create a blank volume, or a clone of a snapshot. A clone is at least as large as the
        snapshot, and by default as large. `content_bytes` is the size of what will be imported into
        a blank volume.

        Raises InvalidRequestError, ConflictError (the name), NotFoundError (the snapshot).
        """
        if isinstance(name, str):
            check_name(name)
        if size_bytes is not None:
            check_volume_size(size_bytes)
        elif from_snapshot is None:
            raise InvalidRequestError("a blank volume needs a size")

        async def steps() -> VolumeRecord:
            source: SnapshotRecord | None = None
            with self.catalogue() as catalogue:
                if from_snapshot is not None:
                    source = catalogue.snapshot(from_snapshot)
            size = clone_size(source, size_bytes)

            def change(txn: Transaction, layer: LayerId) -> VolumeRecord:
                content = content_of(source, size) if source else content_bytes
                added = self._add_volume(Catalogue(txn), name, size, from_snapshot, layer, content)
                in_transaction(txn, added)
                hit(Failpoint.CLONE_CHANGED if source else Failpoint.CREATE_CHANGED)
                return added

            record = await self._layers.make_with(size, change)
            hit(Failpoint.CLONE_COMMITTED if source else Failpoint.CREATE_COMMITTED)
            # Made now: when it is opened the file system may have no file to give.
            await blocking(lambda: touch_if_possible(self.store.layout.volume_lock(record.id)))
            return record

        # While it is being cloned a snapshot must not be deleted.
        return (
            steps()
            if from_snapshot is None
            else self.exclusive(from_snapshot, f"cloning snapshot {from_snapshot}", steps)
        )

    def _add_volume(
        self,
        catalogue: Catalogue,
        naming: str | Naming,
        size: int,
        from_snapshot: SnapshotId | None,
        layer: LayerId,
        content_bytes: int | None,
    ) -> VolumeRecord:
        parent = NO_MAP if from_snapshot is None else catalogue.snapshot(from_snapshot).map
        volume = VolumeId(catalogue.new_node())
        name = name_of(naming, catalogue, volume)
        catalogue.take_name(NodeKind.VOLUME, name, volume)
        map_record = catalogue.new_map(parent, size)
        catalogue.add_layer(layer, size, map_record.id)
        record = VolumeRecord(
            id=volume,
            name=name,
            size_bytes=size,
            map=map_record.id,
            head=layer,
            created_at=self.clock(),
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

    def extend_volume(
        self, volume: VolumeId, size_bytes: int, in_transaction: AlsoVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Grow a volume, open or not. Raises InvalidRequestError when it would not grow."""
        check_volume_size(size_bytes)
        doing = f"extending volume {volume}"
        return self.exclusive(
            volume, doing, self._extend_volume, volume, size_bytes, in_transaction
        )

    async def _extend_volume(
        self, volume: VolumeId, size_bytes: int, in_transaction: AlsoVolume
    ) -> VolumeRecord:
        with self.catalogue() as catalogue:
            current = catalogue.volume(volume).size_bytes
        if size_bytes <= current:
            raise InvalidRequestError(
                f"volume {volume} has {current} bytes already; it can only grow"
            )

        def change(txn: Transaction, record: VolumeRecord) -> tuple[VolumeRecord, VolumeRecord]:
            catalogue = Catalogue(txn)
            catalogue.put_layer(replace(catalogue.layer(record.head), size_bytes=size_bytes))
            catalogue.put_map(replace(catalogue.map(record.map), size_bytes=size_bytes))
            record = replace(record, size_bytes=size_bytes, content_bytes=None)
            in_transaction(txn, record)
            hit(Failpoint.EXTEND_CHANGED)
            return record, record

        opened = self.volumes.get(volume)
        if opened is None:
            self.refuse_failed(volume)
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
        change: Callable[[Transaction, VolumeRecord], tuple[VolumeRecord, VolumeRecord]],
    ) -> VolumeRecord:
        def run(txn: Transaction) -> VolumeRecord:
            catalogue = Catalogue(txn)
            record, result = change(txn, catalogue.volume(volume))
            catalogue.put_volume(record)
            return result

        def extend() -> VolumeRecord:
            lock = lock_volume(self.store, volume)
            try:
                record = recover_if_needed(self.store, volume)
                head = Layer.open(self.store.layout, record.head, record.size_bytes, writable=True)
                try:
                    self._layers.grow(head, size_bytes)
                finally:
                    head.close()
                return self.store.index.update(run)
            finally:
                lock.release()

        return await blocking(extend)

    def delete_volume(
        self, volume: VolumeId, in_transaction: AlsoVolume = nothing_more
    ) -> Steps[None]:
        """Forget a volume; its space is reclaimed in the background. Raises InUseError while it is
        used."""
        doing = f"deleting volume {volume}"
        return self.exclusive(volume, doing, self._delete_volume, volume, in_transaction)

    async def _delete_volume(self, volume: VolumeId, in_transaction: AlsoVolume) -> None:
        if volume in self.volumes:
            self.refuse_used(volume)
            await self._abandon_volume(volume)
        hit(Failpoint.DELETE_CLOSED)
        await blocking(self._forget_volume, volume, in_transaction)
        hit(Failpoint.DELETE_DONE)
        self.refusals.pop(volume, None)
        self.failures.pop(volume, None)
        self.on_garbage()

    async def _abandon_volume(self, volume: VolumeId) -> None:
        try:
            await abandon_volume(self.volumes[volume])
        finally:
            self._forget_open(volume)

    def _forget_volume(self, volume: VolumeId, in_transaction: AlsoVolume) -> None:
        lock = lock_volume(self.store, volume)

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            record = catalogue.volume(volume)
            catalogue.free_name(NodeKind.VOLUME, record.name)
            txn.delete(Table.VOLUMES, id_key(volume))
            catalogue.kill_map(record.map)
            in_transaction(txn, record)
            hit(Failpoint.DELETE_CHANGED)

        try:
            self.store.index.update(change)
            hit(Failpoint.DELETE_COMMITTED)
            remove_traces(self.store, volume, lock)
        finally:
            lock.release()

    def reopen_volume(
        self, volume: VolumeId, in_transaction: AlsoVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Accept what a failed sync may have lost, and let the volume be opened again."""
        doing = f"reopening volume {volume}"
        return self.exclusive(volume, doing, self._reopen_volume, volume, in_transaction)

    async def _reopen_volume(self, volume: VolumeId, in_transaction: AlsoVolume) -> VolumeRecord:
        if volume in self.volumes:
            self.refuse_used(volume)
            await self._abandon_volume(volume)

        def reopen() -> VolumeRecord:
            lock = lock_volume(self.store, volume)

            def change(txn: Transaction) -> VolumeRecord:
                catalogue = Catalogue(txn)
                record = replace(catalogue.volume(volume), failed=None)
                catalogue.put_volume(record)
                in_transaction(txn, record)
                hit(Failpoint.REOPEN_CHANGED)
                return record

            try:
                return self.store.index.update(change)
            finally:
                lock.release()

        result = await blocking(reopen)
        hit(Failpoint.REOPEN_COMMITTED)
        self.refusals.pop(volume, None)
        self.failures.pop(volume, None)
        return result
