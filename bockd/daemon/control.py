"""The control interface over a pool and its NBD server (bockd.control.Control).

The operator sees everything in the pool, of all tenants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import trio

import bockd
from bockd.blockstorage import rules
from bockd.blockstorage.adopting import adopt, find_unowned
from bockd.blockstorage.check import check_everything
from bockd.blockstorage.contract import Status, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import Servers
from bockd.config import Settings
from bockd.control import (
    CheckReport,
    DaemonInfo,
    FrozenPool,
    PoolInfo,
    ScrubStatus,
    SnapshotInfo,
    Space,
    SpacePage,
    Unowned,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.daemon.backups import Backups
from bockd.daemon.capacity import Capacity
from bockd.daemon.scrubbing import Scrubbing
from bockd.drivers.local.coopeners import elsewhere
from bockd.drivers.local.format.catalogue import Catalogue, SnapshotRecord, VolumeRecord
from bockd.drivers.local.occupancy import measure_all
from bockd.errors import DamagedError, InUseError
from bockd.index.index import Table
from bockd.model import (
    NodeKind,
    Server,
    SnapshotId,
    TlsMode,
    VolumeId,
    export_name,
    export_uri,
)
from bockd.nbd.server.fastlane import lane
from bockd.nbd.server.nbd_server import NbdServer


class PoolControl:
    """Implements bockd.control.Control; see there for what each method promises."""

    def __init__(
        self,
        context: StorageContext,
        server: NbdServer,
        settings: Settings,
        nbd_listen: str | None,
        api_listen: str | None,
        mount: str | None,
        scrubbing: Scrubbing,
        capacity: Capacity,
        backups: Backups,
        waiting: Callable[[], tuple[str, ...]],
    ) -> None:
        self._backups = backups
        self._waiting = waiting
        self._scrubbing = scrubbing
        self._capacity = capacity
        self._context = context
        self._pool = context.pool
        self._servers = Servers(context)
        self._server = server
        self._runner = server.runner
        self._socket = str(settings.nbd_socket)
        self._data_dir = str(settings.data_dir)
        self._nbd_listen = nbd_listen
        self._api_listen = api_listen
        self._api_tls = settings.api.tls is not TlsMode.OFF
        self._mount = mount

    async def info(self) -> DaemonInfo:
        with self._pool.catalogue() as catalogue:
            volumes = catalogue.txn.count(Table.VOLUMES)
            snapshots = catalogue.txn.count(Table.SNAPSHOTS)
        return DaemonInfo(
            version=bockd.__version__,
            data_dir=self._data_dir,
            nbd_socket=self._socket,
            nbd_listen=self._nbd_listen,
            api_listen=self._api_listen,
            api_tls=self._api_tls,
            daemon=self._context.daemon,
            mount=self._mount,
            volumes=volumes,
            snapshots=snapshots,
            fast_lane=lane(os.environ),
            waiting=self._waiting(),
        )

    # -- volumes -----------------------------------------------------------------------------

    async def list_volumes(self) -> list[VolumeInfo]:
        with self._pool.catalogue() as catalogue:
            filling = {found.volume for found in Ledger(catalogue.txn).imports()}
            return [
                self._volume_info(catalogue, record)
                for record in catalogue.volumes()
                if record.id not in filling
            ]

    async def show_volume(self, ref: str) -> VolumeInfo:
        return self._show_volume(self._pool.find_volume(ref))

    async def release_volume(self, ref: str) -> None:
        volume = self._pool.find_volume(ref)
        await self._runner.run(self._pool.close_idle_volume(volume))
        if volume in self._pool.volumes:
            raise InUseError(f"volume {volume} is in use here")

    def _show_volume(self, volume: VolumeId) -> VolumeInfo:
        with self._pool.catalogue() as catalogue:
            return self._volume_info(catalogue, catalogue.volume(volume))

    def _volume_info(self, catalogue: Catalogue, record: VolumeRecord) -> VolumeInfo:
        opened = self._pool.volumes.get(record.id)
        trouble = self._pool.trouble(record)
        stored = Status.AVAILABLE
        try:
            owned = Ledger(catalogue.txn).owned_volume(record.id)
            if owned is not None:
                stored = owned.volume.status
        except DamagedError as error:
            trouble = trouble or str(error)
        return VolumeInfo(
            id=record.id,
            name=record.name,
            size_bytes=record.size_bytes,
            status=rules.status_shown(stored, refused=trouble is not None),
            created_at=record.created_at,
            from_snapshot=record.from_snapshot,
            connections=opened.users if opened else 0,
            uri=export_uri(export_name(NodeKind.VOLUME, record.name), self._socket),
            error=trouble,
        )

    # -- snapshots ---------------------------------------------------------------------------

    async def list_snapshots(self, volume: str | None) -> list[SnapshotInfo]:
        origin = None if volume is None else self._pool.find_volume(volume)
        with self._pool.catalogue() as catalogue:
            images = {found.snapshot for found in Ledger(catalogue.txn).images()}
            return [
                self._snapshot_info(record)
                for record in catalogue.snapshots()
                if record.id not in images and (origin is None or record.volume == origin)
            ]

    def _snapshot_info(self, record: SnapshotRecord) -> SnapshotInfo:
        opened = self._pool.snapshots.get(record.id)
        return SnapshotInfo(
            id=record.id,
            name=record.name,
            volume=record.volume,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            connections=opened.users if opened else 0,
            uri=export_uri(export_name(NodeKind.SNAPSHOT, record.name), self._socket),
        )

    async def unowned(self) -> Unowned:
        with self._pool.store.index.reading() as txn:
            volumes, snapshots = find_unowned(txn)
        return Unowned(
            volumes=tuple(record.name for record in volumes),
            snapshots=tuple(record.name for record in snapshots),
        )

    async def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
        await self._runner.run(
            self._context.update(lambda txn: adopt(txn, kind, ref, TenantId(tenant)))
        )

    # -- servers -----------------------------------------------------------------------------

    async def list_servers(self) -> list[Server]:
        return self._servers.all()

    async def show_server(self, name: str) -> Server:
        return self._servers.registered(name)

    async def add_server(self, server: Server) -> Server:
        return await self._runner.run(self._servers.add(server))

    async def remove_server(self, name: str) -> None:
        await self._runner.run(self._servers.remove(name))

    # -- looking -----------------------------------------------------------------------------

    async def space(self, kind: NodeKind, ref: str) -> Space:
        find = self._pool.find_volume if kind is NodeKind.VOLUME else self._pool.find_snapshot
        return await self._runner.run(self._pool.measure(kind, find(ref)))

    async def spaces(self, after: int, seconds: float | None) -> SpacePage:
        deadline = None if seconds is None else time.monotonic() + seconds

        def until() -> bool:
            return deadline is not None and time.monotonic() >= deadline

        return await self._runner.run(measure_all(self._pool, after, until))

    async def pool(self) -> PoolInfo:
        return await self._capacity.measure()

    async def statistics(self) -> list[VolumeStatistics]:
        entries = []
        with self._pool.catalogue() as catalogue:
            for entry in self._server.statistics():
                info = (
                    self._volume_info(catalogue, catalogue.volume(VolumeId(entry.id)))
                    if entry.kind is NodeKind.VOLUME
                    else self._snapshot_info(catalogue.snapshot(SnapshotId(entry.id)))
                )
                entries.append(replace(entry, name=info.name, connections=info.connections))
        return sorted(entries, key=lambda entry: entry.id)

    async def check(self) -> CheckReport:
        for volume in list(self._pool.volumes):
            await self._runner.run(self._pool.try_checkpoint(volume))
        # What a process that died left behind is finished; what another one has open is not ours.
        await self._runner.run(self._pool.recover_volumes())
        ours = frozenset(self._pool.volumes)
        return await trio.to_thread.run_sync(lambda: self._check(ours))

    async def begin_backup(self) -> FrozenPool:
        return await self._backups.begin()

    async def end_backup(self, backup: str) -> None:
        await self._backups.end(backup)

    async def scrub(self, rate_mib: int | None, restart: bool) -> ScrubStatus:
        self._scrubbing.begin(rate_mib, restart=restart)
        return self._scrubbing.status()

    async def scrub_status(self) -> ScrubStatus:
        return self._scrubbing.status()

    def _check(self, ours: frozenset[VolumeId]) -> CheckReport:
        live = ours | elsewhere(self._pool.store, ours)
        return check_everything(self._pool.store, live=live, repair=False)
