"""Attachments (section 4.4.3): a volume at a server.

Attaching and detaching have three parts: a transaction that moves the volume to `attaching` or
`detaching`, which keeps everybody else off; the data plane's part (`Exports`); a transaction that
ends it. What is caught in the middle by a crash is resolved at the next start.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Attachment, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import Surroundings
from bockd.blockstorage.volumes import move_volume
from bockd.errors import BockdError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, VolumeId
from bockd.steps import Steps
from bockd.store.index import Transaction

EXPORT_NAME_BYTES = 24
"""Random bytes in an export name: 192 bits are not guessed, and fit where names are typed."""


class Attachments:
    """The operations on attachments; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._pool = around.pool

    def list(self, tenant: TenantId, server: str) -> list[Attachment]:
        """4.4.3.1."""
        rules.check_server(server)
        with self._pool.store.index.reading() as txn:
            return [_attachment(volume) for volume in Ledger(txn).attached(tenant, server)]

    def show(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        """One attachment."""
        rules.check_server(server)
        with self._pool.store.index.reading() as txn:
            return _attachment(_find(Ledger(txn), tenant, server, volume))

    def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Steps[Attachment]:
        """4.4.3.2."""
        rules.check_server(server)
        export_name = secrets.token_urlsafe(EXPORT_NAME_BYTES)
        now = self._pool.clock()

        def begin(txn: Transaction) -> Attachment:
            ledger = Ledger(txn)
            move_volume(txn, tenant, volume, Status.ATTACHING)
            taken = [_attachment(other).device for other in ledger.attached(tenant, server)]
            attachment = Attachment(
                volume, server, rules.choose_device(device, taken), export_name, now
            )
            ledger.attach(tenant, ledger.volume(tenant, volume), attachment)
            return attachment

        attachment = yield from self._around.update(begin)
        hit(Failpoint.API_ATTACHING)
        try:
            yield from self._around.exports.publish(attachment)
            hit(Failpoint.API_PUBLISHED)
            yield from self._around.update(
                lambda txn: _end(txn, tenant, volume, Status.IN_USE, attached=True)
            )
        except BockdError:
            yield from self._around.exports.withdraw(attachment)
            yield from self._around.update(
                lambda txn: _end(txn, tenant, volume, Status.AVAILABLE, attached=False)
            )
            raise
        hit(Failpoint.API_ATTACHED)
        return attachment

    def detach(self, tenant: TenantId, server: str, volume: VolumeId) -> Steps[None]:
        """4.4.3.3."""
        rules.check_server(server)

        def begin(txn: Transaction) -> Attachment:
            if Ledger(txn).volume(tenant, volume).attachment is not None:
                _find(Ledger(txn), tenant, server, volume)
            return _attachment(move_volume(txn, tenant, volume, Status.DETACHING))

        attachment = yield from self._around.update(begin)
        hit(Failpoint.API_DETACHING)
        try:
            yield from self._around.exports.withdraw(attachment)
        except BockdError:
            yield from self._around.update(
                lambda txn: _end(txn, tenant, volume, Status.IN_USE, attached=True)
            )
            raise
        hit(Failpoint.API_WITHDRAWN)
        yield from self._around.update(
            lambda txn: _end(txn, tenant, volume, Status.AVAILABLE, attached=False)
        )
        hit(Failpoint.API_DETACHED)


def _find(ledger: Ledger, tenant: TenantId, server: str, volume: VolumeId) -> Volume:
    """The tenant's volume that is attached to the server; NotFoundError."""
    found = ledger.volume(tenant, volume)
    if found.attachment is None or found.attachment.server_id != server:
        raise NotFoundError(f"Volume {volume} is not attached to server {server}.")
    return found


def _attachment(volume: Volume) -> Attachment:
    assert volume.attachment is not None
    return volume.attachment


def _end(
    txn: Transaction, tenant: TenantId, volume: VolumeId, status: Status, *, attached: bool
) -> None:
    """Out of `attaching` or `detaching`."""
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    rules.check_move(NodeKind.VOLUME, volume, found.status, status)
    settled = replace(found, status=status)
    if attached:
        ledger.put_volume(tenant, settled)
    else:
        ledger.detach(tenant, settled)
