"""Volumes made of other volumes: what Cinder calls `source_volid`.

A pool makes volumes of snapshots. So a clone has one of its own, which is `deleting` from the
moment in which it is taken: nobody else can use it, whoever lists snapshots sees it, and what a
crash leaves of it goes as any interrupted deletion does (`interrupted`). When the clone is made it
is deleted; the volume and its clone do not need each other. A snapshot that cannot be deleted, as
while somebody reads it, is in `error_deleting`, and its tenant can delete it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from bockd.blockstorage import quota, rules
from bockd.blockstorage.contract import NewSnapshot, NewVolume, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.snapshots import forget_deleting, fresh_snapshot, leave_deleting
from bockd.blockstorage.volumes import Volumes, fresh_volume, naming, status_now
from bockd.blockstorage.working import is_ours
from bockd.errors import BockdError, InvalidStateError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import Steps

log = logging.getLogger(__name__)

DESCRIPTION = "Its volume is being cloned; it goes when the clone is made."


class Clones:
    """Makes them; see bockd.blockstorage.contract.BlockStorage.create_volume."""

    def __init__(self, context: StorageContext, volumes: Volumes) -> None:
        self._context = context
        self._pool = context.pool
        self._volumes = volumes

    async def create(self, tenant: TenantId, new: NewVolume) -> Volume:
        """Create a volume that holds what another one holds now, which may be in use."""
        new = self._volumes.checked(new)
        source = new.source_volume
        assert source is not None
        size_bytes = self._plan(tenant, source, new)
        frozen = await self._freeze(tenant, source)
        with self._context.working_on(NodeKind.SNAPSHOT, frozen.id):
            try:
                record = await self._copy(tenant, new, frozen.id, size_bytes)
            finally:
                await self._forget(frozen.id)
        backing = self._context.backing(NodeKind.VOLUME, record)
        return replace(fresh_volume(new, record), status=Status.CREATING, backing=backing)

    def _plan(self, tenant: TenantId, source: VolumeId, new: NewVolume) -> int:
        """Return the clone's size. Raises what would be raised later, before anything is made."""
        with self._pool.index.reading() as txn:
            _check_source(txn, tenant, source)
            origin = Nodes(txn).volume(source)
            record = Ledger(txn).tenant(tenant)
        # What this process alone knows; in the words that say what to do.
        if failure := self._pool.failure(origin):
            raise InvalidStateError(f"Invalid volume: {failure}")
        size_bytes = rules.clone_size(source, origin.size_bytes, new)
        quota.with_volume(
            self._context.quota_of(record), record.used, rules.size_in_gib(size_bytes)
        )
        return size_bytes

    def _freeze(self, tenant: TenantId, source: VolumeId) -> Steps[SnapshotRecord]:
        """Take the snapshot, which is `deleting`."""
        wanted = NewSnapshot(source, f"clone-of-{source}", DESCRIPTION, consumes_quota=False)

        def in_transaction(txn: Transaction, record: SnapshotRecord) -> None:
            _check_source(txn, tenant, source)
            snapshot = replace(fresh_snapshot(wanted, record), status=Status.DELETING)
            Ledger(txn).add_snapshot(tenant, snapshot, self._context.quota_of)
            hit(Failpoint.API_CLONE_FROZEN)

        name = naming(NodeKind.SNAPSHOT, wanted.display_name)
        return self._pool.create_snapshot(source, name, in_transaction)

    def _copy(
        self, tenant: TenantId, new: NewVolume, frozen: SnapshotId, size_bytes: int
    ) -> Steps[VolumeRecord]:
        def in_transaction(txn: Transaction, record: VolumeRecord) -> None:
            ledger = Ledger(txn)
            owned = ledger.owned_snapshot(frozen)
            if owned is None or not is_ours(txn, owned, Status.DELETING):
                rules.refuse_state(NodeKind.SNAPSHOT, frozen, "another gateway is deleting it")
            ledger.add_volume(tenant, fresh_volume(new, record), self._context.quota_of)
            hit(Failpoint.API_VOLUME_RECORDED)

        return self._pool.create_volume(
            naming(NodeKind.VOLUME, new.display_name), size_bytes, frozen, in_transaction
        )

    async def _forget(self, frozen: SnapshotId) -> None:
        """Delete the snapshot. The clone is whole whatever becomes of that."""
        hit(Failpoint.API_CLONE_MADE)
        try:
            await self._pool.delete_snapshot(frozen, forget_deleting)
        except BockdError as error:
            log.warning("snapshot %s, of which a clone was made, stays: %s", frozen, error)
            # Where even that fails, the next start deletes it.
            with suppress(BockdError):
                await self._context.update(
                    lambda txn: leave_deleting(txn, frozen, Status.ERROR_DELETING)
                )
        else:
            self._context.exports.forget(NodeKind.SNAPSHOT, frozen)


def _check_source(txn: Transaction, tenant: TenantId, source: VolumeId) -> None:
    volume = Ledger(txn).volume(tenant, source)
    rules.check_can_be_snapshotted(volume.id, status_now(Nodes(txn), volume), force=True)
