"""The control interface over a pool and its NBD server (bockd.control.Control).

The operator sees everything in the pool, of all tenants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import trio

import bockd
from bockd.blockstorage import rules
from bockd.blockstorage.adopting import adopt, find_unowned
from bockd.blockstorage.check import with_records
from bockd.blockstorage.contract import Status, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.trashrecords import TrashLedger
from bockd.config import Settings
from bockd.control import (
    DaemonInfo,
    FrozenPool,
    PoolInfo,
    RecordingInfo,
    SnapshotInfo,
    Unowned,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.daemon.backend import Backend, BackupControl, ScrubControl
from bockd.daemon.capacity import Capacity
from bockd.daemon.walking import count_nodes, walk
from bockd.errors import DamagedError, InUseError, NotFoundError
from bockd.model import (
    DeviceProfile,
    IoLimits,
    NodeKind,
    Server,
    SnapshotId,
    TlsMode,
    VolumeId,
    export_name,
    export_uri,
)
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.fastlane import lane
from bockd.nbd.server.nbd_server import NbdServer
from bockd.pool.gateways import Gateway
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.reports import BackupRecord, CheckReport, FamilyUsage, ScrubStatus, Space, SpacePage
from bockd.pool.unsupported import no_backup, no_scrub
from bockd.profiles.document import check_profile
from bockd.runtime.pace import Pace
from bockd.validation import check_io_limits


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
        backend: Backend,
        capacity: Capacity,
        waiting: Callable[[], tuple[str, ...]],
    ) -> None:
        self._waiting = waiting
        self._backend = backend
        self._capacity = capacity
        self._context = context
        self._pool = context.pool
        self._driver = context.pool.features.driver
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
        counts = await count_nodes(self._pool)
        return DaemonInfo(
            version=bockd.__version__,
            data_dir=self._data_dir,
            nbd_socket=self._socket,
            nbd_listen=self._nbd_listen,
            api_listen=self._api_listen,
            api_tls=self._api_tls,
            daemon=self._context.daemon,
            mount=self._mount,
            volumes=counts.volumes,
            snapshots=counts.snapshots,
            fast_lane=lane(os.environ),
            new_data=self._backend.new_data(),
            waiting=self._waiting(),
            driver=self._driver,
            cluster=self._backend.cluster,
        )

    async def list_gateways(self) -> list[Gateway]:
        return self._pool.gateways()

    # -- volumes -----------------------------------------------------------------------------

    async def list_volumes(self) -> list[VolumeInfo]:
        return await walk(self._pool, Nodes.volumes, self._volume_infos)

    async def show_volume(self, ref: str) -> VolumeInfo:
        return self._show_volume(VolumeId(self._pool.find(NodeKind.VOLUME, ref)))

    async def limit_volume(self, ref: str, limits: IoLimits | None) -> VolumeInfo:
        if limits is not None:
            check_io_limits(limits)
        volume = VolumeId(self._pool.find(NodeKind.VOLUME, ref))
        await self._runner.run(
            self._context.update(lambda txn: Nodes(txn).limit_volume(volume, limits))
        )
        self._server.gates.refresh((volume,))
        return self._show_volume(volume)

    async def profile_volume(self, ref: str, profile: DeviceProfile | None) -> VolumeInfo:
        if profile is not None:
            check_profile(profile)
        volume = VolumeId(self._pool.find(NodeKind.VOLUME, ref))
        await self._runner.run(
            self._context.update(lambda txn: Nodes(txn).profile_volume(volume, profile))
        )
        self._server.gates.refresh((volume,))
        return self._show_volume(volume)

    async def release_volume(self, ref: str) -> None:
        volume = self._pool.find(NodeKind.VOLUME, ref)
        await self._runner.run(self._pool.close_idle(NodeKind.VOLUME, volume))
        if self._pool.is_open(NodeKind.VOLUME, volume):
            raise InUseError(f"volume {volume} is in use here")

    def _show_volume(self, volume: VolumeId) -> VolumeInfo:
        with self._pool.nodes() as nodes:
            return self._volume_info(nodes, nodes.volume(volume))

    def _volume_infos(self, nodes: Nodes, records: list[VolumeRecord]) -> list[VolumeInfo]:
        filling = {found.volume for found in Ledger(nodes.txn).imports()}
        return [self._volume_info(nodes, one) for one in records if one.id not in filling]

    def _volume_info(self, nodes: Nodes, record: VolumeRecord) -> VolumeInfo:
        trouble = self._pool.trouble(record)
        stored = Status.AVAILABLE
        try:
            owned = Ledger(nodes.txn).owned_volume(record.id)
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
            connections=self._pool.users(NodeKind.VOLUME, record.id),
            uri=export_uri(export_name(NodeKind.VOLUME, record.name), self._socket),
            error=trouble,
            gateway=self._pool.holder(record),
            limits=self._context.limits_of(record),
            own_limits=record.limits is not None,
            profile=record.profile,
        )

    # -- snapshots ---------------------------------------------------------------------------

    async def list_snapshots(self, volume: str | None) -> list[SnapshotInfo]:
        origin = None if volume is None else self._pool.find(NodeKind.VOLUME, volume)
        with self._pool.nodes() as nodes:
            images = {found.snapshot for found in Ledger(nodes.txn).images()}

        def look(_: Nodes, records: list[SnapshotRecord]) -> list[SnapshotInfo]:
            return [
                self._snapshot_info(one)
                for one in records
                if one.id not in images and origin in (None, one.volume)
            ]

        return await walk(self._pool, Nodes.snapshots, look)

    def _snapshot_info(self, record: SnapshotRecord) -> SnapshotInfo:
        return SnapshotInfo(
            id=record.id,
            name=record.name,
            volume=record.volume,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            connections=self._pool.users(NodeKind.SNAPSHOT, record.id),
            uri=export_uri(export_name(NodeKind.SNAPSHOT, record.name), self._socket),
        )

    async def unowned(self) -> Unowned:
        return await trio.to_thread.run_sync(self._unowned)

    def _unowned(self) -> Unowned:
        """Decodes all records."""
        with self._pool.index.reading() as txn:
            volumes, snapshots = find_unowned(txn)
        return Unowned(
            volumes=tuple(record.name for record in volumes),
            snapshots=tuple(record.name for record in snapshots),
        )

    async def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
        await self._runner.run(
            self._context.update(lambda txn: adopt(txn, kind, ref, TenantId(tenant)))
        )
        self._server.gates.refresh()

    # -- servers -----------------------------------------------------------------------------

    async def list_servers(self) -> list[Server]:
        return self._servers.all()

    async def show_server(self, name: str) -> Server:
        return self._servers.registered(name)

    async def add_server(self, server: Server) -> Server:
        return await self._runner.run(self._servers.add(server))

    async def remove_server(self, name: str) -> None:
        await self._runner.run(self._servers.remove(name))

    # -- recordings --------------------------------------------------------------------------

    async def begin_recording(self, ref: str) -> RecordingInfo:
        volume = VolumeId(self._pool.find(NodeKind.VOLUME, ref))
        info = self._show_volume(volume)
        key = ExportKey(NodeKind.VOLUME, volume)
        recording = self._server.recordings.begin(key, self._server.statistics_of(key, info.name))
        return RecordingInfo(recording, info, time.time())

    async def take_records(self, recording: str) -> bytes:
        return self._server.recordings.take(recording)

    async def end_recording(self, recording: str) -> bytes:
        return self._server.recordings.end(recording)

    # -- looking -----------------------------------------------------------------------------

    async def space(self, kind: NodeKind, ref: str) -> Space:
        return await self._runner.run(self._pool.measure(kind, self._pool.find(kind, ref)))

    async def spaces(self, after: int, seconds: float | None) -> SpacePage:
        deadline = None if seconds is None else time.monotonic() + seconds

        def until() -> bool:
            return deadline is not None and time.monotonic() >= deadline

        return await self._runner.run(self._pool.measure_all(after, until))

    async def pool(self) -> PoolInfo:
        return await self._capacity.measure()

    async def usage(self) -> list[FamilyUsage]:
        cloned = await trio.to_thread.run_sync(self._cloned)
        return list(await self._runner.run(self._backend.usage(cloned)))

    def _cloned(self) -> dict[VolumeId, VolumeId]:
        """Which volumes were made of which others. Decodes all records."""
        with self._pool.index.reading() as txn:
            found = [owned.volume for owned in Ledger(txn).sound_volumes()]
            kept = TrashLedger(txn).sound_records()
            found += [record.volume for record in kept if record.volume is not None]
        return {one.id: one.source_volume for one in found if one.source_volume is not None}

    async def statistics(self) -> list[VolumeStatistics]:
        entries = []
        pace = Pace()
        for key, state in sorted(self._server.exports(), key=lambda used: used[0].id):
            await pace.step()
            try:
                name = self._name(key)
            except NotFoundError:
                # Another gateway has deleted it.
                if not state.members:
                    self._server.forget(key)
                continue
            users = self._pool.users(key.kind, key.id)
            entries.append(state.statistics.report(key, name, users))
        return entries

    def _name(self, key: ExportKey) -> str:
        """The name that an export has in the pool now. Raises NotFoundError, DamagedError."""
        with self._pool.nodes() as nodes:
            if key.kind is NodeKind.VOLUME:
                return nodes.volume(VolumeId(key.id)).name
            return nodes.snapshot(SnapshotId(key.id)).name

    async def check(self) -> CheckReport:
        report = await self._runner.run(self._pool.check())
        return await trio.to_thread.run_sync(with_records, report, self._pool.index)

    async def begin_backup(self) -> FrozenPool:
        return await self._backups().begin()

    async def end_backup(self, backup: str) -> None:
        await self._backups().end(backup)

    async def list_backups(self) -> list[BackupRecord]:
        return list(await trio.to_thread.run_sync(self._backups().made))

    async def scrub(self, rate_mib: int | None, restart: bool) -> ScrubStatus:
        self._scrubbing().begin(rate_mib, restart=restart)
        return self._scrubbing().status()

    async def scrub_status(self) -> ScrubStatus:
        return self._scrubbing().status()

    def _backups(self) -> BackupControl:
        if self._backend.backups is None:
            raise no_backup(self._driver)
        return self._backend.backups

    def _scrubbing(self) -> ScrubControl:
        if self._backend.scrubbing is None:
            raise no_scrub(self._driver)
        return self._backend.scrubbing
