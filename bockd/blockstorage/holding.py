"""Holding a volume: nobody reads or writes it until it is released.

Who moves a volume to another pool holds it, so that nothing is written to it any more that the copy
would lack. A hold is a status, `maintenance`, with a reason; it survives everything but a release.

First the status is committed, then users are looked for; whoever opens a volume looks for the
status afterwards (`refuse_held`). So either the client is refused or the hold is. What another
process or gateway has open is found by opening the volume here.
"""

from __future__ import annotations

from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Status, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.volumes import status_now
from bockd.errors import BockdError, InUseError, NotFoundError
from bockd.model import NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes


class Holds:
    """The two operations; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._pool = context.pool

    async def hold(
        self, tenant: TenantId, volume: VolumeId, reason: str, instead_of: str | None = None
    ) -> None:
        """Hold a volume, or replace the reason of a hold."""
        reason = rules.check_reason(reason)
        is_new = await self._context.update(
            lambda txn: _begin(txn, tenant, volume, reason, instead_of)
        )
        try:
            await self._check_unused(volume)
        except BockdError:
            if is_new:
                await self._context.update(lambda txn: _take_back(txn, tenant, volume, reason))
            raise

    async def _check_unused(self, volume: VolumeId) -> None:
        """Raise InvalidStateError while somebody uses the volume, here or elsewhere."""
        try:
            await self._pool.use(NodeKind.VOLUME, volume)
        except InUseError as error:
            raise rules.in_use(NodeKind.VOLUME, error) from None
        except NotFoundError:
            raise rules.not_found(NodeKind.VOLUME, volume) from None
        others = self._pool.users(NodeKind.VOLUME, volume) - 1
        self._pool.leave(NodeKind.VOLUME, volume)
        if others:
            rules.refuse_state(NodeKind.VOLUME, volume, f"it has {others} users; end them first")
        await self._pool.close_idle(NodeKind.VOLUME, volume)

    async def release(self, tenant: TenantId, volume: VolumeId, reason: str | None = None) -> None:
        """Make a volume that is held, for this reason if one is given, available again."""
        await self._context.update(lambda txn: _release(txn, tenant, volume, reason))


def refuse_held(txn: Transaction, volume: VolumeId) -> None:
    """Raise InUseError for a volume that is held: for whoever has just opened it."""
    owned = Ledger(txn).owned_volume(volume)
    if owned is not None and owned.volume.status is Status.MAINTENANCE:
        raise InUseError(
            f"volume {volume} is held ({owned.volume.hold}); 'bock volume release {volume}' ends "
            "that"
        )


def _begin(
    txn: Transaction, tenant: TenantId, volume: VolumeId, reason: str, instead_of: str | None
) -> bool:
    """Return whether it was not held before."""
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    status = status_now(Nodes(txn), found)
    rules.check_can_be_held(volume, status, found.hold, reason, instead_of)
    ledger.put_volume(tenant, replace(found, status=Status.MAINTENANCE, hold=reason))
    return found.status is not Status.MAINTENANCE


def _take_back(txn: Transaction, tenant: TenantId, volume: VolumeId, reason: str) -> None:
    """Undo a hold that found users, unless somebody else has released or held the volume since."""
    found = Ledger(txn).volume(tenant, volume)
    if found.status is Status.MAINTENANCE and found.hold == reason:
        _release(txn, tenant, volume, reason)


def _release(txn: Transaction, tenant: TenantId, volume: VolumeId, reason: str | None) -> None:
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    rules.check_is_held(volume, found.status, found.hold, reason)
    ledger.put_volume(tenant, replace(found, status=Status.AVAILABLE, hold=None))
