"""The pool's volumes and snapshots for the file view (bockd.fuse.nodes.NodeTable).

Attributes come from the index and from the layers' files, in a thread: `stat` asks them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from bockd.daemon.exporthandle import ExportHandle
from bockd.daemon.exports import PoolExports
from bockd.drivers.local.format.catalogue import Catalogue, SnapshotRecord, VolumeRecord
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.pool import Pool
from bockd.drivers.local.space import allocated_bytes, changed_at
from bockd.errors import DamagedError, from_os_error
from bockd.fuse.nodes import Node
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.nbd_server import NbdServer
from bockd.nbd.server.statistics import ExportStatistics
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import blocking

T = TypeVar("T")


class PoolNodes:
    """Implements NodeTable; holds are those that NBD connections have, too."""

    def __init__(
        self, pool: Pool, runner: StepRunner, exports: PoolExports, server: NbdServer
    ) -> None:
        self._pool = pool
        self._runner = runner
        self._exports = exports
        self._server = server

    async def list_nodes(self, kind: NodeKind) -> list[Node]:
        def read(catalogue: Catalogue) -> list[Node]:
            if kind is NodeKind.VOLUME:
                return [self._node(catalogue, kind, record) for record in catalogue.volumes()]
            return [self._node(catalogue, kind, record) for record in catalogue.snapshots()]

        return await self._read(read)

    async def find(self, kind: NodeKind, ref: str) -> Node:
        def read(catalogue: Catalogue) -> Node:
            return self._show(catalogue, kind, catalogue.find(kind, ref))

        return await self._read(read)

    async def show(self, kind: NodeKind, node: int) -> Node:
        return await self._read(lambda catalogue: self._show(catalogue, kind, node))

    async def open(self, kind: NodeKind, node: int) -> ExportHandle:
        with self._pool.catalogue() as catalogue:
            record = _record(catalogue, kind, node)
        return await self._exports.hold(kind, record)

    def statistics(self, export: OpenExport) -> ExportStatistics:
        return self._server.statistics_of(export.key, export.info.name)

    async def space(self) -> os.statvfs_result:
        root = self._pool.store.layout.root
        try:
            return await self._run(lambda: os.statvfs(root))
        except OSError as error:
            raise from_os_error(error, f"asking for the space of {root}") from error

    # -- reading ---------------------------------------------------------------------------------

    async def _read(self, read: Callable[[Catalogue], T]) -> T:
        def call() -> T:
            with self._pool.catalogue() as catalogue:
                return read(catalogue)

        return await self._run(call)

    async def _run(self, call: Callable[[], T]) -> T:
        async def steps() -> T:
            return await blocking(call)

        return await self._runner.run(steps())

    def _show(self, catalogue: Catalogue, kind: NodeKind, node: int) -> Node:
        return self._node(catalogue, kind, _record(catalogue, kind, node))

    def _node(
        self, catalogue: Catalogue, kind: NodeKind, record: VolumeRecord | SnapshotRecord
    ) -> Node:
        layout = self._pool.store.layout
        modified_at = record.created_at
        if isinstance(record, VolumeRecord):
            modified_at = max(modified_at, changed_at(layout, record.head))
        return Node(
            kind=kind,
            id=record.id,
            name=record.name,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            modified_at=modified_at,
            allocated_bytes=_allocated(layout, catalogue, record),
        )


def _allocated(layout: Layout, catalogue: Catalogue, record: VolumeRecord | SnapshotRecord) -> int:
    try:
        return min(record.size_bytes, allocated_bytes(layout, catalogue, record.map))
    except DamagedError:
        # Opening it says what is wrong; the others are listed.
        return record.size_bytes


def _record(catalogue: Catalogue, kind: NodeKind, node: int) -> VolumeRecord | SnapshotRecord:
    """NotFoundError for what was deleted since its name was looked up."""
    if kind is NodeKind.VOLUME:
        return catalogue.volume(VolumeId(node))
    return catalogue.snapshot(SnapshotId(node))
