"""A volume that turns into a snapshot: its map and its head stay as they are, and the volume is no
more. One transaction, and no layer is made: what an import needs, whose volume has no other use.
"""

from __future__ import annotations

from bockd.drivers.local.format.catalogue import Catalogue, LocalSnapshotRecord
from bockd.drivers.local.format.locks import touch_if_possible
from bockd.drivers.local.opening import lock_volume, recover_if_needed, remove_traces
from bockd.drivers.local.registry import Registry
from bockd.errors import InUseError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.pool import Naming, WithSnapshot
from bockd.runtime.steps import blocking


async def freeze_volume(
    registry: Registry, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
) -> LocalSnapshotRecord:
    """Make a volume that nobody uses a snapshot, which is durable when this returns.

    Raises InUseError while a client is connected, NotFoundError, VolumeFailedError.
    """
    await registry.close_idle_volume(volume)
    doing = f"making volume {volume} a snapshot"
    return await registry.exclusive(
        volume, doing, _freeze, registry, volume, naming, in_transaction
    )


async def _freeze(
    registry: Registry, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
) -> LocalSnapshotRecord:
    if volume in registry.volumes:
        registry.refuse_used(volume)
        raise InUseError(f"volume {volume} has been used until now; try again")
    registry.refuse_failed(volume)

    def change(txn: Transaction) -> LocalSnapshotRecord:
        snapshot = _become(Catalogue(txn), volume, naming, registry.clock())
        in_transaction(txn, snapshot)
        hit(Failpoint.FREEZE_CHANGED)
        return snapshot

    def freeze() -> LocalSnapshotRecord:
        lock = lock_volume(registry.store, volume)
        try:
            recover_if_needed(registry.store, volume)
            snapshot = registry.store.index.update(change)
            hit(Failpoint.FREEZE_COMMITTED)
            remove_traces(registry.store, volume, lock)
        finally:
            lock.release()
        return snapshot

    record = await blocking(freeze)
    # Made now: when it is read the file system may have no file to give.
    await blocking(lambda: touch_if_possible(registry.store.layout.snapshot_lock(record.id)))
    registry.on_frozen()
    return record


def _become(
    catalogue: Catalogue, volume: VolumeId, naming: Naming, created_at: float
) -> LocalSnapshotRecord:
    """Forget the volume and give its map to a new snapshot."""
    record = catalogue.volume(volume)
    catalogue.forget(NodeKind.VOLUME, volume, record.name)
    node = SnapshotId(catalogue.new_node())
    snapshot = LocalSnapshotRecord(
        id=node,
        name=naming(catalogue, node),
        volume=volume,
        size_bytes=record.size_bytes,
        map=record.map,
        created_at=created_at,
        content_bytes=record.content_bytes,
    )
    catalogue.take_name(NodeKind.SNAPSHOT, snapshot.name, node)
    catalogue.put_snapshot(snapshot)
    return snapshot
