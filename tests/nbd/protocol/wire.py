"""The client's side of the protocol as bytes, written from proto.md and not from bockd.nbd, so that
one mistake is not made twice."""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIXED_NEWSTYLE_NO_ZEROES = struct.pack(">I", 3)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def info_data(name: str, *asked: int) -> bytes:
    encoded = name.encode()
    numbers = struct.pack(f">H{len(asked)}H", len(asked), *asked)
    return struct.pack(">I", len(encoded)) + encoded + numbers


def go(name: str, *asked: int) -> bytes:
    return option(7, info_data(name, *asked))


def meta_data(name: str, *queries: str) -> bytes:
    parts = [struct.pack(">I", len(name.encode())), name.encode(), struct.pack(">I", len(queries))]
    for query in queries:
        parts += [struct.pack(">I", len(query.encode())), query.encode()]
    return b"".join(parts)


def request(
    command: int, cookie: int = 1, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def write(cookie: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    return request(1, cookie, offset, len(data), flags) + data


def extended(
    command: int, cookie: int = 1, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes:
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)


def extended_write(cookie: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    return unflagged_write(cookie, offset, data, flags | 32)


def unflagged_write(cookie: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    """With extended headers and without NBD_CMD_FLAG_PAYLOAD_LEN, as QEMU 10 writes."""
    return extended(1, cookie, offset, len(data), flags) + data


def extended_done(cookie: int, offset: int) -> bytes:
    """Success without data: the one chunk of its reply, of type NBD_REPLY_TYPE_NONE."""
    return struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0)


@dataclass(frozen=True)
class OptionReply:
    option: int
    kind: int
    data: bytes


def option_replies(data: bytes) -> list[OptionReply]:
    """Split option replies; fails unless they end where the bytes do."""
    replies = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x0003E889045565A9
        assert len(data) >= 20 + length
        replies.append(OptionReply(number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies
