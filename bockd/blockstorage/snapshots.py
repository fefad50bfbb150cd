"""Snapshots (section 4.4.4): listing, creating, deleting.

As with volumes, the pool's snapshot and its record are made and removed in one transaction. A
snapshot and the volumes before and after it are independent of each other; the pool's maps ensure
that.
"""

from __future__ import annotations

from dataclasses import replace

from bockd.blockstorage import quota, rules
from bockd.blockstorage.contract import NewSnapshot, Page, Snapshot, Status, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.volumes import naming, status_now
from bockd.blockstorage.working import is_ours
from bockd.errors import BockdError, InUseError, InvalidStateError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord
from bockd.pool.reports import Changes
from bockd.runtime.steps import Steps

MAX_CHANGES = 10_000
"""Ranges in one answer: some 250 KiB. Of a pool in Ceph each answer costs a look at all objects."""


class Snapshots:
    """The operations on snapshots; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._pool = context.pool

    def list(self, tenant: TenantId, page: Page) -> list[Snapshot]:
        """List a tenant's snapshots (section 4.4.4.1)."""
        rules.check_page(page)
        with self._pool.index.reading() as txn:
            nodes = Nodes(txn)
            mine = Ledger(txn).snapshots(tenant, page.marker or 0)
            return [self._as_it_is(nodes, found) for found in rules.cut_page(mine, page)]

    def show(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        """Return one snapshot (section 4.4.4.3)."""
        with self._pool.index.reading() as txn:
            return self._as_it_is(Nodes(txn), Ledger(txn).snapshot(tenant, snapshot))

    def _as_it_is(self, nodes: Nodes, snapshot: Snapshot) -> Snapshot:
        """With what the pool knows."""
        record = nodes.snapshot(snapshot.id)
        return replace(snapshot, backing=self._context.backing(NodeKind.SNAPSHOT, record))

    async def create(self, tenant: TenantId, new: NewSnapshot) -> Snapshot:
        """Create a snapshot in one transaction (section 4.4.4.2). The status in the reply is
        `creating`, as for a volume."""
        rules.check_text("display_name", new.display_name)
        rules.check_text("display_description", new.display_description)
        with self._pool.index.reading() as txn:
            # What is refused here costs no flush of the volume and no file.
            self._check(txn, tenant, new)
            origin = Nodes(txn).volume(new.volume_id)
        # What this process alone knows; in the words that say what to do.
        if failure := self._pool.failure(origin):
            raise InvalidStateError(f"Invalid volume: {failure}")

        def in_transaction(txn: Transaction, record: SnapshotRecord) -> None:
            self._check(txn, tenant, new)
            Ledger(txn).add_snapshot(tenant, fresh_snapshot(new, record), self._context.quota_of)
            hit(Failpoint.API_SNAPSHOT_RECORDED)

        record = await self._pool.create_snapshot(
            new.volume_id, naming(NodeKind.SNAPSHOT, new.display_name), in_transaction
        )
        backing = self._context.backing(NodeKind.SNAPSHOT, record)
        return replace(fresh_snapshot(new, record), status=Status.CREATING, backing=backing)

    def _check(self, txn: Transaction, tenant: TenantId, new: NewSnapshot) -> None:
        ledger = Ledger(txn)
        volume = ledger.volume(tenant, new.volume_id)
        rules.check_can_be_snapshotted(volume.id, status_now(Nodes(txn), volume), force=new.force)
        if new.consumes_quota:
            record = ledger.tenant(tenant)
            quota.with_snapshot(self._context.quota_of(record), record.used, volume.id)
        else:
            mine = ledger.snapshots(tenant)
            rules.check_uncounted(
                volume.id,
                sum(
                    one.volume_id == volume.id
                    and not one.consumes_quota
                    and one.status is not Status.DELETING  # of a volume that is being cloned
                    for one in mine
                ),
            )

    def changes(
        self, tenant: TenantId, older: SnapshotId, newer: SnapshotId, offset: int
    ) -> Steps[Changes]:
        """Find where two snapshots differ."""
        offset = rules.check_offset(offset)
        with self._pool.index.reading() as txn:
            ledger = Ledger(txn)
            for one in (older, newer):
                ledger.snapshot(tenant, one)
        return self._pool.changes(older, newer, offset, MAX_CHANGES)

    async def delete(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        """Delete a snapshot in the same steps as a volume (section 4.4.4.4)."""
        with self._context.working_on(NodeKind.SNAPSHOT, snapshot):
            await self._delete(tenant, snapshot)

    async def _delete(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        before = await self._context.update(lambda txn: _begin_delete(txn, tenant, snapshot))
        hit(Failpoint.API_DELETING_SNAPSHOT)
        try:
            await self._pool.delete_snapshot(snapshot, forget_deleting)
        except InUseError as error:
            await self._context.update(lambda txn: leave_deleting(txn, snapshot, before))
            raise rules.in_use(NodeKind.SNAPSHOT, error) from None
        except NotFoundError:
            raise rules.not_found(NodeKind.SNAPSHOT, snapshot) from None
        except BockdError:
            await self._context.update(
                lambda txn: leave_deleting(txn, snapshot, Status.ERROR_DELETING)
            )
            raise
        self._context.exports.forget(NodeKind.SNAPSHOT, snapshot)


def forget_record(txn: Transaction, record: SnapshotRecord) -> None:
    """Remove the snapshot's record, if it has one, in the same transaction: `in_transaction` of the
    pool's deletion. Raise InUseError for a snapshot that is an image."""
    ledger = Ledger(txn)
    for found in ledger.images():
        if found.snapshot == record.id:
            raise InUseError(
                f"snapshot {record.id} is image {found.image.id} ({found.image.name}); "
                "delete the image instead"
            )
    owned = ledger.owned_snapshot(record.id)
    if owned is not None:
        ledger.remove_snapshot(owned)


def forget_deleting(txn: Transaction, record: SnapshotRecord) -> None:
    """Remove the record of a snapshot that is `deleting`, as `forget_record` does. Raise
    InvalidStateError if it is not, or not by this gateway: others have resolved its deletion."""
    owned = Ledger(txn).owned_snapshot(record.id)
    if owned is not None and not is_ours(txn, owned, Status.DELETING):
        rules.refuse_state(
            NodeKind.SNAPSHOT,
            record.id,
            f"its deletion was interrupted; it is {owned.snapshot.status}",
        )
    forget_record(txn, record)


def fresh_snapshot(new: NewSnapshot, record: SnapshotRecord) -> Snapshot:
    """Return the record of a snapshot that the pool has made."""
    return Snapshot(
        id=record.id,
        volume_id=record.volume,
        status=Status.AVAILABLE,
        size_gib=rules.size_in_gib(record.size_bytes),
        display_name=new.display_name,
        display_description=new.display_description,
        created_at=record.created_at,
        consumes_quota=new.consumes_quota,
    )


def _begin_delete(txn: Transaction, tenant: TenantId, snapshot: SnapshotId) -> Status:
    ledger = Ledger(txn)
    found = ledger.snapshot(tenant, snapshot)
    rules.check_move(NodeKind.SNAPSHOT, snapshot, found.status, Status.DELETING)
    ledger.put_snapshot(tenant, replace(found, status=Status.DELETING))
    return found.status


def leave_deleting(txn: Transaction, snapshot: SnapshotId, status: Status) -> None:
    """Take a snapshot out of `deleting`. Do nothing if the operator has removed it meanwhile, or
    another gateway has resolved the deletion."""
    ledger = Ledger(txn)
    owned = ledger.owned_snapshot(snapshot)
    if owned is not None and is_ours(txn, owned, Status.DELETING):
        rules.check_move(NodeKind.SNAPSHOT, snapshot, owned.snapshot.status, status)
        ledger.put_snapshot(owned.tenant, replace(owned.snapshot, status=status))
