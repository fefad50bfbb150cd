"""What tenants have in the trash: a record for each volume or snapshot, beside the pool's.

    TRASH   kind | tenant | 0 | id:u64   TrashRecord

Who deletes something while there is a trash moves its record here from API_VOLUMES or API_SNAPSHOTS
(bockd.blockstorage.records), so nothing finds it that looks for a tenant's volumes. Invariants: a
record here belongs to a node of the pool that is in the pool's trash, and the reverse; what is here
has no record there; a tenant's `used` has those that are `counted`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge
from typing import NamedTuple

import msgspec

from bockd.blockstorage.contract import UNLIMITED, Quota, Snapshot, TenantId, Usage, Volume
from bockd.blockstorage.quota import without_snapshot, without_volume
from bockd.blockstorage.records import (
    Ledger,
    OwnedSnapshot,
    OwnedVolume,
    QuotaOf,
    TenantRecord,
    decode,
    owned_key,
)
from bockd.blockstorage.rules import in_id_range
from bockd.errors import NotFoundError
from bockd.index.tables import Table
from bockd.model import GIB, NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import sound_records

TRASH = Table(b"trash")

FIRST, LAST = b"", b"\xff" * 300
"""Before and after each key."""


@dataclass(frozen=True, slots=True)
class TrashRecord:
    """TRASH/<kind, tenant, id>. Either `volume` or `snapshot` is there: the record that it had,
    with the status in which it was deleted, and which it has when it is restored."""

    tenant: TenantId
    deleted_at: float
    expires_at: float
    """It is deleted for good then. What was promised counts, whatever the configuration says
    later."""
    counted: bool
    """The tenant's quota has it still."""
    volume: Volume | None = None
    snapshot: Snapshot | None = None

    def __post_init__(self) -> None:
        """Refuse a record of both or none, as one that is stored may be. Raises ValueError."""
        if (self.volume is None) == (self.snapshot is None):
            raise ValueError("it is of one volume or of one snapshot")

    @property
    def kind(self) -> NodeKind:
        """What it is."""
        return NodeKind.SNAPSHOT if self.volume is None else NodeKind.VOLUME

    @property
    def node(self) -> Volume | Snapshot:
        """The record that it had."""
        node = self.volume or self.snapshot
        assert node is not None
        return node

    @property
    def key(self) -> bytes:
        """Its key in TRASH."""
        return owned_key(self.kind, self.tenant, self.node.id)

    def without(self, used: Usage) -> Usage:
        """Return a usage in which this one does not count any more."""
        if not self.counted:
            return used
        if self.volume is not None:
            return without_volume(used, self.volume.size_gib)
        return without_snapshot(used)


class TrashCount(NamedTuple):
    """How many of all tenants' are in the trash."""

    volumes: int
    snapshots: int
    size_bytes: int
    """Of the volumes, written or not, in whole GiB."""
    oldest_at: float
    """When the first of them was deleted; 0: there is none."""


NOTHING_IN_TRASH = TrashCount(0, 0, 0, 0.0)


class TrashLedger:
    """The records of one transaction."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn
        self._ledger = Ledger(txn)

    def records(self) -> Iterator[TrashRecord]:
        """Yield all records. Raises DamagedError."""
        for _, payload in self.txn.scan(TRASH, FIRST, LAST):
            yield decode(TrashRecord, payload)

    def sound_records(self) -> Iterator[TrashRecord]:
        """Yield the records but those that are damaged, which are logged."""
        return self._sound()

    def of_tenant(self, tenant: TenantId, after: int = 0) -> Iterator[TrashRecord]:
        """Yield a tenant's records of ids greater than `after`, by id, but those that are damaged,
        which are logged. Each is read when it is its turn."""
        if not in_id_range(after + 1):
            return iter(())
        kinds = (self.of_kind(kind, tenant, after) for kind in NodeKind)
        return merge(*kinds, key=lambda record: record.node.id)

    def of_kind(self, kind: NodeKind, tenant: TenantId, after: int = 0) -> Iterator[TrashRecord]:
        """Yield a tenant's volumes or snapshots, as `of_tenant`."""
        first = owned_key(kind, tenant, after + 1)
        return self._sound(first, first[:-8] + b"\xff" * 9)

    def _sound(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[TrashRecord]:
        return sound_records(self.txn, TRASH, partial(decode, TrashRecord), start, stop)

    def count_of_tenant(self, tenant: TenantId) -> int:
        """Count a tenant's records, without reading them."""
        firsts = (owned_key(kind, tenant, 0) for kind in NodeKind)
        return sum(
            1 for first in firsts for _ in self.txn.keys(TRASH, first, first[:-8] + b"\xff" * 9)
        )

    def find(self, tenant: TenantId, node: int) -> TrashRecord:
        """Return the record of one of a tenant's. Raises NotFoundError: the tenant has no such one
        in the trash; DamagedError."""
        for kind in NodeKind if in_id_range(node) else ():
            payload = self.txn.get(TRASH, owned_key(kind, tenant, node))
            if payload is not None:
                return decode(TrashRecord, payload)
        raise NotFoundError(
            f"there is no {node} in the trash; it was restored, or is gone for good"
        )

    def add(self, record: TrashRecord) -> None:
        """Move the record of a volume or snapshot here."""
        if record.volume is not None:
            self._ledger.remove_volume(OwnedVolume(record.tenant, record.volume))
        elif record.snapshot is not None:
            self._ledger.remove_snapshot(OwnedSnapshot(record.tenant, record.snapshot))
        if record.counted:
            # Counted once more, for it was removed.
            tenant = self._ledger.tenant(record.tenant)
            self._use(tenant, _with(tenant.used, record))
        self.put(record)

    def put(self, record: TrashRecord) -> None:
        """Write a record as it is now."""
        self.txn.put(TRASH, record.key, msgspec.json.encode(record))

    def restore(self, record: TrashRecord, quota_of: QuotaOf) -> None:
        """Move a record back. Raises OverLimitError beyond the tenant's quota, unless it counts
        there already; NotFoundError if it is not here any more."""
        self.remove(record)
        allowed = _any_number if record.counted else quota_of
        if record.volume is not None:
            self._ledger.add_volume(record.tenant, record.volume, allowed)
        elif record.snapshot is not None:
            self._ledger.add_snapshot(record.tenant, record.snapshot, allowed)

    def refuse_restored(self, record: TrashRecord) -> None:
        """Raise NotFoundError if a record is not here any more: it was restored since it was read,
        and perhaps deleted again."""
        found = self.find(record.tenant, record.node.id)
        if found.deleted_at != record.deleted_at:
            raise NotFoundError(f"{record.kind} {record.node.id} was restored meanwhile")

    def remove(self, record: TrashRecord) -> None:
        """Remove a record. Raises what `refuse_restored` does."""
        self.refuse_restored(record)
        tenant = self._ledger.tenant(record.tenant)
        self._use(tenant, record.without(tenant.used))
        self.txn.delete(TRASH, record.key)

    def _use(self, tenant: TenantRecord, used: Usage) -> None:
        if used != tenant.used:
            self._ledger.put_tenant(replace(tenant, used=used))


def _with(used: Usage, record: TrashRecord) -> Usage:
    if record.volume is not None:
        gigabytes = used.gigabytes + record.volume.size_gib
        return replace(used, volumes=used.volumes + 1, gigabytes=gigabytes)
    return replace(used, snapshots=used.snapshots + 1)


def trash_keys(txn: Transaction, kind: NodeKind, after: bytes = b"") -> Iterator[bytes]:
    """Yield the keys of all tenants' volumes or snapshots in the trash that are greater than
    `after`."""
    first = kind.value[:1].encode()
    return txn.keys(TRASH, after + b"\0" if after else first, first + LAST)


def counted(records: Collection[TrashRecord]) -> TrashCount:
    """Sum up what is in the trash."""
    volumes = [record.volume for record in records if record.volume is not None]
    return TrashCount(
        volumes=len(volumes),
        snapshots=len(records) - len(volumes),
        size_bytes=sum(volume.size_gib for volume in volumes) * GIB,
        oldest_at=min((record.deleted_at for record in records), default=0.0),
    )


def counted_too(used: Usage, record: TrashRecord) -> Usage:
    """Return a usage with what counts of a record, for who recounts."""
    return _with(used, record) if record.counted else used


def _any_number(_tenant: TenantRecord) -> Quota:
    """What a tenant has already stays."""
    return Quota(UNLIMITED, UNLIMITED, UNLIMITED)
