"""What block storage keeps beside the pool's records, in the same index.

    TENANTS       tenant id                         TenantRecord
    USERS         user name                         UserRecord
    ACCESS_KEYS   access key                        AccessKeyRecord
    TOKENS        SHA-256 of a revoked token        TokenRecord
    API_VOLUMES   id:u64                            OwnedVolume
    API_SNAPSHOTS id:u64                            OwnedSnapshot
    OWNED         kind | tenant | 0 | id:u64        nothing: a tenant's nodes, in order
    ATTACHED      tenant | 0 | server | 0 | id:u64  nothing: a server's volumes, in order
    EXPORTS       SHA-256 of the export name        id:u64 of the attached volume
    SERVERS       server's name                     Server
    IMAGES        image id                          ImageRecord
    IMPORTS       id:u64 of the volume being filled ImportRecord

Records are JSON objects of the dataclasses; what only pools of several gateways have (`worker`,
`gateway`) is left out where it is None, and so are `hold`, `source_volume`, `consumes_quota` and a
tenant's `limits` where they say nothing. Invariants, each kept by one function of `Ledger`: a
record in API_VOLUMES, API_SNAPSHOTS, IMAGES or IMPORTS belongs to a node of the pool; OWNED,
ATTACHED and EXPORTS follow from those records; a tenant's `used` is their sum,
without snapshots that consume no quota.
`bockd.blockstorage.recount` proves it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from bockd.blockstorage import quota
from bockd.blockstorage.contract import (
    Attachment,
    Image,
    Quota,
    Snapshot,
    Tenant,
    TenantId,
    Usage,
    UserId,
    Volume,
)
from bockd.blockstorage.rules import TRANSIENT, in_id_range, not_found
from bockd.errors import DamagedError, NotFoundError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key
from bockd.index.tables import Table
from bockd.model import IoLimits, NodeKind, Server, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import sound_records

TENANTS = Table(b"tenants")
USERS = Table(b"users")
ACCESS_KEYS = Table(b"access-keys")
TOKENS = Table(b"tokens")
API_VOLUMES = Table(b"api-volumes")
API_SNAPSHOTS = Table(b"api-snapshots")
OWNED = Table(b"owned")
ATTACHED = Table(b"attached")
EXPORTS = Table(b"exports")
SERVERS = Table(b"servers")
IMAGES = Table(b"images")
IMPORTS = Table(b"imports")

_ID = struct.Struct(">Q")
MAX_KEY_BYTES = 255
"""Of a name that is looked up; LMDB's keys end at 511."""


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """TENANTS/<id>."""

    tenant: Tenant
    quota: Quota | None
    """None: what the configuration says."""
    used: Usage
    limits: IoLimits | None = None
    """Of the I/O of all its volumes together. None: what the configuration says."""


QuotaOf = Callable[[TenantRecord], Quota]
"""Decides a tenant's quota: the record has a part in it, the configuration another."""


@dataclass(frozen=True, slots=True)
class UserRecord:
    """USERS/<name>. `password` is a hash (bockd.identity.secrethash)."""

    id: UserId
    name: str
    password: str
    roles: Mapping[TenantId, tuple[str, ...]]
    """In each tenant that the user is in."""
    epoch: str = ""
    """Random, and another one after each change of a secret: tokens are valid in their epoch."""


@dataclass(frozen=True, slots=True)
class AccessKeyRecord:
    """ACCESS_KEYS/<access key>. `secret` is a hash."""

    username: str
    secret: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """TOKENS/<SHA-256 of a token that was revoked>; the digest stands here again."""

    digest: str
    username: str
    tenant: TenantId
    expires_at: float
    """Negative; positive where an older version has issued the token."""
    epoch: str = ""
    """The user's when it was issued, by an older version."""


@dataclass(frozen=True, slots=True)
class OwnedVolume:
    """API_VOLUMES/<id>."""

    tenant: TenantId
    volume: Volume
    worker: str | None = None
    """Who has begun what the status says, while it is a transient one, in a pool of several
    gateways: `Transaction.author`. That one ends it, or who has taken it over because that one is
    gone; nobody else (bockd.blockstorage.working)."""


@dataclass(frozen=True, slots=True)
class OwnedSnapshot:
    """API_SNAPSHOTS/<id>."""

    tenant: TenantId
    snapshot: Snapshot
    worker: str | None = None
    """As a volume's."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """IMAGES/<id>. The image is a snapshot of the pool that no tenant owns."""

    image: Image
    snapshot: SnapshotId
    fetched: bool = False
    """From Glance, which says who may see it: it is in no list, and nobody gets a volume of it
    without Glance having been asked."""


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """IMPORTS/<volume id>. An image whose data is being written to a volume that no tenant owns;
    `created_at` is when that began. It never outlives the process that began it."""

    volume: VolumeId
    image: Image
    fetched: bool = False
    worker: str | None = None
    """Who began it, in a pool of several gateways, as of a volume."""


R = TypeVar("R")


def decode(kind: type[R], payload: bytes) -> R:
    """Decode a record from its JSON. Raise DamagedError when it does not fit its type."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedError(f"a stored {kind.__name__} is malformed: {error}") from error


def _sparse(record: Any, *optional: str) -> dict[str, object]:
    """Return a record to be encoded, without those of the `optional` fields that have their
    default."""
    return {
        field.name: getattr(record, field.name)
        for field in fields(record)
        if field.name not in optional or getattr(record, field.name) != field.default
    }


def text_key(text: str) -> bytes | None:
    """Return the index key of a name that a client sent, or None when the name cannot be a key."""
    encoded = text.encode("utf-8", "surrogatepass")
    return encoded if 0 < len(encoded) <= MAX_KEY_BYTES else None


class Ledger:
    """The records of one transaction, typed."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn

    def _put(self, table: Table, key: bytes, record: object) -> None:
        self.txn.put(table, key, msgspec.json.encode(record))

    def _get(self, table: Table, key: bytes | None, kind: type[R]) -> R | None:
        payload = None if key is None else self.txn.get(table, key)
        return None if payload is None else decode(kind, payload)

    def _sound(self, table: Table, kind: type[R]) -> Iterator[R]:
        """Those that are not damaged, for what must not stop at one that is."""
        return sound_records(self.txn, table, partial(decode, kind))

    def _all(self, table: Table, kind: type[R]) -> Iterator[R]:
        for _, payload in self.txn.scan(table, FIRST_KEY, LAST_KEY):
            yield decode(kind, payload)

    # -- tenants -----------------------------------------------------------------------------

    def tenant(self, tenant: TenantId) -> TenantRecord:
        """Return a tenant's record. A tenant that only another identity service knows gets an empty
        one."""
        found = self._get(TENANTS, text_key(tenant), TenantRecord)
        return found or TenantRecord(Tenant(tenant, tenant), None, Usage())

    def tenants(self) -> list[TenantRecord]:
        return list(self._all(TENANTS, TenantRecord))

    def put_tenant(self, record: TenantRecord) -> None:
        self._put(TENANTS, record.tenant.id.encode(), _sparse(record, "limits"))

    def remove_tenant(self, tenant: TenantId) -> None:
        """Remove the record of a tenant that no longer has anything."""
        self.txn.delete(TENANTS, tenant.encode())

    def _use(self, record: TenantRecord, used: Usage) -> None:
        self.put_tenant(replace(record, used=used))

    # -- volumes -----------------------------------------------------------------------------

    def owned_volume(self, volume: VolumeId) -> OwnedVolume | None:
        """Return a volume with its owner, whichever tenant that is; None when no tenant owns it."""
        key = id_key(volume) if in_id_range(volume) else None
        return self._get(API_VOLUMES, key, OwnedVolume)

    def volume(self, tenant: TenantId, volume: VolumeId) -> Volume:
        """Return one of the tenant's volumes. Raise NotFoundError when the tenant has no such
        volume."""
        found = self.owned_volume(volume)
        if found is None or found.tenant != tenant:
            raise not_found(NodeKind.VOLUME, volume)
        return found.volume

    def volumes(self, tenant: TenantId, after: int = 0) -> Iterator[Volume]:
        """Yield the tenant's volumes whose ids are greater than `after`, by id."""
        for node in self._owned(NodeKind.VOLUME, tenant, after):
            yield self.volume(tenant, VolumeId(node))

    def sound_volumes(self) -> Iterator[OwnedVolume]:
        return self._sound(API_VOLUMES, OwnedVolume)

    def all_volumes(self) -> Iterator[OwnedVolume]:
        return self._all(API_VOLUMES, OwnedVolume)

    def add_volume(self, tenant: TenantId, volume: Volume, quota_of: QuotaOf) -> None:
        """Add a new volume, within the tenant's quota. Raise OverLimitError beyond it."""
        record = self.tenant(tenant)
        self._use(record, quota.with_volume(quota_of(record), record.used, volume.size_gib))
        self.put_volume(tenant, volume)
        self.txn.put(OWNED, owned_key(NodeKind.VOLUME, tenant, volume.id), b"")

    def put_volume(self, tenant: TenantId, volume: Volume) -> None:
        """Write the volume's record as it is now. Attachments are changed by `attach` and `detach`
        only."""
        worker = None
        if self.txn.author is not None and volume.status in TRANSIENT:
            old = self.owned_volume(volume.id)
            begun = old is None or old.volume.status is not volume.status
            worker = self.txn.author if old is None or begun else old.worker
        self.put_owned(OwnedVolume(tenant, volume, worker))

    def put_owned(self, owned: OwnedVolume | OwnedSnapshot) -> None:
        """Write a record with its worker."""
        node = owned.volume if isinstance(owned, OwnedVolume) else owned.snapshot
        assert node.backing is None
        table = API_VOLUMES if isinstance(owned, OwnedVolume) else API_SNAPSHOTS
        values = _sparse(owned, "worker")
        if isinstance(owned, OwnedVolume):
            values["volume"] = _sparse(owned.volume, "hold", "source_volume")
        else:
            values["snapshot"] = _sparse(owned.snapshot, "consumes_quota")
        self._put(table, id_key(node.id), values)

    def resize_volume(
        self, tenant: TenantId, volume: Volume, size_gib: int, quota_of: QuotaOf
    ) -> None:
        """Record that a volume has grown, within the tenant's quota. Raise OverLimitError beyond
        it."""
        record = self.tenant(tenant)
        allowed = quota_of(record)
        self._use(
            record, quota.with_growth(allowed, record.used, volume.id, volume.size_gib, size_gib)
        )
        self.put_volume(tenant, replace(volume, size_gib=size_gib))

    def remove_volume(self, owned: OwnedVolume) -> None:
        """Remove the record of a volume that is being deleted. It must not be attached."""
        assert owned.volume.attachment is None
        tenant, volume = owned.tenant, owned.volume
        record = self.tenant(tenant)
        self._use(record, quota.without_volume(record.used, volume.size_gib))
        self.txn.delete(API_VOLUMES, id_key(volume.id))
        self.txn.delete(OWNED, owned_key(NodeKind.VOLUME, tenant, volume.id))

    # -- attachments -------------------------------------------------------------------------

    def attach(self, tenant: TenantId, volume: Volume, attachment: Attachment) -> None:
        """Record that the volume is attached."""
        self.put_volume(tenant, replace(volume, attachment=attachment))
        self.txn.put(ATTACHED, attached_key(tenant, attachment.server_id, volume.id), b"")
        self.txn.put(EXPORTS, export_key(attachment.export_name), id_key(attachment.volume_id))

    def detach(self, tenant: TenantId, volume: Volume) -> None:
        """Record that the volume is no longer attached."""
        attachment = volume.attachment
        assert attachment is not None
        self.put_volume(tenant, replace(volume, attachment=None))
        self.txn.delete(ATTACHED, attached_key(tenant, attachment.server_id, volume.id))
        self.txn.delete(EXPORTS, export_key(attachment.export_name))

    def attached(self, tenant: TenantId, server: str) -> Iterator[Volume]:
        """Yield the volumes of one server, by id."""
        first = attached_key(tenant, server, VolumeId(0))
        for key in self.txn.keys(ATTACHED, first, first[:-8] + b"\xff" * 9):
            yield self.volume(tenant, VolumeId(_ID.unpack(key[-8:])[0]))

    def exported(self, export_name: str) -> OwnedVolume | None:
        """Return the volume that is attached under an export name, or None.

        How long the search takes says nothing about the names that exist, because it looks for a
        hash.
        """
        payload = self.txn.get(EXPORTS, export_key(export_name))
        if payload is None:
            return None
        owned = self.owned_volume(VolumeId(_ID.unpack(payload)[0]))
        if owned is None or owned.volume.attachment is None:
            return None
        recorded = export_key(owned.volume.attachment.export_name)
        return owned if hmac.compare_digest(recorded, export_key(export_name)) else None

    # -- servers -----------------------------------------------------------------------------

    def server(self, name: str) -> Server | None:
        return self._get(SERVERS, text_key(name), Server)

    def servers(self) -> Iterator[Server]:
        """Yield all registered servers, by name."""
        last = b"\xff" * MAX_KEY_BYTES
        for _, payload in self.txn.scan(SERVERS, FIRST_KEY, last):
            yield decode(Server, payload)

    def put_server(self, server: Server) -> None:
        self._put(SERVERS, server.name.encode(), _sparse(server, "gateway"))

    def remove_server(self, server: Server) -> None:
        self.txn.delete(SERVERS, server.name.encode())

    # -- snapshots ---------------------------------------------------------------------------

    def owned_snapshot(self, snapshot: SnapshotId) -> OwnedSnapshot | None:
        """Return a snapshot with its owner, whichever tenant that is; None when no tenant owns
        it."""
        key = id_key(snapshot) if in_id_range(snapshot) else None
        return self._get(API_SNAPSHOTS, key, OwnedSnapshot)

    def snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        """Return one of the tenant's snapshots. Raise NotFoundError when the tenant has no such
        snapshot."""
        found = self.owned_snapshot(snapshot)
        if found is None or found.tenant != tenant:
            raise not_found(NodeKind.SNAPSHOT, snapshot)
        return found.snapshot

    def snapshots(self, tenant: TenantId, after: int = 0) -> Iterator[Snapshot]:
        """Yield the tenant's snapshots whose ids are greater than `after`, by id."""
        for node in self._owned(NodeKind.SNAPSHOT, tenant, after):
            yield self.snapshot(tenant, SnapshotId(node))

    def sound_snapshots(self) -> Iterator[OwnedSnapshot]:
        return self._sound(API_SNAPSHOTS, OwnedSnapshot)

    def all_snapshots(self) -> Iterator[OwnedSnapshot]:
        return self._all(API_SNAPSHOTS, OwnedSnapshot)

    def add_snapshot(self, tenant: TenantId, snapshot: Snapshot, quota_of: QuotaOf) -> None:
        """Add a new snapshot, within the tenant's quota. Raise OverLimitError beyond it."""
        if snapshot.consumes_quota:
            record = self.tenant(tenant)
            used = quota.with_snapshot(quota_of(record), record.used, snapshot.volume_id)
            self._use(record, used)
        self.put_snapshot(tenant, snapshot)
        self.txn.put(OWNED, owned_key(NodeKind.SNAPSHOT, tenant, snapshot.id), b"")

    def put_snapshot(self, tenant: TenantId, snapshot: Snapshot) -> None:
        """Write the snapshot's record as it is now."""
        worker = None
        if self.txn.author is not None and snapshot.status in TRANSIENT:
            old = self.owned_snapshot(snapshot.id)
            begun = old is None or old.snapshot.status is not snapshot.status
            worker = self.txn.author if old is None or begun else old.worker
        self.put_owned(OwnedSnapshot(tenant, snapshot, worker))

    def remove_snapshot(self, owned: OwnedSnapshot) -> None:
        """Remove the record of a snapshot that is being deleted."""
        tenant, snapshot = owned.tenant, owned.snapshot
        if snapshot.consumes_quota:
            record = self.tenant(tenant)
            self._use(record, quota.without_snapshot(record.used))
        self.txn.delete(API_SNAPSHOTS, id_key(snapshot.id))
        self.txn.delete(OWNED, owned_key(NodeKind.SNAPSHOT, tenant, snapshot.id))

    def _owned(self, kind: NodeKind, tenant: TenantId, after: int) -> Iterator[int]:
        if not in_id_range(after + 1):
            return
        first = owned_key(kind, tenant, after + 1)
        for key in self.txn.keys(OWNED, first, first[:-8] + b"\xff" * 9):
            yield _ID.unpack(key[-8:])[0]

    # -- images ------------------------------------------------------------------------------

    def image(self, image: str) -> ImageRecord:
        """Return one image. Raise NotFoundError when there is none with this id."""
        found = self._get(IMAGES, text_key(image), ImageRecord)
        if found is None:
            raise no_image(image)
        return found

    def images(self) -> Iterator[ImageRecord]:
        return self._all(IMAGES, ImageRecord)

    def put_image(self, record: ImageRecord) -> None:
        self._put(IMAGES, record.image.id.encode(), record)

    def remove_image(self, record: ImageRecord) -> None:
        self.txn.delete(IMAGES, record.image.id.encode())

    def imports(self) -> Iterator[ImportRecord]:
        return self._all(IMPORTS, ImportRecord)

    def import_into(self, volume: VolumeId) -> ImportRecord | None:
        """Return the import that fills a volume, or None when none does."""
        key = id_key(volume) if in_id_range(volume) else None
        return self._get(IMPORTS, key, ImportRecord)

    def put_import(self, record: ImportRecord) -> None:
        """Write the record of an import that begins."""
        begun = replace(record, worker=self.txn.author)
        self._put(IMPORTS, id_key(record.volume), _sparse(begun, "worker"))

    def remove_import(self, volume: VolumeId) -> bool:
        return self.txn.delete(IMPORTS, id_key(volume))

    # -- users -------------------------------------------------------------------------------

    def user(self, name: str) -> UserRecord | None:
        return self._get(USERS, text_key(name), UserRecord)

    def users(self) -> Iterator[UserRecord]:
        """Yield all users, by name."""
        for _, payload in self.txn.scan(USERS, FIRST_KEY, b"\xff" * MAX_KEY_BYTES):
            yield decode(UserRecord, payload)

    def put_user(self, record: UserRecord) -> None:
        self._put(USERS, record.name.encode(), record)

    def remove_user(self, name: str) -> None:
        """Remove a user and its access keys. Its tokens are invalid without the user."""
        for key in self.access_keys_of(name):
            self.remove_access_key(key)
        self.txn.delete(USERS, name.encode())

    def access_key(self, access_key: str) -> AccessKeyRecord | None:
        return self._get(ACCESS_KEYS, text_key(access_key), AccessKeyRecord)

    def access_keys_of(self, username: str) -> list[str]:
        """Return the access keys of a user."""
        found = self.txn.scan(ACCESS_KEYS, FIRST_KEY, b"\xff" * MAX_KEY_BYTES)
        return [
            key.decode()
            for key, payload in found
            if decode(AccessKeyRecord, payload).username == username
        ]

    def remove_access_key(self, access_key: str) -> None:
        self.txn.delete(ACCESS_KEYS, access_key.encode())

    def put_access_key(self, access_key: str, record: AccessKeyRecord) -> None:
        self._put(ACCESS_KEYS, access_key.encode(), record)

    def token(self, digest: bytes) -> TokenRecord | None:
        return self._get(TOKENS, digest, TokenRecord)

    def tokens(self) -> list[tuple[bytes, TokenRecord]]:
        found = self.txn.scan(TOKENS, FIRST_KEY, b"\xff" * 33)
        return [(key, decode(TokenRecord, payload)) for key, payload in found]

    def put_token(self, digest: bytes, record: TokenRecord) -> None:
        self._put(TOKENS, digest, record)

    def remove_token(self, digest: bytes) -> bool:
        return self.txn.delete(TOKENS, digest)


def no_image(image: str) -> NotFoundError:
    """Return the error for an image that does not exist, or not for this caller."""
    return NotFoundError(f"Image {image[:MAX_KEY_BYTES]} could not be found.")


def owned_key(kind: NodeKind, tenant: TenantId, node: int) -> bytes:
    """Return the key in OWNED of a tenant's volume or snapshot."""
    return kind.value[:1].encode() + tenant.encode() + b"\0" + id_key(node)


def export_key(export_name: str) -> bytes:
    """Return the key in EXPORTS of an export name. Any text that a client sends as a name has a
    key."""
    return hashlib.sha256(export_name.encode("utf-8", "surrogatepass")).digest()


def attached_key(tenant: TenantId, server: str, volume: VolumeId) -> bytes:
    """Return the key in ATTACHED of a volume at a tenant's server."""
    return tenant.encode() + b"\0" + server.encode() + b"\0" + id_key(volume)
