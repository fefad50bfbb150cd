"""A `Control` that keeps its catalogue in memory and no data at all.

It follows the interface to the letter (ids, names, conflicts, owners), so that the REST API can be
tested without an engine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import bockd
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
from bockd.errors import ConflictError, InUseError, NotFoundError
from bockd.model import (
    MIB,
    NO_IO_LIMITS,
    DeviceProfile,
    IoLimits,
    NodeKind,
    Server,
    SnapshotId,
    VolumeId,
)
from bockd.pool.gateways import Gateway
from bockd.pool.reports import (
    BackupRecord,
    CheckReport,
    DamagedBlock,
    FamilyUsage,
    NodeSpace,
    NodeUsage,
    ScrubStatus,
    Space,
    SpacePage,
)
from bockd.trace.records import end_record, lost_record
from bockd.validation import check_io_limits, check_name, check_volume_size

Connections = Callable[[NodeKind, int], int]


def nobody(_: NodeKind, __: int) -> int:
    """No client is connected to anything."""
    return 0


class MemoryControl:
    """See the module. `connections` tells how many clients an export has."""

    def __init__(
        self,
        data_dir: Path,
        *,
        connections: Connections = nobody,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.data_dir = data_dir
        self.failed: dict[int, str] = {}
        """Volumes in status error, and why."""
        self.owners: dict[int, str] = {}
        """Tenants, by what they have."""
        self.problems: tuple[str, ...] = ()
        self.damaged: tuple[DamagedBlock, ...] = ()
        self.scrubs: list[tuple[int | None, bool]] = []
        self._connections = connections
        self._clock = clock
        self._last_id = 0
        self._volumes: dict[int, VolumeInfo] = {}
        self._snapshots: dict[int, SnapshotInfo] = {}
        self._servers: dict[str, Server] = {}
        self._recordings: set[str] = set()
        self.gateways: list[Gateway] = []

    async def info(self) -> DaemonInfo:
        return DaemonInfo(
            version=bockd.__version__,
            data_dir=str(self.data_dir),
            nbd_socket=str(self.data_dir / "nbd.sock"),
            nbd_listen=None,
            api_listen=None,
            api_tls=False,
            daemon="memory",
            mount=None,
            volumes=len(self._volumes),
            snapshots=len(self._snapshots),
            fast_lane="compiled",
            new_data="in memory",
            waiting=(),
            driver="memory",
            cluster=None,
        )

    async def list_gateways(self) -> list[Gateway]:
        return self.gateways

    async def list_volumes(self) -> list[VolumeInfo]:
        return [self._volume_now(volume) for volume in self._volumes.values()]

    async def show_volume(self, ref: str) -> VolumeInfo:
        return self._volume_now(self._find_volume(ref))

    async def limit_volume(self, ref: str, limits: IoLimits | None) -> VolumeInfo:
        found = self._find_volume(ref)
        self._volumes[found.id] = dataclasses.replace(
            found,
            limits=NO_IO_LIMITS if limits is None else check_io_limits(limits),
            own_limits=limits is not None,
        )
        return await self.show_volume(ref)

    async def profile_volume(self, ref: str, profile: DeviceProfile | None) -> VolumeInfo:
        found = self._find_volume(ref)
        self._volumes[found.id] = dataclasses.replace(found, profile=profile)
        return await self.show_volume(ref)

    async def release_volume(self, ref: str) -> None:
        if self._volume_now(self._find_volume(ref)).connections:
            raise InUseError(f"volume {ref} is in use here")

    def add_volume(self, name: str, size_bytes: int = MIB) -> VolumeInfo:
        """A volume that is there, and belongs to nobody."""
        volume_id = self._next_id()
        self._volumes[volume_id] = VolumeInfo(
            id=VolumeId(volume_id),
            name=check_name(name),
            size_bytes=check_volume_size(size_bytes),
            status="available",
            created_at=self._clock(),
            from_snapshot=None,
            connections=0,
            uri=self._uri(NodeKind.VOLUME, volume_id),
        )
        return self._volumes[volume_id]

    async def list_snapshots(self, volume: str | None) -> list[SnapshotInfo]:
        wanted = None if volume is None else self._find_volume(volume).id
        return [
            self._snapshot_now(snapshot)
            for snapshot in self._snapshots.values()
            if wanted is None or snapshot.volume == wanted
        ]

    def add_snapshot(self, volume: str, name: str) -> SnapshotInfo:
        """A snapshot that is there, and belongs to nobody."""
        origin = self._find_volume(volume)
        snapshot_id = self._next_id()
        self._snapshots[snapshot_id] = SnapshotInfo(
            id=SnapshotId(snapshot_id),
            name=check_name(name),
            volume=origin.id,
            size_bytes=origin.size_bytes,
            created_at=self._clock(),
            connections=0,
            uri=self._uri(NodeKind.SNAPSHOT, snapshot_id),
        )
        return self._snapshots[snapshot_id]

    async def unowned(self) -> Unowned:
        return Unowned(
            tuple(v.name for v in self._volumes.values() if v.id not in self.owners),
            tuple(s.name for s in self._snapshots.values() if s.id not in self.owners),
        )

    async def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
        found = self._find_volume(ref) if kind is NodeKind.VOLUME else self._find_snapshot(ref)
        if found.id in self.owners:
            raise ConflictError(f"{kind} {ref} belongs to tenant {self.owners[found.id]} already")
        self.owners[found.id] = tenant

    async def space(self, kind: NodeKind, ref: str) -> Space:
        if kind is NodeKind.VOLUME:
            self._find_volume(ref)
        else:
            self._find_snapshot(ref)
        return Space(exclusive_bytes=0, shared_bytes=0)

    async def spaces(self, after: int, seconds: float | None) -> SpacePage:
        """One volume at a time when there is no time; no snapshot is in use."""
        behind = sorted(found for found in self._volumes if found > after)
        page = behind if seconds is None else behind[:1]
        more = page[-1] if len(page) < len(behind) else None
        space = Space(exclusive_bytes=0, shared_bytes=0)
        return SpacePage(tuple(NodeSpace(NodeKind.VOLUME, one, space) for one in page), more)

    async def pool(self) -> PoolInfo:
        return PoolInfo(
            directory=str(self.data_dir),
            size_bytes=100 * MIB,
            used_bytes=10 * MIB,
            others_bytes=20 * MIB,
            free_bytes=70 * MIB,
            files_free=None,
            volumes=len(self._volumes),
            snapshots=len(self._snapshots),
            images=0,
            promised_bytes=sum(volume.size_bytes for volume in self._volumes.values()),
            volumes_bytes=0,
            snapshots_bytes=0,
            images_bytes=0,
            warn_percent=(80, 90),
        )

    async def usage(self) -> list[FamilyUsage]:
        """Each volume on its own, without data."""
        nothing = Space(exclusive_bytes=0, shared_bytes=0)
        return [
            FamilyUsage(
                0,
                (NodeUsage(NodeKind.VOLUME, one.id, one.name, one.size_bytes, None, nothing, 0),),
            )
            for one in self._volumes.values()
        ]

    async def begin_recording(self, ref: str) -> RecordingInfo:
        volume = await self.show_volume(ref)
        if str(volume.id) in self._recordings:
            raise InUseError(f"volume {volume.id} is being recorded already")
        self._recordings.add(str(volume.id))
        return RecordingInfo(str(volume.id), volume, self._clock())

    async def take_records(self, recording: str) -> bytes:
        if recording not in self._recordings:
            raise NotFoundError("the recording has ended")
        return lost_record(1, 2)

    async def end_recording(self, recording: str) -> bytes:
        await self.take_records(recording)
        self._recordings.discard(recording)
        return end_record(3)

    async def statistics(self) -> list[VolumeStatistics]:
        """Invented counters for each volume that has a client."""
        return [
            VolumeStatistics(
                id=volume.id,
                name=volume.name,
                kind=NodeKind.VOLUME,
                connections=volume.connections,
                reads=1000,
                read_bytes=4096000,
                writes=500,
                written_bytes=2048000,
                flushes=3,
                trims=2,
                errors=0,
                latency_p50_us=41.5,
                latency_p99_us=250.0,
                latency_p999_us=1900.0,
            )
            for volume in await self.list_volumes()
            if volume.connections
        ]

    async def list_backups(self) -> list[BackupRecord]:
        return [BackupRecord("/mnt/b", 1.0, 2.0, 3, ("left",)), BackupRecord("/mnt/c", 0.5)]

    async def begin_backup(self) -> FrozenPool:
        return FrozenPool("b1", {VolumeId(1): SnapshotId(2)})

    async def end_backup(self, backup: str) -> None:
        if backup != "b1":
            raise NotFoundError(f"no backup {backup}")

    async def scrub(self, rate_mib: int | None, restart: bool) -> ScrubStatus:
        self.scrubs.append((rate_mib, restart))
        return dataclasses.replace(await self.scrub_status(), running=True)

    async def scrub_status(self) -> ScrubStatus:
        return ScrubStatus(0, False, None, None, 0, 0, 0, damaged=self.damaged)

    async def check(self) -> CheckReport:
        return CheckReport(
            clean=not self.problems,
            problems=self.problems,
            repaired=(),
            volumes=len(self._volumes),
            snapshots=len(self._snapshots),
            layers=len(self._volumes) + len(self._snapshots),
            leaves=0,
            stray_blocks=0,
            pending_reclaim=0,
        )

    async def list_servers(self) -> list[Server]:
        return [self._servers[name] for name in sorted(self._servers)]

    async def show_server(self, name: str) -> Server:
        if name not in self._servers:
            raise NotFoundError(f"no server {name!r} is registered")
        return self._servers[name]

    async def add_server(self, server: Server) -> Server:
        if server.name in self._servers:
            raise ConflictError(f"there is a server {server.name!r} already")
        self._servers[server.name] = dataclasses.replace(server, added_at=self._clock())
        return self._servers[server.name]

    async def remove_server(self, name: str) -> None:
        await self.show_server(name)
        del self._servers[name]

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _uri(self, kind: NodeKind, node_id: int) -> str:
        socket = quote(str(self.data_dir / "nbd.sock"), safe="/")
        return f"nbd+unix:///{kind.value}-{node_id}?socket={socket}"

    def _find_volume(self, ref: str) -> VolumeInfo:
        for volume in self._volumes.values():
            if ref in (str(volume.id), volume.name):
                return volume
        raise NotFoundError(f"no volume {ref}")

    def _find_snapshot(self, ref: str) -> SnapshotInfo:
        for snapshot in self._snapshots.values():
            if ref in (str(snapshot.id), snapshot.name):
                return snapshot
        raise NotFoundError(f"no snapshot {ref}")

    def _volume_now(self, volume: VolumeInfo) -> VolumeInfo:
        count = self._connections(NodeKind.VOLUME, volume.id)
        error = self.failed.get(volume.id)
        status = "error" if error else "in-use" if count else "available"
        return dataclasses.replace(volume, connections=count, status=status, error=error)

    def _snapshot_now(self, snapshot: SnapshotInfo) -> SnapshotInfo:
        return dataclasses.replace(
            snapshot, connections=self._connections(NodeKind.SNAPSHOT, snapshot.id)
        )
