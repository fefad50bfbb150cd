"""The control interface over a pool and its NBD server (bockd.control.Control).

The operator sees and may change everything in the pool, a tenant's volumes and snapshots included:
their records follow in the same transaction. What the operator makes belongs to no tenant and is
not visible through block storage.
"""

from __future__ import annotations

from dataclasses import replace

import trio

import bockd
from bockd.blockstorage import snapshots, volumes
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.running import Surroundings
from bockd.blockstorage.servers import Servers
from bockd.config import Settings
from bockd.control import (
    CheckReport,
    DaemonInfo,
    SnapshotInfo,
    Space,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.dataplane.exports import export_uri
from bockd.engine.check import check_open_pool
from bockd.model import NodeKind, Server, SnapshotId, VolumeId
from bockd.server.exports import ExportKey
from bockd.server.nbd_server import NbdServer
from bockd.store.catalogue import SnapshotRecord, VolumeRecord
from bockd.store.index import Table


class PoolControl:
    """Implements bockd.control.Control; see there for what each method promises."""

    def __init__(
        self, around: Surroundings, server: NbdServer, settings: Settings, nbd_listen: str | None
    ) -> None:
        self._pool = around.pool
        self._servers = Servers(around)
        self._server = server
        self._driver = server.driver
        self._socket = str(settings.nbd_socket)
        self._data_dir = str(settings.data_dir)
        self._nbd_listen = nbd_listen

    async def info(self) -> DaemonInfo:
        with self._pool.catalogue() as catalogue:
            volumes = catalogue.txn.count(Table.VOLUMES)
            snapshots = catalogue.txn.count(Table.SNAPSHOTS)
        return DaemonInfo(
            version=bockd.__version__,
            data_dir=self._data_dir,
            nbd_socket=self._socket,
            nbd_listen=self._nbd_listen,
            volumes=volumes,
            snapshots=snapshots,
        )

    # -- volumes -----------------------------------------------------------------------------

    async def list_volumes(self) -> list[VolumeInfo]:
        with self._pool.catalogue() as catalogue:
            return [self._volume_info(record) for record in catalogue.volumes()]

    async def show_volume(self, ref: str) -> VolumeInfo:
        return self._show_volume(self._pool.find_volume(ref))

    def _show_volume(self, volume: VolumeId) -> VolumeInfo:
        with self._pool.catalogue() as catalogue:
            return self._volume_info(catalogue.volume(volume))

    def _volume_info(self, record: VolumeRecord) -> VolumeInfo:
        connections = self._server.connections(ExportKey(NodeKind.VOLUME, record.id))
        opened = self._pool.volumes.get(record.id)
        failed = opened.volume.durability.failed if opened else record.failed
        failed = failed or self._pool.refusals.get(record.id)
        status = "error" if failed else "in-use" if connections else "available"
        return VolumeInfo(
            id=record.id,
            name=record.name,
            size_bytes=record.size_bytes,
            status=status,
            created_at=record.created_at,
            from_snapshot=record.from_snapshot,
            connections=connections,
            uri=export_uri(NodeKind.VOLUME, record.name, self._socket),
            error=failed,
        )

    async def create_volume(
        self, name: str, size_bytes: int | None, from_snapshot: str | None
    ) -> VolumeInfo:
        source = None if from_snapshot is None else self._pool.find_snapshot(from_snapshot)
        record = await self._driver.run(self._pool.create_volume(name, size_bytes, source))
        return self._volume_info(record)

    async def extend_volume(self, ref: str, size_bytes: int) -> VolumeInfo:
        volume = self._pool.find_volume(ref)
        return self._volume_info(
            await self._driver.run(
                self._pool.extend_volume(volume, size_bytes, volumes.follow_size)
            )
        )

    async def delete_volume(self, ref: str) -> None:
        volume = self._pool.find_volume(ref)
        await self._driver.run(self._pool.delete_volume(volume, volumes.forget_record))
        self._server.forget(ExportKey(NodeKind.VOLUME, volume))

    async def reopen_volume(self, ref: str) -> VolumeInfo:
        volume = self._pool.find_volume(ref)
        return self._volume_info(await self._driver.run(self._pool.reopen_volume(volume)))

    # -- snapshots ---------------------------------------------------------------------------

    async def list_snapshots(self, volume: str | None) -> list[SnapshotInfo]:
        origin = None if volume is None else self._pool.find_volume(volume)
        with self._pool.catalogue() as catalogue:
            return [
                self._snapshot_info(record)
                for record in catalogue.snapshots()
                if origin is None or record.volume == origin
            ]

    async def show_snapshot(self, ref: str) -> SnapshotInfo:
        snapshot = self._pool.find_snapshot(ref)
        with self._pool.catalogue() as catalogue:
            return self._snapshot_info(catalogue.snapshot(snapshot))

    def _snapshot_info(self, record: SnapshotRecord) -> SnapshotInfo:
        return SnapshotInfo(
            id=record.id,
            name=record.name,
            volume=record.volume,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            connections=self._server.connections(ExportKey(NodeKind.SNAPSHOT, record.id)),
            uri=export_uri(NodeKind.SNAPSHOT, record.name, self._socket),
        )

    async def create_snapshot(self, volume: str, name: str) -> SnapshotInfo:
        origin = self._pool.find_volume(volume)
        return self._snapshot_info(await self._driver.run(self._pool.create_snapshot(origin, name)))

    async def delete_snapshot(self, ref: str) -> None:
        snapshot = self._pool.find_snapshot(ref)
        await self._driver.run(self._pool.delete_snapshot(snapshot, snapshots.forget_record))
        self._server.forget(ExportKey(NodeKind.SNAPSHOT, snapshot))

    async def revert_volume(self, snapshot: str) -> VolumeInfo:
        source = self._pool.find_snapshot(snapshot)
        with self._pool.catalogue() as catalogue:
            volume = catalogue.snapshot(source).volume
        return self._volume_info(
            await self._driver.run(
                self._pool.revert_volume(volume, source, volumes.refuse_attached)
            )
        )

    # -- servers -----------------------------------------------------------------------------

    async def list_servers(self) -> list[Server]:
        return self._servers.all()

    async def show_server(self, name: str) -> Server:
        return self._servers.registered(name)

    async def add_server(self, server: Server) -> Server:
        return await self._driver.run(self._servers.add(server))

    async def remove_server(self, name: str) -> None:
        await self._driver.run(self._servers.remove(name))

    # -- looking -----------------------------------------------------------------------------

    async def space(self, kind: NodeKind, ref: str) -> Space:
        find = self._pool.find_volume if kind is NodeKind.VOLUME else self._pool.find_snapshot
        return await self._driver.run(self._pool.measure(kind, find(ref)))

    async def statistics(self) -> list[VolumeStatistics]:
        entries = []
        with self._pool.catalogue() as catalogue:
            for entry in self._server.statistics():
                record = (
                    catalogue.volume(VolumeId(entry.id))
                    if entry.kind is NodeKind.VOLUME
                    else catalogue.snapshot(SnapshotId(entry.id))
                )
                entries.append(replace(entry, name=record.name))
        return sorted(entries, key=lambda entry: entry.id)

    async def check(self) -> CheckReport:
        for volume in list(self._pool.volumes):
            await self._driver.run(self._pool.checkpoint(volume))
        live = frozenset(self._pool.volumes)
        return await trio.to_thread.run_sync(lambda: self._check(live))

    def _check(self, live: frozenset[VolumeId]) -> CheckReport:
        report = check_open_pool(self._pool.store, live=live, repair=False)
        with self._pool.store.index.reading() as txn:
            problems = (*report.problems, *find_problems(txn))
        return replace(report, clean=not problems, problems=problems)
