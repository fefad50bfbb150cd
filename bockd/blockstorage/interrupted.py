"""What a crash left in a transient status, resolved at the next start, before any door opens.

| caught in   | becomes   | because                                                             |
|-------------|-----------|---------------------------------------------------------------------|
| `creating`  | available | the pool has it: volume and record are committed together           |
| `attaching` | available | nobody was told of the attachment                                   |
| `detaching` | available | nothing is connected any more; the client wanted it gone            |
| `deleting`  | gone      | the client wanted it gone; `error_deleting` when even now it cannot |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from bockd.blockstorage import snapshots, volumes
from bockd.blockstorage.contract import Status
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import Surroundings
from bockd.errors import BockdError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.steps import Steps
from bockd.store.index import Transaction

log = logging.getLogger(__name__)

_TRANSIENT = frozenset({Status.CREATING, Status.ATTACHING, Status.DETACHING, Status.DELETING})


def resolve_interrupted(around: Surroundings) -> Steps[None]:
    """Leave nothing in a transient status. One that cannot be deleted is reported; the others are
    resolved."""
    with around.pool.store.index.reading() as txn:
        ledger = Ledger(txn)
        states = [*(owned.volume.status for owned in ledger.all_volumes())]
        states += [owned.snapshot.status for owned in ledger.all_snapshots()]
    if _TRANSIENT.isdisjoint(states):
        return
    deleting = yield from around.update(_settle)
    hit(Failpoint.SETTLED)
    for kind, node in deleting:
        try:
            yield from _delete(around, kind, node)
        except (BockdError, OSError) as error:
            log.error("%s %s, being deleted when the daemon stopped: %s", kind, node, error)  # noqa: TRY400
            yield from around.update(_give_up(kind, node))


def _settle(txn: Transaction) -> list[tuple[NodeKind, int]]:
    """Settle what takes no more than a record; return what is still to be deleted."""
    ledger = Ledger(txn)
    deleting: list[tuple[NodeKind, int]] = []
    for owned in list(ledger.all_volumes()):
        settled = replace(owned.volume, status=Status.AVAILABLE)
        match owned.volume.status:
            case Status.ATTACHING | Status.DETACHING:
                ledger.detach(owned.tenant, settled)
            case Status.CREATING:
                ledger.put_volume(owned.tenant, settled)
            case Status.DELETING:
                deleting.append((NodeKind.VOLUME, settled.id))
            case _:
                continue
        log.info("volume %s was %s when the daemon stopped", settled.id, owned.volume.status)
    for found in list(ledger.all_snapshots()):
        if found.snapshot.status is Status.CREATING:
            ledger.put_snapshot(found.tenant, replace(found.snapshot, status=Status.AVAILABLE))
        elif found.snapshot.status is Status.DELETING:
            deleting.append((NodeKind.SNAPSHOT, found.snapshot.id))
    return deleting


def _delete(around: Surroundings, kind: NodeKind, node: int) -> Steps[None]:
    if kind is NodeKind.VOLUME:
        return around.pool.delete_volume(VolumeId(node), volumes.forget_record)
    return around.pool.delete_snapshot(SnapshotId(node), snapshots.forget_record)


def _give_up(kind: NodeKind, node: int) -> Callable[[Transaction], None]:
    if kind is NodeKind.VOLUME:
        return lambda txn: volumes.leave_deleting(txn, VolumeId(node), Status.ERROR_DELETING)
    return lambda txn: snapshots.leave_deleting(txn, SnapshotId(node), Status.ERROR_DELETING)
