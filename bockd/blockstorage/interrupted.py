"""What a crash left in a transient status, resolved at the next start, before any frontend opens.

| caught in   | becomes   | because                                                             |
|-------------|-----------|---------------------------------------------------------------------|
| `creating`  | error     | its image was being fetched, and is not in it                       |
| `attaching` | available | nobody was told of the attachment                                   |
| `detaching` | available | nothing is connected any more; the client wanted it gone            |
| `deleting`  | gone      | the client wanted it gone; `error_deleting` when even now it cannot |

A virtual machine may have the device still. Then the volume is `detaching` when the frontends open,
so that its export is closed and nobody else takes it, and `finish_detaching` removes the device: a
machine that does not answer must not keep the daemon from starting.

An image being imported is gone, with the volume that was to become it: who filled it has lost its
connection.

Where several gateways share the pool, each resolves so what its own earlier runs have begun, and
what runs have begun that are gone (bockd.blockstorage.working). Then every attachment ends by way
of `finish_detaching`, since clients of its export may be connected to any gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from bockd.blockstorage import snapshots, volumes
from bockd.blockstorage.attachments import attachment_of, end_attachment
from bockd.blockstorage.contract import Status, Volume
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import Ledger, OwnedVolume
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.working import Whose, anybody, begun, is_ours, take_over
from bockd.errors import BockdError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, ServerKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps, blocking

log = logging.getLogger(__name__)


async def resolve_interrupted(context: StorageContext, whose: Whose = anybody) -> list[OwnedVolume]:
    """Resolve every transient status that a crash left, of the workers that `whose` chooses. A
    volume or snapshot that cannot be deleted is logged, and the others are resolved. Return the
    volumes that are left for `finish_detaching`."""
    await Images(context).sweep(whose)
    if not await blocking(_any_begun, context, whose):
        return []
    left = await context.update(lambda txn: _settle(txn, whose))
    hit(Failpoint.SETTLED)
    for kind, node in left.deleting:
        try:
            await _delete(context, kind, node)
        except (BockdError, OSError) as error:
            log.error("%s %s, being deleted when the daemon stopped: %s", kind, node, error)  # noqa: TRY400
            await context.update(_give_up(kind, node))
    return left.detaching


def _any_begun(context: StorageContext, whose: Whose) -> bool:
    with context.pool.index.reading() as txn:
        return any(whose(worker, key) for key, worker in begun(txn).items())


class _Left(NamedTuple):
    """What takes more than a record."""

    deleting: list[tuple[NodeKind, int]]
    detaching: list[OwnedVolume]


def _settle(txn: Transaction, whose: Whose) -> _Left:
    """Settle what takes no more than a record; return the rest."""
    ledger = Ledger(txn)
    several = txn.author is not None
    deleting: list[tuple[NodeKind, int]] = []
    detaching: list[OwnedVolume] = []
    for owned in list(ledger.sound_volumes()):
        if not whose(owned.worker, (NodeKind.VOLUME, owned.volume.id)):
            continue
        settled = replace(owned.volume, status=Status.AVAILABLE)
        match owned.volume.status:
            case Status.ATTACHING | Status.DETACHING if several or _has_device(owned.volume):
                volume = replace(settled, status=Status.DETACHING)
                taken = replace(owned, volume=volume, worker=txn.author)
                ledger.put_owned(taken)
                detaching.append(taken)
            case Status.ATTACHING | Status.DETACHING:
                ledger.detach(owned.tenant, settled)
            case Status.CREATING:
                ledger.put_volume(owned.tenant, replace(settled, status=Status.ERROR))
            case Status.DELETING:
                take_over(txn, owned)
                deleting.append((NodeKind.VOLUME, settled.id))
            case _:
                continue
        log.info("volume %s was %s when the daemon stopped", settled.id, owned.volume.status)
    for found in list(ledger.sound_snapshots()):
        if not whose(found.worker, (NodeKind.SNAPSHOT, found.snapshot.id)):
            continue
        if found.snapshot.status is Status.CREATING:
            ledger.put_snapshot(found.tenant, replace(found.snapshot, status=Status.AVAILABLE))
        elif found.snapshot.status is Status.DELETING:
            take_over(txn, found)
            deleting.append((NodeKind.SNAPSHOT, found.snapshot.id))
    return _Left(deleting, detaching)


def _has_device(volume: Volume) -> bool:
    return volume.attachment is not None and volume.attachment.server_kind is ServerKind.VM


def detaching(context: StorageContext) -> list[OwnedVolume]:
    """Return the volumes that `resolve_interrupted` has left for `finish_detaching`. Call this
    before the frontends open: later, volumes that are just being detached are among them. Decodes
    all records: not for the event loop that serves."""
    with context.pool.index.reading() as txn:
        volumes = Ledger(txn).sound_volumes()
        return [owned for owned in volumes if is_ours(txn, owned, Status.DETACHING)]


async def finish_detaching(context: StorageContext, owned: OwnedVolume) -> None:
    """Remove the device, if the machine can be reached; then the volume is available."""
    attachment = attachment_of(owned.volume)
    with context.pool.index.reading() as txn:
        server = Ledger(txn).server(attachment.server_id)
    reason = "the daemon was stopped while the volume was being attached or detached"
    await end_attachment(context, owned.tenant, server, owned.volume, reason)


def _delete(context: StorageContext, kind: NodeKind, node: int) -> Steps[None]:
    if kind is NodeKind.VOLUME:
        return context.pool.delete_volume(VolumeId(node), volumes.forget_deleting)
    return context.pool.delete_snapshot(SnapshotId(node), snapshots.forget_deleting)


def _give_up(kind: NodeKind, node: int) -> Callable[[Transaction], None]:
    if kind is NodeKind.VOLUME:
        return lambda txn: volumes.leave_deleting(txn, VolumeId(node), Status.ERROR_DELETING)
    return lambda txn: snapshots.leave_deleting(txn, SnapshotId(node), Status.ERROR_DELETING)
