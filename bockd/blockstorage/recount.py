"""The invariants of `bockd.blockstorage.records`, proved by a walk over all records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bockd.blockstorage.contract import Status, TenantId, Usage
from bockd.blockstorage.records import (
    ATTACHED,
    EXPORTS,
    OWNED,
    Ledger,
    OwnedSnapshot,
    OwnedVolume,
    attached_key,
    export_key,
    owned_key,
)
from bockd.errors import DamagedError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key
from bockd.model import NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES

_ANY_KEY = LAST_KEY + b"\xff" * 500


def find_problems(txn: Transaction) -> tuple[str, ...]:
    """Return one line for each broken invariant."""
    try:
        return _problems(txn)
    except DamagedError as error:
        return (str(error),)


def _problems(txn: Transaction) -> tuple[str, ...]:
    ledger = Ledger(txn)
    volumes = list(ledger.all_volumes())
    snapshots = list(ledger.all_snapshots())
    return (
        *_without_node(txn, volumes, snapshots),
        *_wrong_keys(txn, volumes, snapshots),
        *_wrong_attachments(volumes),
        *_wrong_usage(ledger, volumes, snapshots),
        *_wrong_images(txn, ledger),
    )


def _without_node(
    txn: Transaction, volumes: list[OwnedVolume], snapshots: list[OwnedSnapshot]
) -> Iterator[str]:
    for owned in volumes:
        if txn.get(VOLUMES, id_key(owned.volume.id)) is None:
            yield f"the record of volume {owned.volume.id} has no volume in the pool"
    for found in snapshots:
        if txn.get(SNAPSHOTS, id_key(found.snapshot.id)) is None:
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
    ledger: Ledger, volumes: list[OwnedVolume], snapshots: list[OwnedSnapshot]
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
    recorded = {record.tenant.id: record.used for record in ledger.tenants()}
    for tenant in recorded.keys() | counted.keys():
        if recorded.get(tenant, Usage()) != counted.get(tenant, Usage()):
            yield f"tenant {tenant} has {counted.get(tenant)}, recorded is {recorded.get(tenant)}"


def _wrong_images(txn: Transaction, ledger: Ledger) -> Iterator[str]:
    for record in ledger.images():
        if txn.get(SNAPSHOTS, id_key(record.snapshot)) is None:
            yield f"image {record.image.id} has no snapshot {record.snapshot} in the pool"
        if ledger.owned_snapshot(record.snapshot) is not None:
            yield f"snapshot {record.snapshot} is an image and yet a tenant's"
    for filling in ledger.imports():
        if txn.get(VOLUMES, id_key(filling.volume)) is None:
            yield f"the import of image {filling.image.id} has no volume {filling.volume}"
