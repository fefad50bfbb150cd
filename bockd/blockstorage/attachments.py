"""Attachments (section 4.4.3): a volume at a server, reached through an export of its own.

Attaching and detaching have three parts: a transaction that moves the volume to `attaching` or
`detaching`, which keeps everybody else off and decides whether its export takes new connections
(`rules.REACHABLE`); what the daemon and the server's plugger do; a transaction that ends it.
What is caught in the middle by a crash is resolved at the next start
(`bockd.blockstorage.interrupted`).

What fails on the way is undone, and the volume keeps the reason (`Volume.last_error`).
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Attachment, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import find_server
from bockd.blockstorage.volumes import move_volume
from bockd.errors import BockdError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, Server, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes

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
            move_volume(txn, tenant, volume, Status.ATTACHING)
            place = rules.choose_device(device, _devices_at(ledger, tenant, at))
            attachment = Attachment(volume, server, place, export_name, now, at.kind)
            found = replace(ledger.volume(tenant, volume), last_error=None)
            ledger.attach(tenant, found, attachment)
            size = Nodes(txn).volume(volume).size_bytes
            return at, replace(found, attachment=attachment), size

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
            await self._context.update(lambda txn: _keep(txn, tenant, attached, None))
        except BockdError as error:
            reason = f"attaching to server {at.name} failed: {error}"
            await self._undo(tenant, at if plugged else None, attaching, reason)
            raise
        hit(Failpoint.API_ATTACHED)
        return attachment

    async def _undo(
        self, tenant: TenantId, at: Server | None, attaching: Volume, reason: str
    ) -> None:
        """Back to `available`. New connections are kept out first: the device may have begun to
        make some."""
        volume = attaching.id
        await self._context.update(lambda txn: _close(txn, tenant, volume))
        await end_attachment(self._context, tenant, at, attaching, reason)

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
                _find(ledger, tenant, server, volume)
            return at, move_volume(txn, tenant, volume, Status.DETACHING)

        at, attached = await self._context.update(begin)
        hit(Failpoint.API_DETACHING)
        # The kind is what it was when the volume came to the server; it may be registered since.
        at = replace(at, kind=attachment_of(attached).server_kind)
        try:
            if force:
                await end_attachment(self._context, tenant, at, attached, None)
            else:
                await self._release(tenant, at, attached)
        except BockdError as error:
            reason = f"detaching from server {server} failed: {error}"
            await self._context.update(lambda txn: _keep(txn, tenant, attached, reason))
            raise
        hit(Failpoint.API_DETACHED)

    async def _release(self, tenant: TenantId, at: Server, attached: Volume) -> None:
        """As the server gives it up: the device first, then the export."""
        attachment = attachment_of(attached)
        await self._context.devices.unplug(at, attachment, force=False)
        failed = await self._context.exports.withdraw(attachment, force=False)
        hit(Failpoint.API_WITHDRAWN)
        await self._context.update(lambda txn: _forget(txn, tenant, attached.id, failed, None))


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
        try:
            await context.devices.unplug(at, attachment, force=True)
        except BockdError as error:
            log.warning("volume %s at server %s: %s", volume.id, at.name, error)
            left = f"the device may still be in server {at.name}, where it is dead: {error}"
            reason = f"{reason}; {left}" if reason else left
    await context.update(lambda txn: _forget(txn, tenant, volume.id, failed, reason))


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


def _close(txn: Transaction, tenant: TenantId, volume: VolumeId) -> None:
    """From `attaching` to `detaching`: the export takes no new connections. It is no move that a
    request may make (rule 3), only how an attach that has failed goes back."""
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    assert found.status is Status.ATTACHING
    ledger.put_volume(tenant, replace(found, status=Status.DETACHING))


def _keep(txn: Transaction, tenant: TenantId, attached: Volume, reason: str | None) -> None:
    """Out of `attaching` or `detaching` into `in-use`."""
    ledger = Ledger(txn)
    found = ledger.volume(tenant, attached.id)
    rules.check_move(NodeKind.VOLUME, found.id, found.status, Status.IN_USE)
    ledger.put_volume(
        tenant,
        replace(found, status=Status.IN_USE, attachment=attached.attachment, last_error=reason),
    )


def _forget(
    txn: Transaction, tenant: TenantId, volume: VolumeId, failed: str | None, reason: str | None
) -> None:
    """Out of `detaching`: the volume is attached no more. One that has failed shows `error` from
    this moment on, not only when its engine has recorded that."""
    ledger, nodes = Ledger(txn), Nodes(txn)
    found = ledger.volume(tenant, volume)
    rules.check_move(NodeKind.VOLUME, volume, found.status, Status.AVAILABLE)
    ledger.detach(tenant, replace(found, status=Status.AVAILABLE, last_error=reason))
    record = nodes.volume(volume)
    if failed is not None and record.failed is None:
        nodes.fail_volume(volume, failed)
