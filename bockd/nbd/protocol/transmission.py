"""Requests of the transmission phase: cut out of a receive buffer and judged, without I/O.

A request is a plain tuple `(flags, command, cookie, offset, length, body)`, the cheapest thing
Python can make of it, since the hot path makes one for each 4 KiB. `body` is where its payload
begins in the buffer it was parsed from; the payload itself is never copied here. proto.md,
"Request message" (compact and extended) and "Request types".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bockd.model import KIB
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.limits import MAX_PAYLOAD_BYTES

Request = tuple[int, int, int, int, int, int]
"""flags, command, cookie, offset in bytes, length in bytes, position of the payload."""

COMPACT_REQUEST: Final = struct.Struct(">IHHQQI")
EXTENDED_REQUEST: Final = struct.Struct(">IHHQQQ")

MAX_INLINE_PAYLOAD_BYTES: Final = 64 * KIB
"""Payloads up to here wait in the receive buffer until they are complete; larger ones are received
directly into memory of their own. An incomplete one may have to move to the buffer's front, so
this bounds what is ever copied."""


class RequestParser:
    """Cuts requests out of a byte stream; holds no bytes itself.

    After `parse`, `large` is the request whose payload is over `MAX_INLINE_PAYLOAD_BYTES`, if the
    stream has come to one: the caller takes its `length` bytes of payload off the stream, from the
    position that `parse` returned, before it parses on.

    A write carries its payload whether or not its header says so: with extended headers
    `CMD_FLAG_PAYLOAD_LEN` is required ("Extended request message"), and QEMU 10.0
    leaves it out, which its own server accepts. The flag is added here, so that nobody behind the
    parser need know, and `unflagged` is set.
    """

    __slots__ = ("_extended", "_header", "_magic", "large", "unflagged")

    def __init__(self, *, extended: bool) -> None:
        self._extended = extended
        self._header = EXTENDED_REQUEST if extended else COMPACT_REQUEST
        self._magic = nbd.EXTENDED_REQUEST_MAGIC if extended else nbd.REQUEST_MAGIC
        self.large: Request | None = None
        self.unflagged = False

    def parse(self, buffer: memoryview, start: int, end: int) -> tuple[list[Request], int]:
        """Parse all complete requests in `buffer[start:end]`. Return them, and where the first
        incomplete one begins.

        Stops behind a DISC and before a large payload. Raises ProtocolError when what stands at
        `start` is no request; one further on is left for the next call, so that the requests before
        it are answered.
        """
        requests: list[Request] = []
        append = requests.append
        unpack = self._header.unpack_from
        size = self._header.size
        expected = self._magic
        extended = self._extended
        self.large = None
        while end - start >= size:
            magic, flags, command, cookie, offset, length = unpack(buffer, start)
            if magic != expected:
                if requests:
                    break
                raise ProtocolError(f"a request began with magic {magic:#x}")
            body = start + size
            if extended and command == nbd.CMD_WRITE and not flags & nbd.CMD_FLAG_PAYLOAD_LEN:
                flags |= nbd.CMD_FLAG_PAYLOAD_LEN
                self.unflagged = True
            # Nothing follows a DISC, no payload either: whatever its flags say.
            if command == nbd.CMD_WRITE or (
                extended and flags & nbd.CMD_FLAG_PAYLOAD_LEN and command != nbd.CMD_DISC
            ):
                if length > MAX_INLINE_PAYLOAD_BYTES:
                    self.large = (flags, command, cookie, offset, length, body)
                    return requests, body
                if end - body < length:
                    break
                append((flags, command, cookie, offset, length, body))
                start = body + length
                continue
            append((flags, command, cookie, offset, length, body))
            start = body
            if command == nbd.CMD_DISC:
                break
        return requests, start


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a command may carry."""

    flags: int
    """Flags beside FUA, which every command may carry ("Command flags")."""
    changes: bool
    """Refused with EPERM on a read-only export."""
    payload: bool
    """Its length is bounded by `MAX_PAYLOAD_BYTES`: that much data follows or is asked for."""
    past_end: int
    """The error when it reaches past the end of the export."""


RULES: Final = {
    nbd.CMD_READ: _Rule(nbd.CMD_FLAG_DF, False, True, nbd.EINVAL),
    nbd.CMD_WRITE: _Rule(nbd.CMD_FLAG_PAYLOAD_LEN, True, True, nbd.ENOSPC),
    nbd.CMD_TRIM: _Rule(0, True, False, nbd.EINVAL),
    nbd.CMD_CACHE: _Rule(0, False, False, nbd.EINVAL),
    nbd.CMD_WRITE_ZEROES: _Rule(
        nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO, True, False, nbd.ENOSPC
    ),
    nbd.CMD_BLOCK_STATUS: _Rule(nbd.CMD_FLAG_REQ_ONE, False, False, nbd.EINVAL),
}
"""Commands on a range. FLUSH has none, and DISC is never answered."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a connection's requests are judged by, beside the size of the export, which may grow
    while they come; fixed when its handshake ends."""

    read_only: bool
    extended: bool
    chunked: bool
    """Structured or extended replies: READ may carry DF."""
    allocation: bool
    """BLOCK_STATUS may be asked."""


def refusal(request: Request, limits: RequestLimits, size_bytes: int) -> tuple[int, str] | None:
    """Return why a request is refused, as an NBD error and a text; None if the device may have it.

    `size_bytes` is the size of the device now, not the one that the client was told: a volume that
    has grown can be used to its end over connections that are open. This is the one place where
    requests are validated.
    """
    flags, command, _, offset, length, _ = request
    if command == nbd.CMD_FLUSH:
        if flags & ~nbd.CMD_FLAG_FUA:
            return nbd.EINVAL, f"flags {flags:#x} on a flush"
        return None
    rule = RULES.get(command)
    if rule is None:
        return nbd.EINVAL, f"unknown command {command}"
    if problem := _flags_problem(command, flags, rule, limits):
        return nbd.EINVAL, problem
    if rule.changes and limits.read_only:
        return nbd.EPERM, "the export is read-only"
    if rule.payload and length > MAX_PAYLOAD_BYTES:
        return nbd.EINVAL, f"{length} bytes; a request carries at most {MAX_PAYLOAD_BYTES}"
    if offset + length > size_bytes:
        return rule.past_end, f"past the end of the export ({size_bytes} bytes)"
    if command == nbd.CMD_BLOCK_STATUS and not limits.allocation:
        return nbd.EINVAL, "no metadata context was negotiated"
    if command == nbd.CMD_BLOCK_STATUS and not length:
        return nbd.EINVAL, "block status of no bytes"
    if flags & nbd.CMD_FLAG_FAST_ZERO and flags & nbd.CMD_FLAG_NO_HOLE:
        return nbd.ENOTSUP, "zeroes that keep their space are no faster than a write"
    return None


def _flags_problem(command: int, flags: int, rule: _Rule, limits: RequestLimits) -> str | None:
    allowed = rule.flags | nbd.CMD_FLAG_FUA
    if not limits.chunked:
        allowed &= ~nbd.CMD_FLAG_DF
    if not limits.extended:
        allowed &= ~nbd.CMD_FLAG_PAYLOAD_LEN
    if flags & ~allowed:
        return f"flags {flags:#x} on command {command}"
    return None
