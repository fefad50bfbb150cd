"""What a request may ask for: names, sizes, servers and limits, judged once, at the boundary.

Each function returns what it was given, or what is to be recorded of it, and raises
InvalidRequestError with what is wrong and what to do.
"""

from __future__ import annotations

from bockd.errors import InvalidRequestError
from bockd.model import (
    BLOCK_SIZE,
    MAX_NAME_BYTES,
    MAX_SOCKET_PATH_BYTES,
    MAX_VOLUME_BYTES,
    MIN_VOLUME_BYTES,
    IoLimits,
    IoRate,
    Server,
    ServerKind,
    format_size,
    is_server_id,
    is_uuid,
    size_of_volume_for,
)

MAX_IO_RATE = 10**12
"""Operations or bytes per second: beyond any device, and exact in JSON."""

MAX_SHOWN_DIGITS = 40
"""Of a number in a message."""

MAX_BURST_SECONDS = 24 * 3600
"""A burst that lasts longer than a day is a rate."""

MIN_IOPS_SIZE = 512
MAX_IOPS_SIZE = 1 << 30
"""Bytes."""


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


def shown_number(number: float) -> str:
    """Return a number as text for a message. Python refuses to print the largest that a client may
    send."""
    return "(huge)" if abs(number) >= 10**MAX_SHOWN_DIGITS else str(number)


def check_io_limits(limits: IoLimits) -> IoLimits:
    """Return limits that make sense. Raises InvalidRequestError."""
    for name, rate in limits.rates().items():
        _check_rate(name, rate)
    size = limits.iops_size
    if size is not None:
        if not MIN_IOPS_SIZE <= size <= MAX_IOPS_SIZE:
            raise InvalidRequestError(
                f"iops_size is {shown_number(size)}; it may be {MIN_IOPS_SIZE} to "
                f"{MAX_IOPS_SIZE} bytes"
            )
        if not any(name.endswith("iops") for name in limits.rates()):
            raise InvalidRequestError("iops_size means nothing without a limit of operations")
    return limits


def _check_rate(name: str, rate: IoRate) -> None:
    if not 1 <= rate.per_second <= MAX_IO_RATE:
        raise InvalidRequestError(
            f"{name} is {shown_number(rate.per_second)}; it may be 1 to {MAX_IO_RATE}"
        )
    if rate.burst is None:
        if rate.burst_seconds != 1:
            raise InvalidRequestError(f"{name} has the length of a burst and not its rate")
        return
    if not rate.per_second <= rate.burst <= MAX_IO_RATE:
        raise InvalidRequestError(
            f"the burst of {name} is {shown_number(rate.burst)}; it may be {rate.per_second}, "
            f"which is the limit, to {MAX_IO_RATE}"
        )
    if not 1 <= rate.burst_seconds <= MAX_BURST_SECONDS:
        raise InvalidRequestError(
            f"a burst of {name} lasts {shown_number(rate.burst_seconds)} s; it may be 1 to "
            f"{MAX_BURST_SECONDS}"
        )
