"""Adopting: a tenant takes over what belongs to nobody.

Pools of older versions have volumes and snapshots that no tenant owns; their data is safe, and
nobody sees them. The operator names them one by one, because an image is such a snapshot too.
"""

from __future__ import annotations

from bockd.blockstorage import rules
from bockd.blockstorage.contract import UNLIMITED, Quota, Snapshot, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger, text_key
from bockd.blockstorage.running import DEFAULT_ZONE
from bockd.errors import ConflictError, InvalidRequestError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord

_ANY_NUMBER = Quota(UNLIMITED, UNLIMITED, UNLIMITED)
"""The operator decides, whatever the tenant's quota."""


def find_unowned(txn: Transaction) -> tuple[list[VolumeRecord], list[SnapshotRecord]]:
    """Return the volumes and the snapshots that no tenant owns and that can be adopted, by id."""
    ledger, nodes = Ledger(txn), Nodes(txn)
    volumes = {owned.volume.id for owned in ledger.all_volumes()}
    volumes |= {filling.volume for filling in ledger.imports()}
    snapshots = {owned.snapshot.id for owned in ledger.all_snapshots()}
    snapshots |= {image.snapshot for image in ledger.images()}
    return (
        [record for record in nodes.shown_volumes() if record.id not in volumes],
        [record for record in nodes.shown_snapshots() if record.id not in snapshots],
    )


def adopt(txn: Transaction, kind: NodeKind, ref: str, tenant: TenantId) -> None:
    """Give a volume or snapshot that belongs to nobody, by its id or its name in the pool, to a
    tenant, by the id that its tokens have: it may be another identity service's.

    Raises NotFoundError, ConflictError for one that has an owner, or is or becomes an image.
    """
    if text_key(tenant) is None or "\0" in tenant:
        raise InvalidRequestError("a tenant's id has 1 to 255 bytes, none of them zero")
    node = Nodes(txn).find(kind, ref)
    if kind is NodeKind.VOLUME:
        _adopt_volume(txn, tenant, VolumeId(node))
    else:
        _adopt_snapshot(txn, tenant, SnapshotId(node))
    hit(Failpoint.ADOPT_CHANGED)


def _adopt_volume(txn: Transaction, tenant: TenantId, volume: VolumeId) -> None:
    ledger = Ledger(txn)
    if (owned := ledger.owned_volume(volume)) is not None:
        raise ConflictError(f"volume {volume} belongs to tenant {owned.tenant} already")
    if (filling := ledger.import_into(volume)) is not None:
        raise ConflictError(f"volume {volume} is to become image {filling.image.id}")
    record = Nodes(txn).volume(volume)
    adopted = Volume(
        id=volume,
        status=Status.AVAILABLE,
        size_gib=rules.size_in_gib(record.size_bytes),
        display_name=record.name,
        display_description=None,
        availability_zone=DEFAULT_ZONE,
        snapshot_id=record.from_snapshot,
        image_id=None,
        metadata={},
        created_at=record.created_at,
        attachment=None,
    )
    ledger.add_volume(tenant, adopted, lambda _: _ANY_NUMBER)


def _adopt_snapshot(txn: Transaction, tenant: TenantId, snapshot: SnapshotId) -> None:
    ledger = Ledger(txn)
    if (owned := ledger.owned_snapshot(snapshot)) is not None:
        raise ConflictError(f"snapshot {snapshot} belongs to tenant {owned.tenant} already")
    for image in ledger.images():
        if image.snapshot == snapshot:
            raise ConflictError(f"snapshot {snapshot} is image {image.image.id}; it serves all")
    record = Nodes(txn).snapshot(snapshot)
    adopted = Snapshot(
        id=snapshot,
        volume_id=record.volume,
        status=Status.AVAILABLE,
        size_gib=rules.size_in_gib(record.size_bytes),
        display_name=record.name,
        display_description=None,
        created_at=record.created_at,
    )
    ledger.add_snapshot(tenant, adopted, lambda _: _ANY_NUMBER)
