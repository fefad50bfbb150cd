"""A record of a log: what a client has changed, or a barrier.

    crc32c:u32 | kind:u32 | sequence:u64 | offset:u64 | length:u64 | synced:u64 | time_us:u64
        | zeros:16 bytes
    data, of a WRITE, filled up with zeros to a multiple of 64 bytes

All numbers little-endian. The checksum covers what follows it up to the end of the data, and begins
with that of the log's id, so that a record of another log never verifies. Sequences go up by one
from record to record, through all segments. `synced` is the sequence up to which all was synced
when the record was appended; `time_us` is when that was, in microseconds since the epoch.

    WRITE     the bytes offset..offset+length-1 are the data
    ZERO      they are zeros, and need not take space
    ALLOCATE  they are zeros, and keep their space
    TRIM      they are zeros, and their space is given back; whole blocks
    BARRIER   a flush: what comes before must be below before anything that comes after
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

from bockd.model import KIB

if TYPE_CHECKING:
    from bockd.drivers.writeback.segment import Segment

HEADER = struct.Struct("<IIQQQQQ16x")
HEADER_BYTES = HEADER.size
_UNCHECKED = 4
"""Bytes of the checksum itself."""

MAX_DATA_BYTES = 256 * KIB
"""Of one record. It is read and verified as a whole, whatever part of it is asked for."""

_MICROSECONDS = 1_000_000


class Kind(IntEnum):
    """What a record says."""

    WRITE = 1
    ZERO = 2
    ALLOCATE = 3
    TRIM = 4
    BARRIER = 5


_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """The fields of a record, but for the checksum."""

    kind: Kind
    sequence: int
    offset: int
    length: int
    synced: int
    time_us: int

    @property
    def data_bytes(self) -> int:
        return self.length if self.kind is Kind.WRITE else 0

    @property
    def size_bytes(self) -> int:
        """What the record takes in its segment."""
        return HEADER_BYTES + padded(self.data_bytes)

    @property
    def time(self) -> float:
        """In seconds since the epoch."""
        return self.time_us / _MICROSECONDS


class Record:
    """A change in the log, and where in it its data lies."""

    __slots__ = ("at", "kind", "length", "offset", "segment", "sequence")

    def __init__(
        self, kind: Kind, sequence: int, offset: int, length: int, segment: Segment, at: int
    ) -> None:
        self.kind = kind
        self.sequence = sequence
        self.offset = offset
        self.length = length
        self.segment = segment
        self.at = at
        """Of its header, in the segment's file."""

    @property
    def end(self) -> int:
        return self.offset + self.length


def padded(length: int) -> int:
    """Return what so many bytes of data take."""
    return -(-length // HEADER_BYTES) * HEADER_BYTES


def seed_of(log_id: str) -> int:
    """Return what the checksums of a log begin with."""
    return crc32c(log_id.encode())


def microseconds(seconds: float) -> int:
    return int(seconds * _MICROSECONDS)


def pack(header: Header, data: memoryview | bytes, seed: int) -> list[memoryview | bytes]:
    """Return the buffers of a record, to be written one behind the other."""
    packed = HEADER.pack(0, *header)
    checksum = crc32c(packed[_UNCHECKED:], seed)
    if not data:
        return [checksum.to_bytes(_UNCHECKED, "little") + packed[_UNCHECKED:]]
    checksum = crc32c(data, checksum)
    parts = [checksum.to_bytes(_UNCHECKED, "little") + packed[_UNCHECKED:], data]
    if padding := padded(len(data)) - len(data):
        parts.append(bytes(padding))
    return parts


def parse(content: memoryview, at: int) -> Header | None:
    """Return the header at a place of a segment, if it looks like one; nothing is verified."""
    if at + HEADER_BYTES > len(content):
        return None
    _, number, sequence, offset, length, synced, time_us = HEADER.unpack_from(content, at)
    kind = _KINDS.get(number)
    if kind is None or (kind is Kind.WRITE and not 0 < length <= MAX_DATA_BYTES):
        return None
    return Header(kind, sequence, offset, length, synced, time_us)


def verifies(content: memoryview, at: int, header: Header, seed: int) -> bool:
    """Return whether the record at a place, whose header has been parsed, is whole."""
    end = at + HEADER_BYTES + header.data_bytes
    if end > len(content):
        return False
    checksum = int.from_bytes(content[at : at + _UNCHECKED], "little")
    return crc32c(content[at + _UNCHECKED : end], seed) == checksum
