"""Replies of the transmission phase as bytes: simple, structured and extended.

The three encoders have one shape, so that the server does not ask which one it holds. Reads that
fit one reply get a header packed in front of data that is already in the reply buffer; nothing
else carries more than a few bytes. proto.md, "Simple reply message", "Structured reply chunk
message", "Extended reply chunk message", "Structured reply types".
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Final

from bockd.model import Extent
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.errors import message_bytes
from bockd.nbd.protocol.limits import ALLOCATION_CONTEXT_ID
from bockd.nbd.protocol.transmission import Request

Buffer = bytes | memoryview
"""Something to be sent: headers, or data."""

MAX_STATUS_EXTENTS: Final = 4096
"""Extents in one block status reply: 64 KiB at most. Clients ask again from where it ends, and
the protocol's advice is to stay below 2^20."""

MAX_STATUS_BYTES: Final = MAX_STATUS_EXTENTS * 160
"""Memory of a block status under way: its extents, 140 bytes each as objects, and its reply."""

_MAX_PACKED_TOGETHER: Final = 256
"""Simple replies packed by one call, and so the number of formats that are kept compiled."""

_U32_MAX: Final = (1 << 32) - 1
_SIMPLE: Final = struct.Struct(">IIQ")
_STRUCTURED: Final = struct.Struct(">IHHQI")
_STRUCTURED_DATA: Final = struct.Struct(">IHHQIQ")
_EXTENDED: Final = struct.Struct(">IHHQQQ")
_EXTENDED_DATA: Final = struct.Struct(">IHHQQQQ")
_ERROR: Final = struct.Struct(">IH")


class ReplyEncoder(ABC):
    """Turns outcomes into bytes. `data_header_bytes` is the room a header needs before data."""

    data_header_bytes: int
    chunked: bool
    """A read may be answered in several chunks, and an error may follow data."""

    @abstractmethod
    def pack_read(self, buffer: memoryview, position: int, request: Request) -> None:
        """Write, at `position`, the header for all of a read's data as the whole reply."""

    @abstractmethod
    def data_header(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        """Encode the header of one piece of a read's data: of every piece when chunked, else of the
        first."""

    @abstractmethod
    def done(self, request: Request) -> bytes:
        """Encode success, without data."""

    @abstractmethod
    def error(self, request: Request, error: int, message: str) -> bytes:
        """Encode a failure. It is also the last chunk of a read that had some data."""

    def all_done(self, requests: Sequence[Request]) -> bytes:
        """Encode `done` for many requests at once."""
        return b"".join(map(self.done, requests))

    def status(self, request: Request, extents: Sequence[Extent]) -> bytes:
        """Encode a block status. Used only where chunks exist, which the handshake makes sure
        of."""
        raise AssertionError("block status without structured replies")


class SimpleReplies(ReplyEncoder):
    """proto.md, "Simple reply message"."""

    data_header_bytes = _SIMPLE.size
    chunked = False

    def pack_read(self, buffer: memoryview, position: int, request: Request) -> None:
        _SIMPLE.pack_into(buffer, position, nbd.SIMPLE_REPLY_MAGIC, 0, request[2])

    def data_header(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        return self.done(request)

    def done(self, request: Request) -> bytes:
        return _SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request[2])

    def error(self, request: Request, error: int, message: str) -> bytes:
        return _SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, error, request[2])

    def all_done(self, requests: Sequence[Request]) -> bytes:
        if len(requests) > _MAX_PACKED_TOGETHER:
            return super().all_done(requests)
        fields: list[int] = []
        for request in requests:
            fields += (nbd.SIMPLE_REPLY_MAGIC, 0, request[2])
        return _simple_replies(len(requests)).pack(*fields)


@cache
def _simple_replies(count: int) -> struct.Struct:
    return struct.Struct(">" + "IIQ" * count)


class StructuredReplies(SimpleReplies):
    """Chunks for reads, errors and block status; simple replies for the rest, as is allowed."""

    data_header_bytes = _STRUCTURED_DATA.size
    chunked = True

    def pack_read(self, buffer: memoryview, position: int, request: Request) -> None:
        _STRUCTURED_DATA.pack_into(
            buffer,
            position,
            nbd.STRUCTURED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE,
            nbd.REPLY_OFFSET_DATA,
            request[2],
            request[4] + 8,
            request[3],
        )

    def data_header(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        return _STRUCTURED_DATA.pack(
            nbd.STRUCTURED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE if last else 0,
            nbd.REPLY_OFFSET_DATA,
            request[2],
            length + 8,
            offset,
        )

    def done(self, request: Request) -> bytes:
        if request[1] == nbd.CMD_READ:  # a read of no bytes must not get a simple reply
            return self._chunk(request, nbd.REPLY_NONE, b"")
        return super().done(request)

    def error(self, request: Request, error: int, message: str) -> bytes:
        return self._chunk(request, nbd.REPLY_ERROR, _error_payload(error, message))

    def status(self, request: Request, extents: Sequence[Extent]) -> bytes:
        fields = [ALLOCATION_CONTEXT_ID]
        for extent in extents:
            length = extent.length_bytes
            if length > _U32_MAX:  # the client asks again behind the part that 32 bits can say
                fields += (_U32_MAX & ~0xFFFF, _state(extent))
                break
            fields += (length, _state(extent))
        payload = struct.pack(f">{len(fields)}I", *fields)
        return self._chunk(request, nbd.REPLY_BLOCK_STATUS, payload)

    def _chunk(self, request: Request, kind: int, payload: bytes) -> bytes:
        header = _STRUCTURED.pack(
            nbd.STRUCTURED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, kind, request[2], len(payload)
        )
        return header + payload


class ExtendedReplies(ReplyEncoder):
    """Extended chunks for everything ("NBD_OPT_EXTENDED_HEADERS"): no other reply is allowed."""

    data_header_bytes = _EXTENDED_DATA.size
    chunked = True

    def pack_read(self, buffer: memoryview, position: int, request: Request) -> None:
        _EXTENDED_DATA.pack_into(
            buffer,
            position,
            nbd.EXTENDED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE,
            nbd.REPLY_OFFSET_DATA,
            request[2],
            request[3],
            request[4] + 8,
            request[3],
        )

    def data_header(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        return _EXTENDED_DATA.pack(
            nbd.EXTENDED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE if last else 0,
            nbd.REPLY_OFFSET_DATA,
            request[2],
            request[3],
            length + 8,
            offset,
        )

    def done(self, request: Request) -> bytes:
        return self._chunk(request, nbd.REPLY_NONE, b"")

    def error(self, request: Request, error: int, message: str) -> bytes:
        return self._chunk(request, nbd.REPLY_ERROR, _error_payload(error, message))

    def status(self, request: Request, extents: Sequence[Extent]) -> bytes:
        fields: list[int] = []
        for extent in extents:
            fields += (extent.length_bytes, _state(extent))
        payload = struct.pack(f">II{len(fields)}Q", ALLOCATION_CONTEXT_ID, len(extents), *fields)
        return self._chunk(request, nbd.REPLY_BLOCK_STATUS_EXT, payload)

    def _chunk(self, request: Request, kind: int, payload: bytes) -> bytes:
        header = _EXTENDED.pack(
            nbd.EXTENDED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE,
            kind,
            request[2],
            request[3],
            len(payload),
        )
        return header + payload


def encoder_for(*, structured: bool, extended: bool) -> ReplyEncoder:
    """Return the encoder for what the handshake has negotiated."""
    if extended:
        return ExtendedReplies()
    return StructuredReplies() if structured else SimpleReplies()


def _state(extent: Extent) -> int:
    return nbd.STATE_HOLE | nbd.STATE_ZERO if extent.hole else 0


def _error_payload(error: int, message: str) -> bytes:
    text = message_bytes(message)
    return _ERROR.pack(error, len(text)) + text
