"""The invariants of `bockd.blockstorage.records`, proved by a walk over all records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bockd.blockstorage.contract import Status, TenantId, Usage
from bockd.blockstorage.records import (
    API_SNAPSHOTS,
    API_VOLUMES,
    ATTACHED,
    EXPORTS,
    IMAGES,
    IMPORTS,
    OWNED,
    TENANTS,
    ImageRecord,
    ImportRecord,
    OwnedSnapshot,
    OwnedVolume,
    R,
    TenantRecord,
    attached_key,
    decode,
    export_key,
    owned_key,
)
from bockd.blockstorage.trashrecords import TRASH, TrashRecord, counted_too
from bockd.blockstorage.working import Key
from bockd.errors import DamagedError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key
from bockd.index.tables import Table
from bockd.model import NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes

_ANY_KEY = LAST_KEY + b"\xff" * 500


def find_problems(txn: Transaction) -> tuple[str, ...]:
    """Return one line for each broken invariant, and for each record that cannot be read. With such
    a one what follows from all of them is not judged."""
    unreadable: list[str] = []
    volumes = _readable(txn, API_VOLUMES, OwnedVolume, unreadable)
    snapshots = _readable(txn, API_SNAPSHOTS, OwnedSnapshot, unreadable)
    tenants = _readable(txn, TENANTS, TenantRecord, unreadable)
    trash = _readable(txn, TRASH, TrashRecord, unreadable)
    problems = [
        *_without_node(txn, volumes, snapshots),
        *_wrong_attachments(volumes),
        *_wrong_images(txn, snapshots, unreadable),
    ]
    if not unreadable:
        problems += _wrong_keys(txn, volumes, snapshots)
        problems += _wrong_usage(tenants, volumes, snapshots, trash)
        problems += _wrong_trash(txn, volumes, snapshots, trash)
    return (*unreadable, *problems)


def _readable(txn: Transaction, table: Table, kind: type[R], unreadable: list[str]) -> list[R]:
    """List the records of a table; of those that cannot be read, say so."""
    found: list[R] = []
    for key in txn.keys(table, FIRST_KEY, _ANY_KEY):
        try:
            payload = txn.get(table, key) or b""
        except DamagedError as error:
            unreadable.append(str(error))
            continue
        try:
            found.append(decode(kind, payload))
        except DamagedError as error:
            unreadable.append(f"table {table}, key {key!r}: {error}")
    return found


def _nodes(txn: Transaction, table: Table) -> set[bytes]:
    return set(txn.keys(table, FIRST_KEY, _ANY_KEY))


def _without_node(
    txn: Transaction, volumes: list[OwnedVolume], snapshots: list[OwnedSnapshot]
) -> Iterator[str]:
    there = _nodes(txn, VOLUMES)
    for owned in volumes:
        if id_key(owned.volume.id) not in there:
            yield f"the record of volume {owned.volume.id} has no volume in the pool"
    there = _nodes(txn, SNAPSHOTS)
    for found in snapshots:
        if id_key(found.snapshot.id) not in there:
            yield f"the record of snapshot {found.snapshot.id} has no snapshot in the pool"


def _wrong_keys(
    txn: Transaction, volumes: list[OwnedVolume], snapshots: list[OwnedSnapshot]
) -> Iterator[str]:
    attached = [
        (owned.tenant, owned.volume.attachment) for owned in volumes if owned.volume.attachment
    ]
    expected = {
        OWNED: {
            *(owned_key(NodeKind.VOLUME, o.tenant, o.volume.id) for o in volumes),
            *(owned_key(NodeKind.SNAPSHOT, o.tenant, o.snapshot.id) for o in snapshots),
        },
        ATTACHED: {attached_key(tenant, a.server_id, a.volume_id) for tenant, a in attached},
        EXPORTS: {export_key(a.export_name) for _, a in attached},
    }
    for table, keys in expected.items():
        if set(txn.keys(table, FIRST_KEY, _ANY_KEY)) != keys:
            yield f"table {table} does not say what the volumes' records say"


def _wrong_attachments(volumes: list[OwnedVolume]) -> Iterator[str]:
    for owned in volumes:
        attached = owned.volume.attachment is not None
        status = owned.volume.status
        if attached != (status in (Status.ATTACHING, Status.IN_USE, Status.DETACHING)):
            yield f"volume {owned.volume.id} is {status}, attached: {attached}"


def _wrong_usage(
    tenants: list[TenantRecord],
    volumes: list[OwnedVolume],
    snapshots: list[OwnedSnapshot],
    trash: list[TrashRecord],
) -> Iterator[str]:
    counted: dict[TenantId, Usage] = {}
    for owned in volumes:
        used = counted.get(owned.tenant, Usage())
        counted[owned.tenant] = replace(
            used, volumes=used.volumes + 1, gigabytes=used.gigabytes + owned.volume.size_gib
        )
    for found in snapshots:
        used = counted.get(found.tenant, Usage())
        more = int(found.snapshot.consumes_quota)
        counted[found.tenant] = replace(used, snapshots=used.snapshots + more)
    for kept in trash:
        counted[kept.tenant] = counted_too(counted.get(kept.tenant, Usage()), kept)
    recorded = {record.tenant.id: record.used for record in tenants}
    for tenant in recorded.keys() | counted.keys():
        if recorded.get(tenant, Usage()) != counted.get(tenant, Usage()):
            yield f"tenant {tenant} has {counted.get(tenant)}, recorded is {recorded.get(tenant)}"


def _wrong_trash(
    txn: Transaction,
    volumes: list[OwnedVolume],
    snapshots: list[OwnedSnapshot],
    trash: list[TrashRecord],
) -> Iterator[str]:
    nodes = Nodes(txn)
    marked: set[Key] = {
        (kind, one.id)
        for kind, found in (
            (NodeKind.VOLUME, nodes.sound_volumes()),
            (NodeKind.SNAPSHOT, nodes.sound_snapshots()),
        )
        for one in found
        if one.trashed is not None
    }
    recorded: set[Key] = {(record.kind, record.node.id) for record in trash}
    for kind, node in sorted(recorded - marked):
        yield f"{kind} {node} is recorded as being in the trash, and is not there in the pool"
    for kind, node in sorted(marked - recorded):
        yield f"{kind} {node} is in the trash, and no tenant's: nothing restores or deletes it"
    owned: set[Key] = {
        *((NodeKind.VOLUME, one.volume.id) for one in volumes),
        *((NodeKind.SNAPSHOT, one.snapshot.id) for one in snapshots),
    }
    for kind, node in sorted(recorded & owned):
        yield f"{kind} {node} is in the trash, and a tenant has it all the same"
    if set(txn.keys(TRASH, FIRST_KEY, _ANY_KEY)) != {record.key for record in trash}:
        yield f"table {TRASH} has a record under another one's key"


def _wrong_images(
    txn: Transaction, snapshots: list[OwnedSnapshot], unreadable: list[str]
) -> Iterator[str]:
    there, owned = _nodes(txn, SNAPSHOTS), {one.snapshot.id for one in snapshots}
    for record in _readable(txn, IMAGES, ImageRecord, unreadable):
        if id_key(record.snapshot) not in there:
            yield f"image {record.image.id} has no snapshot {record.snapshot} in the pool"
        if record.snapshot in owned:
            yield f"snapshot {record.snapshot} is an image and yet a tenant's"
    there = _nodes(txn, VOLUMES)
    for filling in _readable(txn, IMPORTS, ImportRecord, unreadable):
        if id_key(filling.volume) not in there:
            yield f"the import of image {filling.image.id} has no volume {filling.volume}"
