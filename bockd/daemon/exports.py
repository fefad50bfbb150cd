"""The operator's view of the pool as NBD exports: `<id or name>`, `snapshot/<id or name>`.

It is what the Unix socket serves. Attached volumes are there under their attachments' names too,
which come first: a server on this machine need not go through TCP.
"""

from __future__ import annotations

from collections.abc import Callable

from bockd.blockstorage.holding import refuse_held
from bockd.daemon.attached import AttachedExports
from bockd.daemon.exporthandle import ExportHandle
from bockd.daemon.walking import walk
from bockd.model import NodeKind, VolumeId, export_name
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportKey
from bockd.pool.naming import export_description, find_export
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steprunner import StepRunner


class PoolExports:
    """All volumes and snapshots of a pool (bockd.nbd.server.exports.ExportTable)."""

    def __init__(
        self,
        pool: Pool,
        runner: StepRunner,
        on_idle: Callable[[ExportKey], None],
        attached: AttachedExports,
    ) -> None:
        self._attached = attached
        self._pool = pool
        self._runner = runner
        self._on_idle = on_idle

    async def list_exports(self) -> list[ExportInfo]:
        """List the volumes by id, then the snapshots by id."""
        volumes = await walk(
            self._pool,
            Nodes.volumes,
            lambda _, page: [describe(NodeKind.VOLUME, one) for one in page],
        )
        snapshots = await walk(
            self._pool,
            Nodes.snapshots,
            lambda _, page: [describe(NodeKind.SNAPSHOT, one) for one in page],
        )
        return [*volumes, *snapshots]

    async def describe(self, name: str) -> ExportInfo:
        """Return an export as its record describes it, without opening it. Raise NotFoundError
        when there is none of this name."""
        if self._attached.find(name) is not None:
            return await self._attached.describe(name)
        with self._pool.nodes() as nodes:
            return describe(*find_export(nodes, name))

    async def open(self, name: str) -> ExportHandle:
        """Open the volume or snapshot, or share it with those who have it open. Raises
        BockdError."""
        if self._attached.find(name) is not None:
            return await self._attached.open(name)
        with self._pool.nodes() as nodes:
            kind, record = find_export(nodes, name)
        return await self.hold(kind, record)

    async def hold(self, kind: NodeKind, record: VolumeRecord | SnapshotRecord) -> ExportHandle:
        """Open a volume or snapshot for any frontend and return the handle. Raises BockdError."""
        info = describe(kind, record)
        device = await self._runner.run(self._pool.use(kind, record.id))
        key = ExportKey(kind, record.id)
        try:
            # Whoever holds a volume commits that, and then counts its users. So one of the two sees
            # the other.
            if kind is NodeKind.VOLUME:
                with self._pool.index.reading() as txn:
                    refuse_held(txn, VolumeId(record.id))
        except BaseException:
            self._release(key)
            raise
        return ExportHandle(key, device, info.name, info.description, self._release)

    def _release(self, key: ExportKey) -> None:
        self._pool.leave(key.kind, key.id)
        self._on_idle(key)


def describe(kind: NodeKind, record: VolumeRecord | SnapshotRecord) -> ExportInfo:
    """Return an export as NBD_OPT_LIST and NBD_OPT_INFO describe it."""
    return ExportInfo(
        name=export_name(kind, record.name),
        description=export_description(kind, record.id),
        size_bytes=record.size_bytes,
        read_only=kind is NodeKind.SNAPSHOT,
    )
