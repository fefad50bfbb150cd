"""Attached volumes as exports: who may reach them, and how that ends.

An attachment's export takes new connections while its volume's status is one of `rules.REACHABLE`.
That is looked up in the index for each connection, so it holds after a restart, and nothing has to
be opened or closed but connections. A client's connection belongs to the attachment when it came
under the attachment's export name; an operator's, who came under the volume's name or id on the
Unix socket, does not, and stays when the volume is detached.

No function here logs an export name, nor repeats one in an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Attachment
from bockd.blockstorage.records import Ledger
from bockd.daemon.exporthandle import ExportHandle
from bockd.errors import NotFoundError
from bockd.model import NodeKind, VolumeId
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool
from bockd.pool.records import VolumeRecord
from bockd.runtime.asyncbridge import AsyncBridge
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
"""How long a detach waits for clients to have what they sent carried out and answered. A client
that takes no replies for so long is gone, or hangs; then its connection is cut. What the engine has
begun is finished in any case."""

WIND_UP_SECONDS = 0.5
"""How long clients have for the same when another gateway asks for the volume: half of what that
one waits. It closes the volume in the other half."""

OnIdle = Callable[[ExportKey], None]


def attachment_key(attachment: Attachment) -> ExportKey:
    """Return the key by which the NBD server knows the attachment's volume."""
    return ExportKey(NodeKind.VOLUME, attachment.volume_id)


class AttachedVolumes:
    """Implements bockd.blockstorage.running.ExportPublisher."""

    def __init__(self, pool: Pool, server: NbdServer, bridge: AsyncBridge, on_idle: OnIdle) -> None:
        self._pool = pool
        self._server = server
        self._bridge = bridge
        self._on_idle = on_idle

    async def publish(self, attachment: Attachment) -> None:
        """Open the volume once, so that one that is damaged, or open in another process, is refused
        here and not when the server connects."""
        await self._pool.use(NodeKind.VOLUME, attachment.volume_id)
        self._pool.leave(NodeKind.VOLUME, attachment.volume_id)
        self._on_idle(attachment_key(attachment))

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        """See ExportPublisher.withdraw. The record keeps new connections out already; those that
        are being made are refused too (see `AttachedExports.open`)."""
        key, name = attachment_key(attachment), attachment.export_name
        if force:
            await self._bridge.call(lambda: self._server.disconnect(key, name))
        else:
            await self._bridge.call(lambda: self._server.drain_and_close(key, name, DRAIN_SECONDS))
        return await self._pool.recall(attachment.volume_id, force=force)

    async def end_connections(self, volume: VolumeId) -> None:
        """End the connections of a volume that another gateway is given (`Pool.before_giving`)."""
        key = ExportKey(NodeKind.VOLUME, volume)
        await self._bridge.call(lambda: self._server.wind_up(key, WIND_UP_SECONDS))

    def connections(self, kind: NodeKind, node: int) -> int:
        """Return how many clients of an export are connected now, over all listeners."""
        return self._server.connections(ExportKey(kind, node))

    def clients(self, attachment: Attachment) -> int:
        """Return how many clients are connected under the attachment's export name."""
        return self._server.connections(attachment_key(attachment), attachment.export_name)

    def forget(self, kind: NodeKind, node: int, *, kept: bool = False) -> None:
        """Drop the counters of a volume or snapshot that was deleted."""
        self._server.forget(ExportKey(kind, node), kept=kept)


class AttachedExports:
    """What TCP serves (nbd.server.exports.ExportTable): attached volumes under the names of their
    exports, and nothing else. They are not listed."""

    def __init__(self, pool: Pool, runner: StepRunner, on_idle: OnIdle) -> None:
        self._pool = pool
        self._runner = runner
        self._on_idle = on_idle

    async def list_exports(self) -> tuple[ExportInfo, ...]:
        """Return no exports: clients that may connect have been told the name."""
        return ()

    async def describe(self, name: str) -> ExportInfo:
        """Return the export as its record describes it. Raise NotFoundError when nothing can be
        reached under this name."""
        found = self.find(name)
        return _info(name, found.size_bytes) if found else _refuse()

    async def open(self, name: str) -> ExportHandle:
        """Open the volume, or share it with those who have it open. Raises NotFoundError,
        BockdError."""
        found = self.find(name)
        if found is None:
            _refuse()
        # Firmly: who knows the name is the volume's server, wherever else it was connected.
        device = await self._runner.run(self._pool.use(NodeKind.VOLUME, found.id, firm=True))
        key = ExportKey(NodeKind.VOLUME, found.id)
        # The volume may have been detached meanwhile. From this look until the connection is among
        # the server's members nothing is awaited, so a detach that follows finds it there.
        try:
            if self.find(name) is None:
                _refuse()
        except BaseException:
            self._release(key)
            raise
        return ExportHandle(key, device, name, _DESCRIPTION, self._release)

    def find(self, name: str) -> VolumeRecord | None:
        """Return the volume that can be reached under an export name now, or None."""
        with self._pool.index.reading() as txn:
            owned = Ledger(txn).exported(name)
            if owned is None or owned.volume.status not in rules.REACHABLE:
                return None
            return Nodes(txn).volume(owned.volume.id)

    def _release(self, key: ExportKey) -> None:
        self._pool.leave(key.kind, key.id)
        self._on_idle(key)


_DESCRIPTION = "attached volume"


def _info(name: str, size_bytes: int) -> ExportInfo:
    return ExportInfo(name, _DESCRIPTION, size_bytes, read_only=False)


def _refuse() -> NoReturn:
    raise NotFoundError("no such export; a volume is reached over TCP by the URI of its attachment")
