"""The data of handshake options and of their replies, as bytes. proto.md, "Option types".

Parsing raises InvalidRequestError when lengths do not add up or a string is not one, which the
handshake answers with REP_ERR_INVALID.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bockd.errors import InvalidRequestError
from bockd.model import BLOCK_SIZE
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.errors import message_bytes
from bockd.nbd.protocol.limits import (
    ALLOCATION_CONTEXT_ID,
    MAX_EXPORT_NAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MIN_BLOCK_BYTES,
)

_REPLY: Final = struct.Struct(">QIII")
_U32: Final = struct.Struct(">I")
_U16: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What the handshake tells a client about an export."""

    name: str
    """Its canonical name, as LIST gives it."""
    description: str
    size_bytes: int
    read_only: bool


def transmission_flags(info: ExportInfo, *, chunked: bool) -> int:
    """Return the transmission flags of an export. `chunked` says that structured or extended
    replies were negotiated."""
    flags = (
        nbd.FLAG_HAS_FLAGS
        | nbd.FLAG_SEND_FLUSH
        | nbd.FLAG_SEND_FUA
        | nbd.FLAG_CAN_MULTI_CONN
        | nbd.FLAG_SEND_CACHE
    )
    if chunked:
        flags |= nbd.FLAG_SEND_DF
    if info.read_only:
        return flags | nbd.FLAG_READ_ONLY
    return flags | nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES | nbd.FLAG_SEND_FAST_ZERO


class _Reader:
    """Takes numbers and strings off the front of an option's data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise InvalidRequestError("the option's data ends too early")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u16(self) -> int:
        value: int = _U16.unpack(self.take(2))[0]
        return value

    def string(self) -> str:
        return decode_string(self.take(self.u32()))

    def finish(self) -> None:
        if self._position != len(self._data):
            raise InvalidRequestError("the option's data is longer than its contents")


def decode_string(data: bytes) -> str:
    """Decode a protocol string: at most 4096 bytes of UTF-8 without NUL ("Conventions")."""
    if len(data) > MAX_EXPORT_NAME_BYTES:
        raise InvalidRequestError(f"a string of {len(data)} bytes; the protocol allows 4096")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("a string that is not UTF-8") from None
    if "\0" in text:
        raise InvalidRequestError("a string with a NUL byte")
    return text


def parse_info(data: bytes) -> tuple[str, frozenset[int]]:
    """Parse the data of INFO and GO: the export's name and the kinds of information asked for."""
    reader = _Reader(data)
    name = reader.string()
    asked = frozenset(reader.u16() for _ in range(reader.u16()))
    reader.finish()
    return name, asked


def parse_meta_context(data: bytes) -> tuple[str, list[str]]:
    """Parse the data of LIST_META_CONTEXT and SET_META_CONTEXT: the export's name and the queries.

    All queries are parsed; the caller compares their number with `MAX_META_QUERIES`.
    """
    reader = _Reader(data)
    name = reader.string()
    count = reader.u32()
    if count * 4 > len(data):
        raise InvalidRequestError("more queries than the option's data can hold")
    queries = [reader.string() for _ in range(count)]
    reader.finish()
    return name, queries


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Encode one option reply ("Fixed newstyle negotiation")."""
    return _REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def error_reply(option: int, kind: int, message: str) -> bytes:
    """Encode an error reply with a text for people."""
    return reply(option, kind, message_bytes(message))


def list_replies(exports: Iterable[ExportInfo]) -> bytes:
    """Encode the replies to LIST: one REP_SERVER for each export, then REP_ACK."""
    parts = []
    for info in exports:
        name = info.name.encode()
        data = _U32.pack(len(name)) + name + message_bytes(info.description)
        parts.append(reply(nbd.OPT_LIST, nbd.REP_SERVER, data))
    return b"".join(parts) + reply(nbd.OPT_LIST, nbd.REP_ACK)


def info_replies(option: int, info: ExportInfo, asked: frozenset[int], *, chunked: bool) -> bytes:
    """Encode the replies to INFO and GO that accept an export: what was asked for, then REP_ACK."""
    flags = transmission_flags(info, chunked=chunked)
    items = [struct.pack(">HQH", nbd.INFO_EXPORT, info.size_bytes, flags)]
    if nbd.INFO_NAME in asked:
        items.append(_U16.pack(nbd.INFO_NAME) + info.name.encode())
    if nbd.INFO_DESCRIPTION in asked:
        items.append(_U16.pack(nbd.INFO_DESCRIPTION) + message_bytes(info.description))
    if nbd.INFO_BLOCK_SIZE in asked:
        items.append(
            struct.pack(
                ">HIII", nbd.INFO_BLOCK_SIZE, MIN_BLOCK_BYTES, BLOCK_SIZE, MAX_PAYLOAD_BYTES
            )
        )
    parts = [reply(option, nbd.REP_INFO, item) for item in items]
    return b"".join(parts) + reply(option, nbd.REP_ACK)


def export_name_reply(info: ExportInfo, *, chunked: bool, zeroes: bool) -> bytes:
    """Encode the answer to EXPORT_NAME ("Newstyle negotiation"): size, flags, perhaps 124
    zeroes."""
    flags = transmission_flags(info, chunked=chunked)
    return struct.pack(">QH", info.size_bytes, flags) + (bytes(124) if zeroes else b"")


def meta_context_replies(option: int, *, allocation: bool) -> bytes:
    """Encode the replies to the meta context options: base:allocation if it matched, then
    REP_ACK."""
    ack = reply(option, nbd.REP_ACK)
    if not allocation:
        return ack
    # LIST's ids are reserved and should be zero; SET's are the ones that status replies carry.
    number = ALLOCATION_CONTEXT_ID if option == nbd.OPT_SET_META_CONTEXT else 0
    data = _U32.pack(number) + nbd.BASE_ALLOCATION.encode()
    return reply(option, nbd.REP_META_CONTEXT, data) + ack
