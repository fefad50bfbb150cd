"""The codec of what the log holds: entries, and the pieces of dumps.

Both begin with a header of 8 bytes, big-endian: `format:u32 | crc:u32`, and the rest is msgpack:

    entry   [author, number, seconds, [[table, key, payload or nil], ...]]
            author: 16 hex digits, the run of a gateway; number: counts what that run has sent;
            seconds: since the epoch, for people; nil deletes; no changes: an empty entry
    piece   [[table, key, payload], ...], in the order of table and key

The checksum is CRC-32 over the place of the data (an entry's version, a piece's name), the format
and the rest, so data in another's place is not taken for its own. Format 1 is the first one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from bockd.errors import DamagedError, InvalidRequestError, PoolFormatError
from bockd.model import MIB

FORMAT = 1

MAX_ENTRY_BYTES = 16 * MIB
"""One operation of RADOS may have 90 MB. The largest changes of ours are a few hundred records."""

PIECE_BYTES = 4 * MIB
"""An object of RBD's usual size. A piece is larger only where one record alone is."""

MAX_PIECE_BYTES = MAX_ENTRY_BYTES + PIECE_BYTES
"""No piece is larger: no record is larger than the entry that it came with."""

_HEADER = struct.Struct(">II")
_RECORD_OVERHEAD = 16
"""More than what msgpack adds to a record's three byte strings."""

NamedChange = tuple[bytes, bytes, bytes | None]
"""Table, key, and payload; None deletes."""

NamedRecord = tuple[bytes, bytes, bytes]
"""Table, key and payload."""

B = TypeVar("B")


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """What one transaction changes."""

    author: str
    number: int
    seconds: float
    changes: list[NamedChange]


def encode_entry(version: int, entry: Entry) -> bytes:
    """Encode the entry of a version. Raises InvalidRequestError when it is too large."""
    data = _seal(str(version), msgspec.msgpack.encode(entry))
    if len(data) > MAX_ENTRY_BYTES:
        raise InvalidRequestError(
            f"one change of the index takes {len(data)} bytes, and at most {MAX_ENTRY_BYTES} go "
            "to the Ceph cluster at once; change less at a time"
        )
    return data


def decode_entry(version: int, data: bytes) -> Entry:
    """Decode the entry of a version. Raises DamagedError, PoolFormatError."""
    what = f"version {version} of the index in Ceph"
    if len(data) > MAX_ENTRY_BYTES:
        raise DamagedError(f"{what} has {len(data)} bytes, and {MAX_ENTRY_BYTES} at most are right")
    return _unseal(str(version), data, what, Entry)


def encode_pieces(name: str, records: Iterable[NamedRecord]) -> Iterator[tuple[str, bytes]]:
    """Yield the pieces of the dump of that name, each with the name of its object. There is one at
    least."""
    number, size, piece = 0, 0, list[NamedRecord]()

    def finish() -> tuple[str, bytes]:
        place = piece_name(name, number)
        return place, _seal(place, msgspec.msgpack.encode(piece))

    for record in records:
        table, key, payload = record
        more = len(table) + len(key) + len(payload) + _RECORD_OVERHEAD
        if piece and size + more > PIECE_BYTES:
            yield finish()
            number, size, piece = number + 1, 0, []
        piece.append(record)
        size += more
    yield finish()


def decode_piece(place: str, data: bytes) -> list[NamedRecord]:
    """Decode a piece that is in the object `place`. Raises DamagedError, PoolFormatError."""
    what = f"{place}, a part of the index in Ceph,"
    return _unseal(place, data, what, list[NamedRecord])


def piece_name(name: str, number: int) -> str:
    """Return the name of the object that holds a dump's piece; pieces count from 0."""
    return f"base.{name}.{number}"


def _checksum(place: str, body: bytes, format_number: int) -> int:
    return zlib.crc32(body, zlib.crc32(f"{place} {format_number}".encode()))


def _seal(place: str, body: bytes) -> bytes:
    return _HEADER.pack(FORMAT, _checksum(place, body, FORMAT)) + body


def _unseal(place: str, data: bytes, what: str, kind: type[B]) -> B:
    if len(data) < _HEADER.size:
        raise DamagedError(f"{what} ends after {len(data)} bytes")
    format_number, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if checksum != _checksum(place, body, format_number):
        raise DamagedError(f"{what} fails its checksum: it is not used, nor is what follows it")
    if format_number != FORMAT:
        raise PoolFormatError(
            f"{what} has format {format_number}, and this bockd knows {FORMAT}: a newer bockd "
            "wrote it; use that one"
        )
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{what} fits its checksum and cannot be read: {error}") from error
