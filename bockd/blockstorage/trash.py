"""The trash: what tenants delete is kept for some time, and can be restored.

| in one transaction | what happens                                                               |
|--------------------|----------------------------------------------------------------------------|
| put                | the pool's node gets another name and its mark; its record moves to TRASH   |
| restore            | all of that back, within the quota                                         |
| delete, expire     | the pool forgets the node, and the record goes                             |

So there is no status in between that a crash could leave behind. Each of them judges the record
again inside its transaction: of one that is restored while it expires, one of both happens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Page, Status, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.trashbounds import beyond_quota, is_bounded, latest
from bockd.blockstorage.trashcontract import TrashedNode
from bockd.blockstorage.trashrecords import TRASH, TrashLedger, TrashRecord
from bockd.blockstorage.volumes import naming
from bockd.errors import BockdError, InUseError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.reports import Space
from bockd.pool.trash import record_of
from bockd.runtime.steps import Steps, blocking

log = logging.getLogger(__name__)


class Trash:
    """The operations; see bockd.blockstorage.trashcontract.TrashStorage."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._pool = context.pool
        self.keep_seconds = context.trash.keep_seconds

    # -- looking -----------------------------------------------------------------------------

    def list(self, tenant: TenantId, page: Page) -> list[TrashedNode]:
        """List what a tenant has in the trash."""
        rules.check_page(page)
        with self._pool.index.reading() as txn:
            records = TrashLedger(txn).of_tenant(tenant, page.marker or 0)
            return rules.cut_page(_all_seen(Nodes(txn), records), page)

    def show(self, tenant: TenantId, node: int) -> TrashedNode:
        """Return one of a tenant's."""
        with self._pool.index.reading() as txn:
            return _seen(Nodes(txn), TrashLedger(txn).find(tenant, node))

    def space(self, tenant: TenantId, node: int) -> Steps[Space]:
        """Measure what one takes."""
        return self._pool.measure(self.show(tenant, node).kind, node)

    def keeps(self, tenant: TenantId, kind: NodeKind, node: int) -> bool:
        """Return whether a volume or snapshot goes to the trash when it is deleted. Snapshots that
        are made for a copy do not. Raises NotFoundError for a snapshot that does not exist."""
        if not self._context.trash.keeps:
            return False
        if kind is NodeKind.VOLUME:
            return True
        with self._pool.index.reading() as txn:
            return Ledger(txn).snapshot(tenant, SnapshotId(node)).consumes_quota

    # -- changing ----------------------------------------------------------------------------

    async def put(
        self, tenant: TenantId, kind: NodeKind, node: int, hold: str | None = None
    ) -> None:
        """Move a volume or snapshot to the trash; with `hold` a volume that is held for this
        reason. Raises what its deletion does; then it is as it was before."""
        with self._pool.index.reading() as txn:
            # What is refused here is not even closed.
            _deletable(Ledger(txn), tenant, kind, node, hold)
        chosen = self._context.trash
        at = 0.0

        def in_transaction(txn: Transaction, found: VolumeRecord | SnapshotRecord) -> None:
            nonlocal at
            assert found.trashed is not None
            at = found.trashed.at
            record = _deletable(Ledger(txn), tenant, kind, node, hold)
            TrashLedger(txn).add(
                TrashRecord(
                    tenant=tenant,
                    deleted_at=at,
                    expires_at=at + chosen.keep_seconds,
                    counted=chosen.counts_in_quota,
                    volume=record.volume,
                    snapshot=record.snapshot,
                )
            )
            hit(Failpoint.API_TRASHED)

        try:
            await self._pool.trash(kind, node, in_transaction)
        except InUseError as error:
            raise rules.in_use(kind, error) from None
        except NotFoundError:
            raise rules.not_found(kind, node) from None
        self._context.exports.forget(kind, node, kept=True)
        await self._drop_beyond_quota(tenant, kind, at)

    async def _drop_beyond_quota(self, tenant: TenantId, kind: NodeKind, at: float) -> None:
        """Delete the oldest of a tenant's for good that are more than one quota, of which one was
        deleted `at` this moment. Raises nothing: what was asked for is done."""

        def find() -> list[TrashRecord]:
            now = latest(self._pool, at)
            with self._pool.index.reading() as txn:
                quota = self._context.quota_of(Ledger(txn).tenant(tenant))
                if not is_bounded(kind, quota):
                    return []  # and nothing is read
                return beyond_quota(TrashLedger(txn).of_kind(kind, tenant), quota, now)

        try:
            beyond = await blocking(find)
        except BockdError as error:
            log.warning("the trash of tenant %s was not held to its quota: %s", tenant, error)
            return
        for record in beyond:
            try:
                await self.purge(record)
            except NotFoundError:
                continue  # somebody has restored it, or was faster
            except BockdError as error:
                log.warning("%s %s stays in the trash: %s", kind, record.node.id, error)
                continue
            log.info(
                "%s %s (%s) is deleted for good: tenant %s has more in the trash than its quota",
                kind,
                record.node.id,
                record.node.display_name,
                tenant,
            )

    async def restore(self, tenant: TenantId, node: int) -> TrashedNode:
        """Restore one of a tenant's, and return what it was."""
        with self._pool.index.reading() as txn:
            record = TrashLedger(txn).find(tenant, node)
            seen = _seen(Nodes(txn), record)

        def in_transaction(txn: Transaction, _found: VolumeRecord | SnapshotRecord) -> None:
            TrashLedger(txn).restore(record, self._context.quota_of)
            hit(Failpoint.API_RESTORED)

        await self._pool.restore(record.kind, node, _as_before(record), in_transaction)
        return seen

    async def delete(self, tenant: TenantId, node: int) -> None:
        """Delete one of a tenant's for good."""
        with self._pool.index.reading() as txn:
            record = TrashLedger(txn).find(tenant, node)
        await self.purge(record)

    async def purge(self, record: TrashRecord) -> None:
        """Delete what a record says for good. Raises NotFoundError if it is not in the trash any
        more, or was restored since the record was read."""

        def in_transaction(txn: Transaction, _found: VolumeRecord | SnapshotRecord) -> None:
            TrashLedger(txn).remove(record)
            hit(Failpoint.API_TRASH_FORGOTTEN)

        with self._pool.index.reading() as txn:
            # One that was restored is not even closed.
            TrashLedger(txn).refuse_restored(record)
        if record.kind is NodeKind.VOLUME:
            await self._pool.delete_volume(VolumeId(record.node.id), in_transaction)
        else:
            await self._pool.delete_snapshot(SnapshotId(record.node.id), in_transaction)
        self._context.exports.forget(record.kind, record.node.id)

    async def all_of(self, tenant: TenantId) -> Sequence[TrashRecord]:
        """Read all that a tenant has in the trash."""

        def find() -> list[TrashRecord]:
            with self._pool.index.reading() as txn:
                return list(TrashLedger(txn).of_tenant(tenant))

        return await blocking(find)

    # -- what the daemon does by itself --------------------------------------------------------

    def by_age(self) -> Sequence[TrashRecord]:
        """Return the records of all tenants', that which was deleted first before the others; those
        that are damaged are logged and left out. Blocks."""
        with self._pool.index.reading() as txn:
            if not txn.count(TRASH):
                return ()
            return sorted(TrashLedger(txn).sound_records(), key=lambda record: record.deleted_at)


def _deletable(
    ledger: Ledger, tenant: TenantId, kind: NodeKind, node: int, hold: str | None
) -> TrashRecord:
    """The record of a tenant's volume or snapshot that may be deleted, without times. Raises
    NotFoundError, InvalidStateError; ConflictError: the volume is held for another reason."""
    if kind is NodeKind.VOLUME:
        volume = ledger.volume(tenant, VolumeId(node))
        rules.check_move(kind, node, volume.status, Status.DELETING)
        rules.check_hold_of_deleted(node, volume.status, volume.hold, hold)
        return TrashRecord(tenant, 0.0, 0.0, counted=False, volume=volume)
    snapshot = ledger.snapshot(tenant, SnapshotId(node))
    rules.check_move(kind, node, snapshot.status, Status.DELETING)
    return TrashRecord(tenant, 0.0, 0.0, counted=False, snapshot=snapshot)


def _as_before(record: TrashRecord) -> Naming:
    """Choose the name that it had in the pool; if that is taken, as for a new one."""
    otherwise = naming(record.kind, record.node.display_name)

    def choose(nodes: Nodes, node: int) -> str:
        trashed = record_of(nodes, record.kind, node).trashed
        if trashed is not None and nodes.name_is_free(record.kind, trashed.name):
            return trashed.name
        return otherwise(nodes, node)

    return choose


def _all_seen(nodes: Nodes, records: Iterable[TrashRecord]) -> Iterator[TrashedNode]:
    """Yield what tenants see of records, but of those without a sound node in the pool."""
    for record in records:
        try:
            yield _seen(nodes, record)
        except BockdError as error:
            log.error("%s %s in the trash: %s", record.kind, record.node.id, error)  # noqa: TRY400


def _seen(nodes: Nodes, record: TrashRecord) -> TrashedNode:
    found = record_of(nodes, record.kind, record.node.id)
    return TrashedNode(
        kind=record.kind,
        node=record.node,
        name=found.name if found.trashed is None else found.trashed.name,
        size_bytes=found.size_bytes,
        deleted_at=record.deleted_at,
        expires_at=record.expires_at,
        consumes_quota=record.counted,
    )
