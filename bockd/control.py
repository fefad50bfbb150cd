"""The control interface: what the operator of a daemon may ask of it, whatever belongs to whom.

It looks, and gives to a tenant what belongs to nobody. What changes volumes and snapshots is block
storage (bockd.blockstorage), on behalf of a tenant.

Async methods, plain data in and out, nothing else: what is behind it can move into other processes
without its callers noticing. A `ref` is an id in decimal or a name; an unknown one raises
NotFoundError. Every method raises BockdError subclasses only, and has changed nothing when it
raises, unless its docstring says otherwise. Sizes are in bytes, times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bockd.model import (
    NO_IO_LIMITS,
    DeviceProfile,
    IoLimits,
    NodeKind,
    Server,
    SnapshotId,
    VolumeId,
)
from bockd.pool.gateways import Gateway
from bockd.pool.reports import BackupRecord, CheckReport, FamilyUsage, ScrubStatus, Space, SpacePage


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Where a pool is in a Ceph cluster, and as whom the daemon serves it."""

    id: str
    """Of the cluster, a UUID (its fsid)."""
    pool: str
    """Ceph's."""
    namespace: str
    gateway: str


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """Who answers, and where its frontends are."""

    version: str
    data_dir: str
    nbd_socket: str
    nbd_listen: str | None
    """The TCP address in use, as HOST:PORT; None when there is no TCP listener."""
    api_listen: str | None
    """The same of the block storage API."""
    api_tls: bool
    """Whether that is https."""
    daemon: str
    """Names this run of the daemon; what it says of a volume's backing names it too."""
    mount: str | None
    """Where the file view is mounted; None without one."""
    volumes: int
    snapshots: int
    fast_lane: str
    """"compiled", or why plain requests are served by Python only."""
    new_data: str
    """How new data is written, and why."""
    waiting: tuple[str, ...]
    """Background work that was put off, each with the reason, and is tried again."""
    driver: str
    """What kind of pool it serves."""
    cluster: ClusterInfo | None
    """Of a pool in a Ceph cluster."""

    @property
    def pool_directory(self) -> Path | None:
        """The directory whose file system has the pool's room. None: it is in a cluster."""
        return None if self.cluster is not None else Path(self.data_dir)


@dataclass(frozen=True, slots=True)
class Unowned:
    """Names of what belongs to no tenant and can be adopted."""

    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume as users see it."""

    id: VolumeId
    name: str
    size_bytes: int
    status: str
    """As the block storage API tells its tenant: in-use means attached. Of what belongs to nobody,
    available or error."""
    created_at: float
    from_snapshot: SnapshotId | None
    connections: int
    """NBD clients, and open files of the file view."""
    uri: str
    """The NBD URI on the Unix socket."""
    error: str | None = None
    """Why the volume is refused, and what to do; None when status is not error."""
    gateway: str | None = None
    """Which gateway has it open; None: none has, or one daemon serves the pool."""
    limits: IoLimits = NO_IO_LIMITS
    """What its I/O is held to."""
    own_limits: bool = False
    """Whether those were set for it; otherwise they are the configuration's default."""
    profile: DeviceProfile | None = None
    """What it is made to look like."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as users see it. `volume` is its origin, which may be deleted since."""

    id: SnapshotId
    name: str
    volume: VolumeId
    size_bytes: int
    created_at: float
    connections: int
    uri: str


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """What the pool has of its file system, and what it has promised."""

    directory: str
    size_bytes: int
    """Of the file system that the pool is on, without what is reserved for root."""
    used_bytes: int
    """By the pool's own files: data, index, journals."""
    others_bytes: int
    """By whatever else is on that file system, what it needs for itself included."""
    free_bytes: int
    files_free: int | None
    """How many more files the file system takes; None when it has no such limit."""
    volumes: int
    snapshots: int
    images: int
    promised_bytes: int
    """The sum of the volumes' sizes, written or not."""
    volumes_bytes: int | None
    """Data that volumes show. A block that several show counts once; None: the pool is damaged, and
    this and the two below cannot be measured."""
    snapshots_bytes: int | None
    """Data that snapshots show and no volume: it returns when all snapshots are deleted."""
    images_bytes: int | None
    """Data that images show, and neither a volume nor a snapshot."""
    warn_percent: tuple[int, ...]
    """How full the file system is, in percent, when the daemon warns."""
    trash_volumes: int = 0
    """In the trash; they are not among `volumes`, nor `promised_bytes`."""
    trash_snapshots: int = 0
    trash_bytes: int | None = 0
    """Data that only the trash has: it returns when that is emptied. None as above."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as users see it."""

    id: str
    """A UUID."""
    name: str
    disk_format: str
    """Of the file it was imported from."""
    file_bytes: int
    """The length of that file."""
    checksum: str
    """SHA-256 of that file, in hexadecimal."""
    size_bytes: int
    """Of the disk that it is, in whole blocks."""
    content_bytes: int
    """The same as its file had it."""
    min_size_gib: int
    """The smallest volume that the API makes from it."""
    created_at: float
    snapshot: SnapshotId
    """What holds it in the pool."""
    fetched: bool
    """From Glance, for those whom Glance shows it to."""
    uri: str
    """The NBD URI on the Unix socket, for reading."""


@dataclass(frozen=True, slots=True)
class ImportInfo:
    """An image that is being imported."""

    id: VolumeId
    """Of the volume that is to be filled, which names the import too."""
    image: str
    """The id that the image will have."""
    size_bytes: int
    uri: str
    """The NBD URI on the Unix socket where the disk's content is to be written."""


@dataclass(frozen=True, slots=True)
class VolumeStatistics:
    """Counters of one open volume since it was opened; rates are the caller's subtraction.

    Latency percentiles are over the most recent reads, writes, flushes and trims, in microseconds
    from the moment the request is parsed to the moment its reply is queued; 0 when there was none.
    """

    id: int
    name: str
    kind: NodeKind
    connections: int
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    flushes: int
    trims: int
    """Trims and write-zeroes together."""
    errors: int
    latency_p50_us: float
    latency_p99_us: float
    latency_p999_us: float


@dataclass(frozen=True, slots=True)
class FrozenPool:
    """A pool whose frozen layers stay as they are, until its backup ends."""

    id: str
    snapshots: dict[VolumeId, SnapshotId]
    """Taken of each volume, to be forgotten when the backup ends."""
    left_out: dict[VolumeId, str] = field(default_factory=dict)
    """Volumes in the trash that could not be frozen, and why."""


class ServerControl(Protocol):
    """Servers that volumes are attached to (bockd.model.Server)."""

    async def list_servers(self) -> list[Server]:
        """List all registered servers, by name."""
        ...

    async def show_server(self, name: str) -> Server: ...

    async def add_server(self, server: Server) -> Server:
        """Register a server; its tenant is given by id or name, its time is not. Raises
        InvalidRequestError, NotFoundError (the tenant), ConflictError when the name is taken."""
        ...

    async def remove_server(self, name: str) -> None:
        """Forget a registered server. Raises InUseError while a volume is attached to it."""
        ...


@dataclass(frozen=True, slots=True)
class RecordingInfo:
    """A recording of what a volume is sent."""

    id: str
    """Names it to whoever has begun it."""
    volume: VolumeInfo
    started_at: float


class TraceControl(Protocol):
    """Recordings of the requests that volumes are sent over NBD. Their records are those of
    bockd.trace.records, in the order in which the requests ended."""

    async def begin_recording(self, ref: str) -> RecordingInfo:
        """Begin to record a volume, whether it has clients or not. The recording ends by itself
        when nobody asks for its records for half a minute. Raises InUseError when the volume is
        being recorded already, OverLimitError when too many are."""
        ...

    async def take_records(self, recording: str) -> bytes:
        """Return the records since the last call, or a part of them if there are many; the next
        call returns more then. Raises NotFoundError when the recording has ended."""
        ...

    async def end_recording(self, recording: str) -> bytes:
        """End a recording. Return the records that are left, and the one that ends a trace. Raises
        NotFoundError when it has ended."""
        ...


class Control(ServerControl, TraceControl, Protocol):
    """See the module's docstring for what holds for all methods."""

    async def info(self) -> DaemonInfo: ...

    async def list_gateways(self) -> list[Gateway]:
        """List all gateways that serve the pool, by name; none where it can have only one
        daemon."""
        ...

    async def list_volumes(self) -> list[VolumeInfo]:
        """List all volumes by id."""
        ...

    async def show_volume(self, ref: str) -> VolumeInfo: ...

    async def limit_volume(self, ref: str, limits: IoLimits | None) -> VolumeInfo:
        """Hold a volume's I/O to limits, at once and until others are set; None restores the
        default. Raises InvalidRequestError."""
        ...

    async def profile_volume(self, ref: str, profile: DeviceProfile | None) -> VolumeInfo:
        """Make a volume as slow as another device, and fail like one, at once and until it is said
        otherwise; None ends that, and what waits is answered. Raises InvalidRequestError."""
        ...

    async def release_volume(self, ref: str) -> None:
        """Close a volume that nobody uses, so that another process can open it at once.

        Raises: InUseError while it has users."""
        ...

    async def list_snapshots(self, volume: str | None) -> list[SnapshotInfo]:
        """List all snapshots, or those of one volume, by id."""
        ...

    async def unowned(self) -> Unowned:
        """Find what belongs to no tenant, except images, by a walk over all records."""
        ...

    async def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
        """Give a volume or snapshot that belongs to nobody to a tenant, which is named by the id in
        its tokens. Raises ConflictError for one that has an owner, or is an image."""
        ...

    async def space(self, kind: NodeKind, ref: str) -> Space:
        """Measure the exact space of a volume or snapshot, by a walk over its maps."""
        ...

    async def spaces(self, after: int, seconds: float | None) -> SpacePage:
        """Measure the exact space of all volumes and of the snapshots that are in use, from those
        behind `after` on (0: from the beginning). Ends as soon as `seconds` are over, but measures
        at least one; with None, ends with the last. What is damaged is left out."""
        ...

    async def pool(self) -> PoolInfo:
        """Return what the pool takes, by a walk over everything in it."""
        ...

    async def usage(self) -> list[FamilyUsage]:
        """Measure what each volume and snapshot takes and shares, images among them, by a walk over
        all maps. Raises DamagedError, and NotSupportedError where blocks are not known."""
        ...

    async def statistics(self) -> list[VolumeStatistics]:
        """Return one entry for each open volume and snapshot, by id."""
        ...

    async def check(self) -> CheckReport:
        """Walk the pool while it serves, as `bockd check` does, without repairing."""
        ...

    async def begin_backup(self) -> FrozenPool:
        """Freeze all volumes, and keep frozen layers as they are for as long as the caller holds
        the lock `backup` of the pool.

        Raises: InvalidRequestError if nobody holds it, InUseError for a second backup at once, and
        if a volume cannot be frozen."""
        ...

    async def end_backup(self, backup: str) -> None:
        """End a backup. Raises NotFoundError if its layers were not kept frozen: then the copy
        cannot be used."""
        ...

    async def list_backups(self) -> list[BackupRecord]:
        """List the last backup into each directory, the latest first. Raises NotSupportedError for
        a kind of pool that is not backed up by copying it."""
        ...

    async def scrub(self, rate_mib: int | None, restart: bool) -> ScrubStatus:
        """Verify in the background what snapshots hold, at so many MiB a second, or as configured.
        Does the rest of the pass under way; with `restart`, all of it."""
        ...

    async def scrub_status(self) -> ScrubStatus:
        """Return how far scrubbing came, and what is damaged."""
        ...


class ImageControl(Protocol):
    """What the operator does with images; what the module's docstring says holds here too.

    The volumes that imports fill, and the snapshots that images are, do not appear in the lists
    of `Control`.
    """

    async def list_images(self) -> list[ImageInfo]:
        """List all images by name."""
        ...

    async def show_image(self, ref: str) -> ImageInfo: ...

    async def begin_import(
        self,
        name: str,
        disk_format: str,
        size_bytes: int,
        file_bytes: int,
        checksum: str,
        content_bytes: int | None = None,
    ) -> ImportInfo:
        """Create a volume to be filled with an image's content. `size_bytes` is the size of the
        content, `content_bytes`, in whole blocks. Raises ConflictError when the name is taken, and
        when there is an image with this checksum and format already.

        An import that nobody is connected to for some minutes is given up, and so is every one when
        the daemon ends.
        """
        ...

    async def finish_import(self, volume: VolumeId) -> ImageInfo:
        """Make what was written an image, durably: all of it, or nothing when this raises. Raises
        InUseError while a client is connected."""
        ...

    async def cancel_import(self, volume: VolumeId) -> None:
        """Forget what was written. Raises InUseError while a client is connected."""
        ...

    async def delete_image(self, ref: str) -> None:
        """Forget an image; volumes made from it stay. Raises InUseError while it is read."""
        ...
