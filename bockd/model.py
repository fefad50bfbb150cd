"""The nouns of the system: identifiers, records handed between rooms, and their limits.

Sizes and offsets are in bytes and end in `_bytes`; a *block* is `BLOCK_SIZE` bytes, the unit of
the map. Everything here is immutable plain data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType
from urllib.parse import quote, unquote, urlsplit

from bockd.errors import InvalidRequestError

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


def is_server_id(text: str) -> bool:
    """Return whether a server may have that id."""
    return _SERVER_ID.fullmatch(text) is not None


def check_server_record(server: Server) -> None:
    """Return if a server can be registered; raise InvalidRequestError otherwise."""
    if not is_server_id(server.name):
        raise InvalidRequestError(
            f"{server.name[:40]!a} cannot be a server's name: use 1 to 255 letters, digits, "
            "dots, underscores and hyphens"
        )
    if server.kind is not ServerKind.VM:
        if server.qmp_socket is not None:
            raise InvalidRequestError(f"a {server.kind} has no QMP socket; only a vm has")
        return
    if server.qmp_socket is None:
        raise InvalidRequestError("a vm needs the path of its QMP socket")
    if not server.qmp_socket.startswith("/") or "\0" in server.qmp_socket:
        raise InvalidRequestError("the path of the QMP socket must be absolute")
    if len(server.qmp_socket.encode("utf-8", "surrogatepass")) > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequestError(
            f"the path of the QMP socket is longer than {MAX_SOCKET_PATH_BYTES} bytes, "
            "which no Unix socket's is"
        )


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


def check_content_size(content_bytes: int, size_bytes: int | None) -> int | None:
    """Return what is recorded of an image's size for a volume of `size_bytes`, or None when the
    volume's size says the same. Raises InvalidRequestError unless the volume has the size that such
    an image needs."""
    if size_bytes is None or content_bytes <= 0 or size_of_volume_for(content_bytes) != size_bytes:
        raise InvalidRequestError(
            f"content_bytes {content_bytes} does not fit: a volume of that content has "
            f"{size_of_volume_for(max(content_bytes, 1))} bytes"
        )
    return content_bytes if content_bytes != size_bytes else None


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


def check_volume_size(size_bytes: int) -> int:
    """Return `size_bytes` if a volume may have it; raise InvalidRequestError otherwise."""
    if not MIN_VOLUME_BYTES <= size_bytes <= MAX_VOLUME_BYTES:
        raise InvalidRequestError(
            f"a size of {format_size(size_bytes)} ({size_bytes} bytes) is out of range: choose "
            "between 1 MiB and 16 TiB"
        )
    if size_bytes % BLOCK_SIZE:
        raise InvalidRequestError(
            f"a size of {size_bytes} bytes is not a multiple of {format_size(BLOCK_SIZE)}; the "
            f"next larger size is {-(-size_bytes // BLOCK_SIZE) * BLOCK_SIZE} bytes"
        )
    return size_bytes


def check_name(name: str) -> str:
    """Return `name` if a volume or snapshot may carry it; raise InvalidRequestError otherwise.

    A name is 1 to 255 bytes of UTF-8 without control characters, and does not consist of digits
    alone, because names and ids are accepted in the same places.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("a name must be valid Unicode text") from None
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"a name has 1 to {MAX_NAME_BYTES} bytes; this has {len(encoded)}"
        )
    if not name.isprintable() or name != name.strip():
        raise InvalidRequestError(
            f"name {name!r} contains control characters or begins or ends with a space"
        )
    if name.isdigit():
        raise InvalidRequestError(f"name {name!r} looks like an id; add a letter to it")
    return name


def is_uuid(text: str) -> bool:
    """Return whether a text has the form of an image's id."""
    return _UUID.fullmatch(text) is not None


def check_image_name(name: str) -> str:
    """Return `name` if an image may carry it; raise InvalidRequestError otherwise.

    As for a volume, and besides: no slash or backslash, no dot in front, because it is made from
    file names and may become one again; and not like an image's id, which is a UUID.
    """
    check_name(name)
    if "/" in name or "\\" in name or name.startswith("."):
        raise InvalidRequestError(
            f"image name {name!r} has a slash in it or begins with a dot; choose another one"
        )
    if is_uuid(name):
        raise InvalidRequestError(f"image name {name!r} looks like an id; choose another one")
    return name
