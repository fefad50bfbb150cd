"""The pool's volumes and snapshots for the file view (bockd.fuse.nodes.NodeTable).

Attributes come from the pool's files, in a thread: `stat` asks them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from bockd.daemon.exporthandle import ExportHandle
from bockd.daemon.exports import PoolExports
from bockd.fuse.nodes import Node
from bockd.model import NodeKind
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.nbd_server import NbdServer
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool
from bockd.pool.records import SnapshotRecord, VolumeRecord, refuse_trashed
from bockd.pool.trash import record_of
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import blocking
from bockd.throttle.gates import Gate

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
        def read(nodes: Nodes) -> list[Node]:
            if kind is NodeKind.VOLUME:
                return [self._node(nodes, kind, record) for record in nodes.shown_volumes()]
            return [self._node(nodes, kind, record) for record in nodes.shown_snapshots()]

        return await self._read(read)

    async def find(self, kind: NodeKind, ref: str) -> Node:
        def read(nodes: Nodes) -> Node:
            return self._show(nodes, kind, nodes.find(kind, ref))

        return await self._read(read)

    async def show(self, kind: NodeKind, node: int) -> Node:
        return await self._read(lambda nodes: self._show(nodes, kind, node))

    async def open(self, kind: NodeKind, node: int) -> ExportHandle:
        with self._pool.nodes() as nodes:
            record = _record(nodes, kind, node)
        return await self._exports.hold(kind, record)

    def statistics(self, export: OpenExport) -> ExportStatistics:
        return self._server.statistics_of(export.key, export.info.name)

    def gate(self, export: OpenExport) -> Gate:
        return self._server.gate_of(export.key)

    async def space(self) -> os.statvfs_result:
        return await self._run(self._pool.room)

    # -- reading ---------------------------------------------------------------------------------

    async def _read(self, read: Callable[[Nodes], T]) -> T:
        def call() -> T:
            with self._pool.nodes() as nodes:
                return read(nodes)

        return await self._run(call)

    async def _run(self, call: Callable[[], T]) -> T:
        async def steps() -> T:
            return await blocking(call)

        return await self._runner.run(steps())

    def _show(self, nodes: Nodes, kind: NodeKind, node: int) -> Node:
        return self._node(nodes, kind, _record(nodes, kind, node))

    def _node(self, nodes: Nodes, kind: NodeKind, record: VolumeRecord | SnapshotRecord) -> Node:
        attributes = self._pool.attributes(nodes, kind, record.id)
        return Node(
            kind=kind,
            id=record.id,
            name=record.name,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            modified_at=attributes.modified_at,
            allocated_bytes=attributes.allocated_bytes,
        )


def _record(nodes: Nodes, kind: NodeKind, node: int) -> VolumeRecord | SnapshotRecord:
    """NotFoundError for what was deleted, or moved to the trash, since its name was looked up."""
    record = record_of(nodes, kind, node)
    refuse_trashed(kind, record)
    return record
