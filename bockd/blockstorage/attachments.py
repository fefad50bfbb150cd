"""Attachments (section 4.4.3): a volume at a server, reached through an export of its own.

Attaching and detaching have three parts: a transaction that moves the volume to `attaching` or
`detaching`, which keeps everybody else off and decides whether its export takes new connections
(`rules.REACHABLE`); what the daemon and the server's plugger do; a transaction that ends it.
What is caught in the middle by a crash is resolved at the next start
(`bockd.blockstorage.interrupted`).

What fails on the way is undone, and the volume keeps the reason (`Volume.last_error`).

Of several gateways the one that begins it ends it. If that one hangs for long, another one ends the
attachment meanwhile; so each transaction that ends something judges whether it is still this
attachment, and this gateway's to end (bockd.blockstorage.working).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Attachment, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import find_server, unreachable
from bockd.blockstorage.volumes import move_volume
from bockd.blockstorage.working import is_ours, is_same_attachment
from bockd.errors import BockdError, ConflictError, InvalidStateError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, Server, VolumeId
from bockd.pool.gateways import Gateway
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.publictexts import discretion

log = logging.getLogger(__name__)

EXPORT_NAME_BYTES = 24
"""Random bytes in an export name: 192 bits are not guessed, and fit where names are typed."""


class Attachments:
    """The operations on attachments; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._pool = context.pool

    def list(self, tenant: TenantId, server: str) -> list[Attachment]:
        """Return a server's attachments (section 4.4.3.1)."""
        with self._pool.index.reading() as txn:
            ledger = Ledger(txn)
            self._server(ledger, tenant, server)
            return [attachment_of(volume) for volume in ledger.attached(tenant, server)]

    def show(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        """Return the attachment of one volume to a server."""
        with self._pool.index.reading() as txn:
            ledger = Ledger(txn)
            self._server(ledger, tenant, server)
            return attachment_of(_find(ledger, tenant, server, volume))

    def gateways(self, attachment: Attachment) -> Sequence[Gateway]:
        """Return the gateways that lead to an attachment; see the contract."""
        here = self._pool.gateway
        if here is None:
            return []
        with self._pool.nodes() as nodes:
            try:
                holder = self._pool.holder(nodes.volume(attachment.volume_id))
            except NotFoundError:
                holder = None
        known = self._pool.gateways()
        first = next((one for one in (holder, here) if one in {found.name for found in known}), "")
        return sorted(known, key=lambda found: (found.name != first, found.name))

    def _server(self, ledger: Ledger, tenant: TenantId, server: str) -> Server:
        return find_server(ledger, tenant, server, strict=self._context.strict_servers)

    # -- attaching -----------------------------------------------------------------------------

    async def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Attachment:
        """Attach a volume to a server (section 4.4.3.2)."""
        rules.check_server(server)
        export_name = secrets.token_urlsafe(EXPORT_NAME_BYTES)
        now = self._pool.clock()

        def begin(txn: Transaction) -> tuple[Server, Volume, int]:
            ledger = Ledger(txn)
            at = self._server(ledger, tenant, server)
            _refuse_unreachable(txn, at)
            move_volume(txn, tenant, volume, Status.ATTACHING)
            place = rules.choose_device(device, _devices_at(ledger, tenant, at))
            attachment = Attachment(volume, server, place, export_name, now, at.kind)
            found = replace(ledger.volume(tenant, volume), last_error=None)
            ledger.attach(tenant, found, attachment)
            size = Nodes(txn).volume(volume).size_bytes
            return at, replace(found, attachment=attachment), size

        with self._context.working_on(NodeKind.VOLUME, volume):
            at, attaching, size = await self._context.update(begin)
            hit(Failpoint.API_ATTACHING)
            return await self._open(tenant, at, attaching, size)

    async def _open(
        self, tenant: TenantId, at: Server, attaching: Volume, size_bytes: int
    ) -> Attachment:
        """The export, then the device; undone when one of them fails."""
        attachment = attachment_of(attaching)
        plugged = False
        try:
            await self._context.exports.publish(attachment)
            hit(Failpoint.API_PUBLISHED)
            info = await self._context.devices.plug(at, attachment, size_bytes)
            plugged = True
            attachment = replace(attachment, device_info=dict(info))
            attached = replace(attaching, attachment=attachment)
            await self._context.update(lambda txn: _complete(txn, tenant, attached))
        except BockdError as error:
            reason = f"attaching to server {at.name} failed: {discretion.text(error)}"
            await self._undo(tenant, at if plugged else None, attaching, reason)
            raise
        hit(Failpoint.API_ATTACHED)
        return attachment

    async def _undo(
        self, tenant: TenantId, at: Server | None, attaching: Volume, reason: str
    ) -> None:
        """Back to `available`. New connections are kept out first: the device may have begun to
        make some."""
        if await self._context.update(lambda txn: _close(txn, tenant, attaching)):
            await end_attachment(self._context, tenant, at, attaching, reason)
        elif at is not None:
            # Another gateway has ended it. The device is in a server that this one alone reaches.
            await unplug_dead(self._context, at, attaching)

    # -- detaching -----------------------------------------------------------------------------

    async def detach(
        self, tenant: TenantId, server: str, volume: VolumeId, *, force: bool = False
    ) -> None:
        """Detach a volume from a server (section 4.4.3.3)."""
        rules.check_server(server)

        def begin(txn: Transaction) -> tuple[Server, Volume]:
            ledger = Ledger(txn)
            at = self._server(ledger, tenant, server)
            if ledger.volume(tenant, volume).attachment is not None:
                found = _find(ledger, tenant, server, volume)
                if not force:
                    _refuse_unreachable(txn, _as_attached(at, found))
            return at, move_volume(txn, tenant, volume, Status.DETACHING)

        with self._context.working_on(NodeKind.VOLUME, volume):
            at, attached = await self._context.update(begin)
            hit(Failpoint.API_DETACHING)
            # The kind is what it was when the volume came there; it may be registered since.
            at = _as_attached(at, attached)
            try:
                if force:
                    await end_attachment(self._context, tenant, at, attached, None)
                else:
                    await self._release(tenant, at, attached)
            except BockdError as error:
                reason = f"detaching from server {server} failed: {discretion.text(error)}"
                await self._context.update(lambda txn: _keep(txn, tenant, attached, reason))
                raise
        hit(Failpoint.API_DETACHED)

    async def _release(self, tenant: TenantId, at: Server, attached: Volume) -> None:
        """As the server gives it up: the device first, then the export."""
        attachment = attachment_of(attached)
        await self._context.devices.unplug(at, attachment, force=False)
        failed = await self._context.exports.withdraw(attachment, force=False)
        hit(Failpoint.API_WITHDRAWN)
        await self._context.update(lambda txn: _forget(txn, tenant, attached, failed, None))


async def end_attachment(
    context: StorageContext, tenant: TenantId, at: Server | None, volume: Volume, reason: str | None
) -> None:
    """Take a volume out of `detaching`, whatever the server does. First its connections are cut,
    then the device is removed from the server `at` (None: there is no device). What goes wrong with
    the device is added to `reason`."""
    attachment = attachment_of(volume)
    failed = await context.exports.withdraw(attachment, force=True)
    hit(Failpoint.API_CUT)
    if at is not None:
        left = await unplug_dead(context, at, volume)
        reason = "; ".join(text for text in (reason, left) if text) or None
    await context.update(lambda txn: _forget(txn, tenant, volume, failed, reason))


async def unplug_dead(context: StorageContext, at: Server, volume: Volume) -> str | None:
    """Remove a device whose export is closed already. Return what went wrong."""
    with context.pool.index.reading() as txn:
        if elsewhere := unreachable(txn, at):
            return f"the device may still be in its virtual machine, where it is dead: {elsewhere}"
    try:
        await context.devices.unplug(at, attachment_of(volume), force=True)
    except BockdError as error:
        log.warning("volume %s at server %s: %s", volume.id, at.name, error)
        told = discretion.text(error)
        return f"the device may still be in server {at.name}, where it is dead: {told}"
    return None


def _as_attached(at: Server, attached: Volume) -> Server:
    """A server as it was when the volume came to it."""
    return replace(at, kind=attachment_of(attached).server_kind)


def _refuse_unreachable(txn: Transaction, at: Server) -> None:
    if reason := unreachable(txn, at):
        raise ConflictError(reason)


def _find(ledger: Ledger, tenant: TenantId, server: str, volume: VolumeId) -> Volume:
    """The tenant's volume that is attached to the server; NotFoundError."""
    found = ledger.volume(tenant, volume)
    if found.attachment is None or found.attachment.server_id != server:
        raise NotFoundError(f"Volume {volume} is not attached to server {server}.")
    return found


def _devices_at(ledger: Ledger, tenant: TenantId, at: Server) -> list[str]:
    """What a server has (rule 6). One that is registered for all tenants is one machine, whoever's
    volumes it has; an id that nobody has registered is each tenant's own."""
    shared = at.tenant is None and ledger.server(at.name) is not None
    tenants = [record.tenant.id for record in ledger.tenants()] if shared else [tenant]
    return [
        attachment_of(volume).device for one in tenants for volume in ledger.attached(one, at.name)
    ]


def attachment_of(volume: Volume) -> Attachment:
    """Return the attachment of a volume that is attached."""
    assert volume.attachment is not None
    return volume.attachment


def _ending(txn: Transaction, volume: Volume, status: Status) -> Volume | None:
    """The volume as it is now, if it is in a transient status of this attachment still, which the
    author of the transaction is to end."""
    owned = Ledger(txn).owned_volume(volume.id)
    if owned is None or not is_ours(txn, owned, status):
        return None
    return owned.volume if is_same_attachment(owned.volume, volume) else None


def _close(txn: Transaction, tenant: TenantId, attaching: Volume) -> bool:
    """From `attaching` to `detaching`: the export takes no new connections. It is no move that a
    request may make (rule 3), only how an attach that has failed goes back. Return False if another
    gateway has ended the attachment."""
    found = _ending(txn, attaching, Status.ATTACHING)
    if found is None:
        return False
    Ledger(txn).put_volume(tenant, replace(found, status=Status.DETACHING))
    return True


def _complete(txn: Transaction, tenant: TenantId, attached: Volume) -> None:
    """From `attaching` to `in-use`. Raise InvalidStateError if another gateway has ended the
    attachment."""
    found = _ending(txn, attached, Status.ATTACHING)
    if found is None:
        raise InvalidStateError(
            f"Invalid volume: volume {attached.id}: attaching it took so long that another gateway "
            "has undone it; try again"
        )
    status = Status.IN_USE
    new = replace(found, status=status, attachment=attached.attachment, last_error=None)
    Ledger(txn).put_volume(tenant, new)


def _keep(txn: Transaction, tenant: TenantId, attached: Volume, reason: str | None) -> None:
    """From `detaching` back to `in-use`, unless another gateway has ended the attachment."""
    found = _ending(txn, attached, Status.DETACHING)
    if found is not None:
        kept = replace(found, status=Status.IN_USE, last_error=reason)
        Ledger(txn).put_volume(tenant, kept)


def _forget(
    txn: Transaction, tenant: TenantId, attached: Volume, failed: str | None, reason: str | None
) -> None:
    """Out of `detaching`: the volume is attached no more, unless another gateway has ended the
    attachment. One that has failed shows `error` from this moment on, not only when its engine has
    recorded that."""
    found = _ending(txn, attached, Status.DETACHING)
    if found is None:
        return
    ledger, nodes = Ledger(txn), Nodes(txn)
    ledger.detach(tenant, replace(found, status=Status.AVAILABLE, last_error=reason))
    record = nodes.volume(found.id)
    if failed is not None and record.failed is None:
        nodes.fail_volume(found.id, failed)
