"""Moving volumes and snapshots of a pool to the trash (bockd.pool.trash), and from there.

One in the trash keeps its map, its layers and, if it could not be closed in order, its journal:
reclaim, merging, the check and the scrub go on with them as before. It is closed while it is there.

What bockd.pool.pool says about errors and about `in_transaction` holds here.
"""

from __future__ import annotations

import logging

from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.opening import close_snapshot, lock_snapshot, lock_volume
from bockd.drivers.local.registry import Registry
from bockd.errors import BockdError, InUseError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.pool import Naming, WithNode, nothing_more
from bockd.pool.trash import move_to_trash, take_from_trash
from bockd.runtime.steps import Steps, blocking

log = logging.getLogger(__name__)


class TrashOperations:
    """What can be done with the trash of an open pool."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store

    def trash(
        self, kind: NodeKind, node: int, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """Move a volume or snapshot to the trash. Raises InUseError while it is used, here or in
        another process."""

        async def steps() -> None:
            await self._close(kind, node)
            hit(Failpoint.TRASH_CLOSED)
            await blocking(self._move, kind, node, in_transaction)
            hit(Failpoint.TRASH_COMMITTED)

        return self._registry.exclusive(node, f"moving {kind} {node} to the trash", steps)

    def restore(
        self, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """Make one that is in the trash an ordinary one again. Nobody can have it open."""

        def change(txn: Transaction) -> None:
            take_from_trash(Catalogue(txn), kind, node, naming, in_transaction)

        async def steps() -> None:
            await blocking(self._store.index.update, change)
            hit(Failpoint.RESTORE_COMMITTED)

        return self._registry.exclusive(node, f"restoring {kind} {node}", steps)

    async def _close(self, kind: NodeKind, node: int) -> None:
        if kind is NodeKind.SNAPSHOT:
            opened = self._registry.snapshots.get(SnapshotId(node))
            if opened is not None:
                if opened.users:
                    raise InUseError(f"snapshot {node} is being read; disconnect first")
                await close_snapshot(self._registry.snapshots.pop(SnapshotId(node)))
            return
        volume = VolumeId(node)
        if volume in self._registry.volumes:
            self._registry.refuse_used(volume)
            try:
                await self._registry.close_volume(volume, give_up=True)
            except BockdError as error:
                # It is closed all the same, and its journal is read when it is opened again.
                log.warning("volume %s, moved to the trash, was not closed: %s", volume, error)

    def _move(self, kind: NodeKind, node: int, in_transaction: WithNode) -> None:
        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            catalogue.begin_trash()
            move_to_trash(catalogue, kind, node, self._registry.clock(), in_transaction)

        lock = self._lock(kind, node)
        try:
            self._store.index.update(change)
        finally:
            lock.release()

    def _lock(self, kind: NodeKind, node: int) -> FileLock:
        """Keep other processes from opening it at this moment; later its record does."""
        if kind is NodeKind.VOLUME:
            return lock_volume(self._store, VolumeId(node))
        return lock_snapshot(self._store, SnapshotId(node), shared=False)
