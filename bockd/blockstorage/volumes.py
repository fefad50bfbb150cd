"""Volumes (section 4.4.2): looking, creating, deleting. What changes one is in `changes`.

A volume of the API is a volume of the pool with a record beside it, under the same id; both are
made and removed in one transaction. Display names may repeat or be absent, the pool's names may
not: the pool's volume gets the display name when it is free and fit, else "<display name>-<id>",
else "volume-<id>", so that an operator finds it under the name its owner gave it. A name with "/"
is never fit: "snapshot/x" is how the operator's NBD clients ask for a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bockd.blockstorage import quota, rules
from bockd.blockstorage.contract import (
    NewVolume,
    Page,
    Status,
    TenantId,
    Volume,
)
from bockd.blockstorage.records import ImageRecord, Ledger, no_image
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.working import is_ours
from bockd.errors import BockdError, InUseError, InvalidRequestError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import GIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming
from bockd.pool.records import VolumeRecord
from bockd.validation import check_content_size, check_name


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is asked of the pool for a new volume."""

    size_bytes: int
    source: SnapshotId | None
    counted_gib: int


class Volumes:
    """The operations on volumes; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._pool = context.pool

    # -- looking -----------------------------------------------------------------------------

    def list(self, tenant: TenantId, page: Page) -> list[Volume]:
        """List a tenant's volumes (section 4.4.2.1)."""
        rules.check_page(page)
        with self._pool.index.reading() as txn:
            ledger, nodes = Ledger(txn), Nodes(txn)
            mine = ledger.volumes(tenant, page.marker or 0)
            return [self._as_it_is(nodes, volume) for volume in rules.cut_page(mine, page)]

    def show(self, tenant: TenantId, volume: VolumeId) -> Volume:
        """Return one volume (section 4.4.2.3)."""
        with self._pool.index.reading() as txn:
            return self._as_it_is(Nodes(txn), Ledger(txn).volume(tenant, volume))

    def _as_it_is(self, nodes: Nodes, volume: Volume) -> Volume:
        """With what the pool knows."""
        backing = self._context.backing(NodeKind.VOLUME, nodes.volume(volume.id))
        status = rules.status_shown(volume.status, refused=backing.error is not None)
        return replace(volume, status=status, backing=backing)

    # -- creating ----------------------------------------------------------------------------

    async def create(
        self, tenant: TenantId, new: NewVolume, *, may_use_fetched: bool = False
    ) -> Volume:
        """Create a volume (section 4.4.2.2): the pool's volume, its record and the tenant's usage
        change in one transaction.

        The volume is ready as soon as it exists, so the status `creating` is only in the reply, as
        specified, and is not stored. `may_use_fetched`: Glance has confirmed that the tenant may
        use the image.
        """
        new = self.checked(new)
        plan = self._plan(tenant, new, may_use_fetched=may_use_fetched)

        def in_transaction(txn: Transaction, record: VolumeRecord) -> None:
            ledger = Ledger(txn)
            # Both may have gone since the plan was made.
            if new.snapshot_id is not None:
                source = ledger.snapshot(tenant, new.snapshot_id)
                rules.check_can_be_cloned(source.id, source.status)
            if new.image_id is not None:
                ledger.image(new.image_id)
            ledger.add_volume(tenant, fresh_volume(new, record), self._context.quota_of)
            hit(Failpoint.API_VOLUME_RECORDED)

        record = await self._pool.create_volume(
            naming(NodeKind.VOLUME, new.display_name),
            plan.size_bytes,
            plan.source,
            in_transaction,
            new.content_bytes,
        )
        backing = self._context.backing(NodeKind.VOLUME, record)
        return replace(fresh_volume(new, record), status=Status.CREATING, backing=backing)

    async def create_waiting(self, tenant: TenantId, new: NewVolume) -> Volume:
        """Create a blank volume of the size of `new`, whose image is still to be fetched. Its
        stored status is `creating`, until `fill` or `fail`."""
        new = self.checked(new)
        size_bytes = rules.exact_size(new.size_gib, new.size_bytes)
        assert size_bytes is not None
        with self._pool.index.reading() as txn:
            record = Ledger(txn).tenant(tenant)
        quota.with_volume(
            self._context.quota_of(record), record.used, rules.size_in_gib(size_bytes)
        )

        def in_transaction(txn: Transaction, record: VolumeRecord) -> None:
            ledger = Ledger(txn)
            waiting = replace(fresh_volume(new, record), status=Status.CREATING)
            ledger.add_volume(tenant, waiting, self._context.quota_of)

        record_made = await self._pool.create_volume(
            naming(NodeKind.VOLUME, new.display_name), size_bytes, None, in_transaction
        )
        backing = self._context.backing(NodeKind.VOLUME, record_made)
        return replace(fresh_volume(new, record_made), status=Status.CREATING, backing=backing)

    async def fill(self, volume: VolumeId, image: ImageRecord) -> None:
        """Make the waiting volume a clone of its image, which has arrived, and `available`, in one
        transaction. Raise InvalidRequestError when the volume is too small."""

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            leave_creating(txn, volume, Status.AVAILABLE)

        await self._pool.fill_volume(volume, image.snapshot, in_transaction)

    async def fail(self, volume: VolumeId) -> None:
        """Record that the image of a waiting volume cannot be fetched. Do nothing if the operator
        has removed the volume."""
        await self._context.update(lambda txn: leave_creating(txn, volume, Status.ERROR))

    def checked(self, new: NewVolume) -> NewVolume:
        """Return `new` with its values checked, in the form in which they are stored. Raises
        InvalidRequestError."""
        rules.check_one_source(new)
        size_bytes = rules.exact_size(new.size_gib, new.size_bytes)
        if size_bytes is None and new.is_blank:
            raise InvalidRequestError("a blank volume needs a size")
        content_bytes = new.content_bytes
        if content_bytes is not None:
            if not new.is_blank:
                raise InvalidRequestError("content_bytes is for a blank volume")
            content_bytes = check_content_size(content_bytes, new.size_bytes)
        rules.check_text("display_name", new.display_name)
        rules.check_text("display_description", new.display_description)
        rules.check_text("availability_zone", new.availability_zone)
        return replace(
            new,
            content_bytes=content_bytes,
            metadata=rules.check_metadata(new.metadata),
            availability_zone=new.availability_zone or self._context.default_zone,
        )

    def _plan(self, tenant: TenantId, new: NewVolume, *, may_use_fetched: bool) -> _Plan:
        """From what is there now; also refuses early what the transaction would refuse anyway,
        before any file is made."""
        with self._pool.index.reading() as txn:
            ledger = Ledger(txn)
            plan = _plan_source(ledger, Nodes(txn), tenant, new)
            if new.image_id is not None and not may_use_fetched:
                refuse_fetched(ledger.image(new.image_id))
            record = ledger.tenant(tenant)
        quota.with_volume(self._context.quota_of(record), record.used, plan.counted_gib)
        return plan

    # -- deleting ----------------------------------------------------------------------------

    async def delete(self, tenant: TenantId, volume: VolumeId, hold: str | None = None) -> None:
        """Delete a volume (section 4.4.2.4), with `hold` only if it is held for this reason. The
        status `deleting` excludes other operations while the pool closes the volume. Then the
        pool's volume and the record are removed in one transaction."""
        with self._context.working_on(NodeKind.VOLUME, volume):
            await self._delete(tenant, volume, hold)

    async def _delete(self, tenant: TenantId, volume: VolumeId, hold: str | None) -> None:
        before = await self._context.update(lambda txn: _begin_delete(txn, tenant, volume, hold))
        hit(Failpoint.API_DELETING_VOLUME)
        try:
            await self._pool.delete_volume(volume, forget_deleting)
        except InUseError as error:
            await self._context.update(lambda txn: leave_deleting(txn, volume, before))
            raise rules.in_use(NodeKind.VOLUME, error) from None
        except NotFoundError:
            raise rules.not_found(NodeKind.VOLUME, volume) from None
        except BockdError:
            await self._context.update(
                lambda txn: leave_deleting(txn, volume, Status.ERROR_DELETING)
            )
            raise
        self._context.exports.forget(NodeKind.VOLUME, volume)


def naming(kind: NodeKind, display_name: str | None) -> Naming:
    """Return what chooses the name of a volume or snapshot in the pool; see the module's
    docstring."""

    def choose(nodes: Nodes, node: int) -> str:
        return next(
            name
            for name in _names(kind, display_name, node)
            if _is_fit(name) and nodes.name_is_free(kind, name)
        )

    return choose


def _names(kind: NodeKind, display_name: str | None, node: int) -> Iterator[str]:
    if display_name:
        yield display_name
        yield f"{display_name}-{node}"
    yield f"{kind}-{node}"
    # Somebody may have taken even that name for another one.
    number = 2
    while True:
        yield f"{kind}-{node}-{number}"
        number += 1


def _is_fit(name: str) -> bool:
    if "/" in name:
        return False
    try:
        check_name(name)
    except InvalidRequestError:
        return False
    return True


def status_now(nodes: Nodes, volume: Volume) -> Status:
    """Return the volume's status for a transaction that changes it: `error` when a failed sync is
    on record. A failure that only this process knows of is found by the pool."""
    if volume.status is Status.AVAILABLE and nodes.volume(volume.id).failed is not None:
        return Status.ERROR
    return volume.status


def move_volume(txn: Transaction, tenant: TenantId, volume: VolumeId, new: Status) -> Volume:
    """Change the status of one of the tenant's volumes, and return the volume as it was before.

    Raises NotFoundError, and InvalidStateError when its present status does not allow that.
    """
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    rules.check_move(NodeKind.VOLUME, volume, status_now(Nodes(txn), found), new)
    ledger.put_volume(tenant, replace(found, status=new))
    return found


def forget_record(txn: Transaction, record: VolumeRecord) -> None:
    """Remove the volume's record, if it has one, and the import that fills it, in the same
    transaction: `in_transaction` of the pool's deletion. Raise InUseError while the volume is
    attached."""
    ledger = Ledger(txn)
    ledger.remove_import(record.id)
    refuse_attached(txn, record)
    owned = ledger.owned_volume(record.id)
    if owned is not None:
        ledger.remove_volume(owned)


def forget_deleting(txn: Transaction, record: VolumeRecord) -> None:
    """Remove the record of a volume that is `deleting`, as `forget_record` does. Raise
    InvalidStateError if it is not, or not by this gateway: what has begun its deletion did not
    answer for long, and others have resolved that."""
    owned = Ledger(txn).owned_volume(record.id)
    if owned is not None and not is_ours(txn, owned, Status.DELETING):
        rules.refuse_state(
            NodeKind.VOLUME, record.id, f"its deletion was interrupted; it is {owned.volume.status}"
        )
    forget_record(txn, record)


def refuse_attached(txn: Transaction, record: VolumeRecord) -> None:
    """Raise InUseError for a volume that is attached to a server, connected or not:
    `in_transaction` of the pool's reverting. What the server still holds in its caches belongs to
    the old content."""
    owned = Ledger(txn).owned_volume(record.id)
    if owned is not None and owned.volume.attachment is not None:
        raise InUseError(
            f"volume {record.id} is attached to server {owned.volume.attachment.server_id}; "
            "detach it first"
        )


def fresh_volume(new: NewVolume, record: VolumeRecord) -> Volume:
    """Return the record of a volume that the pool has made."""
    return Volume(
        id=record.id,
        status=Status.AVAILABLE,
        size_gib=rules.size_in_gib(record.size_bytes),
        display_name=new.display_name,
        display_description=new.display_description,
        availability_zone=new.availability_zone or "",
        snapshot_id=new.snapshot_id,
        image_id=new.image_id,
        source_volume=new.source_volume,
        metadata=new.metadata,
        created_at=record.created_at,
        attachment=None,
    )


def _plan_source(ledger: Ledger, nodes: Nodes, tenant: TenantId, new: NewVolume) -> _Plan:
    if new.snapshot_id is not None:
        source = ledger.snapshot(tenant, new.snapshot_id)
        rules.check_can_be_cloned(source.id, source.status)
        size_bytes = new.size_bytes or nodes.snapshot(source.id).size_bytes
        return _Plan(size_bytes, source.id, rules.size_in_gib(size_bytes))
    wanted = rules.exact_size(new.size_gib, new.size_bytes)
    if new.image_id is not None:
        found = ledger.image(new.image_id)
        size_bytes = wanted or found.image.min_size_gib * GIB
        size_gib = rules.size_in_gib(size_bytes)
        if size_gib < found.image.min_size_gib:
            raise InvalidRequestError(
                f"image {found.image.id} needs {found.image.min_size_gib} GiB; "
                f"a volume of {size_gib} GiB is too small for it"
            )
        return _Plan(size_bytes, found.snapshot, size_gib)
    assert wanted is not None
    return _Plan(wanted, None, rules.size_in_gib(wanted))


def refuse_fetched(record: ImageRecord) -> None:
    """Raise NotFoundError for an image that was fetched: only users to whom Glance shows it may use
    it."""
    if record.fetched:
        raise no_image(record.image.id)


def leave_creating(txn: Transaction, volume: VolumeId, status: Status) -> None:
    """Take a volume out of `creating`. Do nothing if the operator has removed it meanwhile. Raise
    InvalidStateError if it is not `creating` any more."""
    ledger = Ledger(txn)
    owned = ledger.owned_volume(volume)
    if owned is not None:
        rules.check_move(NodeKind.VOLUME, volume, owned.volume.status, status)
        if not is_ours(txn, owned, Status.CREATING):
            rules.refuse_state(NodeKind.VOLUME, volume, "another gateway has taken it over")
        ledger.put_volume(owned.tenant, replace(owned.volume, status=status))


def _begin_delete(txn: Transaction, tenant: TenantId, volume: VolumeId, hold: str | None) -> Status:
    found = move_volume(txn, tenant, volume, Status.DELETING)
    rules.check_hold_of_deleted(volume, found.status, found.hold, hold)
    return found.status


def leave_deleting(txn: Transaction, volume: VolumeId, status: Status) -> None:
    """Take a volume out of `deleting`. Do nothing if the operator has removed it meanwhile, or
    another gateway has resolved the deletion."""
    ledger = Ledger(txn)
    owned = ledger.owned_volume(volume)
    if owned is not None and is_ours(txn, owned, Status.DELETING):
        rules.check_move(NodeKind.VOLUME, volume, owned.volume.status, status)
        ledger.put_volume(owned.tenant, replace(owned.volume, status=status))
