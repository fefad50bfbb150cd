"""The nouns of the system: identifiers, records handed between rooms, and their limits.

Sizes and offsets are in bytes and end in `_bytes`; a *block* is `BLOCK_SIZE` bytes, the unit of
the map. Everything here is immutable plain data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NewType
from urllib.parse import quote, unquote, urlsplit

VolumeId = NewType("VolumeId", int)
SnapshotId = NewType("SnapshotId", int)
MapId = NewType("MapId", int)
LayerId = NewType("LayerId", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

BLOCK_SIZE = 4 * KIB
"""Bytes in a block: the page size, so that an aligned write never has to read first."""

MIN_VOLUME_BYTES = 1 * MIB
"""Below this a file system does not fit."""

MAX_VOLUME_BYTES = 16 * TIB
"""Two layer segments of 8 TiB (ext4 ends a file just short of 16 TiB)."""

MAX_NAME_BYTES = 255
"""In UTF-8: fits an NBD export name (4096), a file name (255) and the API's display name (255)."""

MAX_SOCKET_PATH_BYTES = 107
"""What fits the kernel's `sockaddr_un`."""

_SERVER_ID = re.compile(r"[A-Za-z0-9._-]{1,255}")

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class NodeKind(StrEnum):
    """What an export shows."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"


class ServerKind(StrEnum):
    """What a volume becomes at a server that it is attached to."""

    HOST = "host"
    """A machine whose own agent or command line connects to the export."""
    VM = "vm"
    """A running QEMU: the daemon plugs a device into it through its QMP socket."""
    PLAIN = "plain"
    """An export, for whoever holds its URI. Every id that nobody registered is one."""


class TlsMode(StrEnum):
    """What a listener does about TLS."""

    OFF = "off"
    """It has none."""
    ON = "on"
    """A client may ask for it."""
    REQUIRE = "require"
    """Nothing is said without it."""


class PoolDriver(StrEnum):
    """Which kind of pool a daemon serves: the name of its room in bockd.drivers."""

    LOCAL = "local"
    """In the data directory."""
    RBD = "rbd"
    """In a Ceph cluster."""


class CacheMode(StrEnum):
    """What stands in front of one volume on the local disk of the gateway that has it open."""

    WRITE_THROUGH = "write-through"
    """A read cache, if the gateway has one: a write is answered when the pool has it."""
    WRITE_BACK = "write-back"
    """The same, and a write is answered when the local disk has it, where the gateway has a
    directory for that; the pool has it later."""
    NONE = "none"
    """Nothing."""


class ClientCertificates(StrEnum):
    """Whether clients show who they are, when they use TLS."""

    NONE = "none"
    """They are not asked."""
    OPTIONAL = "optional"
    """What they show must be valid."""
    REQUIRED = "required"
    """Nobody gets in without a valid one."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that the operator has registered. `name` is its id in the API."""

    name: str
    kind: ServerKind
    qmp_socket: str | None = None
    """Of a VM: the absolute path of its QMP socket."""
    tenant: str | None = None
    """The id of the only tenant for which it exists; None: it exists for all."""
    added_at: float = 0.0
    configured: bool = False
    """It stands in the configuration, and goes from here when it goes from there."""
    gateway: str | None = None
    """In a pool of several gateways: the one that has it in its configuration, and for a VM the one
    on its machine, which alone plugs devices into it."""


@dataclass(frozen=True, slots=True)
class IoRate:
    """A limit of I/O, in operations or bytes per second. The numbers mean what they mean in QEMU
    (docs/throttle.txt there)."""

    per_second: int
    burst: int | None = None
    """The rate of a burst; None: there is none, but for a tenth of a second's worth at once."""
    burst_seconds: int = 1
    """How long a burst may last after a pause. With 1, that much may come at once."""


@dataclass(frozen=True, slots=True)
class IoLimits:
    """IoLimits that hold together; None is no limit. What is not of reads or writes is of both."""

    iops: IoRate | None = None
    read_iops: IoRate | None = None
    write_iops: IoRate | None = None
    bps: IoRate | None = None
    """Bytes per second."""
    read_bps: IoRate | None = None
    write_bps: IoRate | None = None
    iops_size: int | None = None
    """A read or write counts as one operation for each so many bytes that it begins. None: as one,
    however large it is."""

    def rates(self) -> dict[str, IoRate]:
        """Return the limits that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: rate for name, rate in found.items() if isinstance(rate, IoRate)}


NO_IO_LIMITS = IoLimits()


DeviceLatency = int | dict[str, int]
"""How long requests take: always so long, or by percentile, as {"50": 200, "99": 3000}. Between two
percentiles it is interpolated, and beyond the outermost ones it is constant."""


class DeviceOperation(StrEnum):
    """What requests are told apart by. A write of zeroes that may leave a hole is a trim."""

    READ = "read"
    WRITE = "write"
    TRIM = "trim"
    FLUSH = "flush"


class DeviceErrno(StrEnum):
    """With what a request is answered that fails, as the C library calls it."""

    EIO = "EIO"
    ENOSPC = "ENOSPC"
    EPERM = "EPERM"
    ENOMEM = "ENOMEM"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinningDisk:
    """A spinning disk with one arm. The three seek times are those of a data sheet: to the next
    track, the average over all pairs of tracks, and over the whole stroke."""

    rpm: int
    track_seek_us: int
    average_seek_us: int
    full_seek_us: int
    outer_bytes_per_second: int
    """Where the volume begins."""
    inner_bytes_per_second: int
    """Where it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """Which requests fail. All that is said must be true of a request; it is not carried out
    then."""

    operations: tuple[DeviceOperation, ...] = (DeviceOperation.READ, DeviceOperation.WRITE)
    offset_bytes: int = 0
    length_bytes: int | None = None
    """Requests that touch the range. None: to the end of the volume. It means nothing for a
    flush."""
    bad_blocks_percent: float = 100
    """Of the blocks of 4 KiB in the range so many are bad, always the same ones."""
    percent: float = 100
    """So many of the requests that touch one fail."""
    after_requests: int = 0
    """Not the first ones that the volume is sent."""
    errno: DeviceErrno = DeviceErrno.EIO
    latency_us: DeviceLatency | None = None
    """How long it takes until it fails. None: as long as a request that does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """When the device is stuck, and for how long. What comes meanwhile waits."""

    seconds: float
    after_requests: int
    """The request behind so many is the first one that waits."""
    every_requests: int | None = None
    """It is stuck again whenever so many more have come. None: once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What a volume is made to look like. It stands in the volume's record, and in the JSON files
    that users write (docs/profiles.md), with the same fields; `bockd.profiles` reads and checks it,
    and behaves as it says. Times are in microseconds and end in `_us`, whole numbers."""

    name: str
    seed: int = 0
    """All that is random follows from it, and from the requests in their order."""
    read_us: DeviceLatency = 0
    write_us: DeviceLatency = 0
    trim_us: DeviceLatency = 0
    flush_us: DeviceLatency = 0
    """Of a write with FUA, too: it takes what a write and a flush take."""
    parallel: int | None = None
    """Requests that it works on at a time; the others wait. None: all of them."""
    disk: SpinningDisk | None = None
    """The time for the arm, the rotation and the transfer comes on top, for reads and writes, which
    it does one at a time."""
    limits: IoLimits | None = None
    """What passes in a second; what does not waits in order."""
    credits_percent: int = 100
    """How full the buckets of the limits are at first."""
    errors: tuple[ErrorRule, ...] = ()
    """The first one that fits a request counts."""
    stalls: tuple[Stall, ...] = ()


def is_server_id(text: str) -> bool:
    """Return whether a server may have that id."""
    return _SERVER_ID.fullmatch(text) is not None


SNAPSHOT_PREFIX = "snapshot/"
"""Of the export name of a snapshot."""


def export_name(kind: NodeKind, name: str) -> str:
    """Return the NBD export name of a volume or snapshot on the Unix socket."""
    return name if kind is NodeKind.VOLUME else SNAPSHOT_PREFIX + name


def export_uri(export: str, socket: str) -> str:
    """Return the NBD URI of an export on a Unix socket."""
    return f"nbd+unix:///{quote(export)}?socket={quote(socket)}"


def split_export_uri(uri: str) -> tuple[str, str]:
    """Split a URI that `export_uri` made into the export and the socket."""
    parts = urlsplit(uri)
    return unquote(parts.path.removeprefix("/")), unquote(parts.query.removeprefix("socket="))


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a volume that is all hole or all data. Offsets and lengths in bytes."""

    offset_bytes: int
    length_bytes: int
    hole: bool
    """True: no data is stored here and it reads as zeros."""


def size_of_volume_for(content_bytes: int) -> int:
    """Return the size in bytes of the volume that takes an image: whole blocks, at least the
    minimum."""
    return max(-(-content_bytes // BLOCK_SIZE) * BLOCK_SIZE, MIN_VOLUME_BYTES)


SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_size(size_bytes: float) -> str:
    """Format a size in the largest unit that leaves at least 1, as "10 GiB". It has one decimal
    when it is not exact."""
    scale = 0
    # The second bound keeps what would round up to "1024.0 MiB" out of the smaller unit.
    while scale + 1 < len(SIZE_UNITS) and size_bytes >= 1024 ** (scale + 1) - 1024**scale / 20:
        scale += 1
    value = size_bytes / 1024**scale
    exact = value == int(value)
    return f"{int(value)} {SIZE_UNITS[scale]}" if exact else f"{value:.1f} {SIZE_UNITS[scale]}"


def is_uuid(text: str) -> bool:
    """Return whether a text has the form of an image's id."""
    return _UUID.fullmatch(text) is not None
