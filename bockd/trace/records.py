"""One request of a trace, and our own file format.

A file is a header and records of 40 bytes, all integers in little-endian order:

    header   8 bytes magic, u16 version, u16 bytes of a record, u32 bytes of the whole header, and a
             JSON object, filled up with spaces
    record   u64 time, u64 offset, u64 length, u64 latency, u32 order, u8 kind, u8 flags, u16 mark

Times and latencies are nanoseconds; a time counts from the beginning of the recording. Requests
that were received together have one time, and `order` (growing, with gaps) says which came first.
Kinds and flags are NBD's numbers (proto.md, "Request types", "Command flags").

Records are appended as requests end, so they are nearly in the order in which the requests came;
`in_order` restores it. A record of kind LOST says that `length` requests before it are missing; one
of kind END, the last, that the recording was ended and not broken off. `mark` is the same in every
record: a file that lost its place, or holds zeros where the power failed, is noticed.

Two formats that are known were considered. fio's iolog has no latencies, no FUA and no zeroes;
blktrace's binary one has sectors only, no kind for zeroes, and needs two records of 48 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import BinaryIO, Final, NamedTuple

from bockd.errors import InvalidRequestError
from bockd.model import MAX_VOLUME_BYTES

MAGIC: Final = b"\x89bocktr\n"
VERSION: Final = 1
MARK: Final = 0x7254
RECORD: Final = struct.Struct("<QQQQIBBH")
_HEAD: Final = struct.Struct("<8sHHI")
_MAX_HEADER_BYTES: Final = 64 * 1024
_HEADER_UNIT: Final = 64

WINDOW_RECORDS: Final = 64 * 1024
"""A record stands at most so far behind its place in the order of arrival, or stays behind it."""


class Kind(IntEnum):
    """What a request asks for, by NBD's numbers; and what else a record may say."""

    READ = 0
    WRITE = 1
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    ZERO = 6
    STATUS = 7
    LOST = 0xFE
    END = 0xFF

    @property
    def changes(self) -> bool:
        """Whether the request changes what the volume holds."""
        return self in (Kind.WRITE, Kind.TRIM, Kind.ZERO)


_KINDS: Final = {int(kind): kind for kind in Kind}

FUA: Final = 1
NO_HOLE: Final = 2
FLAG_NAMES: Final = {FUA: "FUA", NO_HOLE: "NO_HOLE", 4: "DF", 8: "REQ_ONE", 16: "FAST_ZERO"}


class Record(NamedTuple):
    """One request. Records sort in the order of arrival."""

    time_ns: int
    order: int
    kind: Kind
    flags: int
    offset: int
    length: int
    latency_ns: int
    """From the moment it was parsed until its reply was ready; 0 if the trace does not tell."""

    def pack(self) -> bytes:
        """Return the record as it lies in a file."""
        return RECORD.pack(
            self.time_ns,
            self.offset,
            self.length,
            self.latency_ns,
            self.order,
            self.kind,
            self.flags,
            MARK,
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What a trace says of itself."""

    volume: str
    """Its name; of a foreign trace, that of the file or device."""
    size_bytes: int | None
    """None: the format does not tell."""
    block_bytes: int | None
    started_at: float | None
    """Seconds since the epoch."""

    def pack(self) -> bytes:
        """Return the header as it lies in a file."""
        text = json.dumps(asdict(self)).encode()
        whole = -(-(_HEAD.size + len(text)) // _HEADER_UNIT) * _HEADER_UNIT
        head = _HEAD.pack(MAGIC, VERSION, RECORD.size, whole)
        return (head + text).ljust(whole - 1) + b"\n"


def lost_record(time_ns: int, requests: int) -> bytes:
    """Return the record that says how many requests are missing."""
    return Record(time_ns, 0, Kind.LOST, 0, 0, requests, 0).pack()


def end_record(time_ns: int) -> bytes:
    """Return the record that ends a trace."""
    return Record(time_ns, 0, Kind.END, 0, 0, 0, 0).pack()


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header of a file of our own format. Raises InvalidRequestError."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise InvalidRequestError(f"{name}: the trace ends within its header")
    magic, version, record_bytes, header_bytes = _HEAD.unpack(head)
    if magic != MAGIC:
        raise InvalidRequestError(f"{name} is no trace of bockd's own format")
    if version != VERSION or record_bytes != RECORD.size:
        raise InvalidRequestError(
            f"{name} is a trace of version {version}, and this bockd reads version {VERSION}: use "
            "the bock that recorded it, or a newer one"
        )
    if not _HEAD.size <= header_bytes <= _MAX_HEADER_BYTES:
        raise InvalidRequestError(f"{name}: the trace's header is damaged (its length)")
    text = file.read(header_bytes - _HEAD.size)
    if len(text) < header_bytes - _HEAD.size:
        raise InvalidRequestError(f"{name}: the trace ends within its header")
    return _header_of(text, name)


def _header_of(text: bytes, name: str) -> Header:
    try:
        told = json.loads(text)
        header = Header(
            str(told["volume"]),
            int(told["size_bytes"]),
            int(told["block_bytes"]),
            float(told["started_at"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequestError(f"{name}: the trace's header is damaged ({error})") from error
    return header


@dataclass(slots=True)
class Ending:
    """What is known of a trace once all of it was read."""

    complete: bool = False
    """Whether the recording was ended. False: the recorder died, and what follows is missing."""
    lost: int = 0
    """Requests that were not recorded, because the recorder was too slow."""


def read_records(file: BinaryIO, name: str, ending: Ending) -> Iterator[Record]:
    """Yield the records behind the header as they lie in the file, and fill `ending`. What follows
    the last whole record of a recording that was broken off is left out. Raises
    InvalidRequestError, which names the record (from 1 on)."""
    number = 0
    while chunk := _read_whole(file, 4096 * RECORD.size):
        usable = len(chunk) - len(chunk) % RECORD.size
        for at, fields in enumerate(RECORD.iter_unpack(chunk[:usable])):
            number += 1
            time_ns, offset, length, latency_ns, order, code, flags, mark = fields
            kind = _KINDS.get(code)
            if ending.complete:
                raise _damaged(name, number, "something follows the end of the trace")
            if kind is Kind.FLUSH:
                offset = length = 0  # the client's, which mean nothing
            beyond = offset + length > MAX_VOLUME_BYTES and kind is not Kind.LOST
            if kind is None or mark != MARK or beyond:
                if _only_zeros(file, chunk[at * RECORD.size :]):
                    return
                raise _damaged(name, number, "it is no record")
            if kind is Kind.LOST:
                ending.lost += length
            elif kind is Kind.END:
                ending.complete = True
            else:
                yield Record(time_ns, order, kind, flags, offset, length, latency_ns)


def _read_whole(file: BinaryIO, length: int) -> bytes:
    """Read so much, unless the file ends before: of a pipe one read may bring less."""
    content = file.read(length)
    while content and len(content) % RECORD.size and (more := file.read(length)):
        content += more
    return content


def _only_zeros(file: BinaryIO, content: bytes) -> bool:
    """Return whether nothing follows any more: a file system may show zeros where the power failed
    before data was there."""
    while content:
        if any(content):
            return False
        content = file.read(1 << 20)
    return True


def _damaged(name: str, number: int, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}: record {number} of the trace is damaged: {why}")


def in_order(records: Iterable[Record], window: int = WINDOW_RECORDS) -> Iterator[Record]:
    """Yield records in the order of arrival, those excepted that ended more than `window` records
    after it."""
    waiting: list[Record] = []
    for record in records:
        waiting.append(record)
        if len(waiting) >= 2 * window:
            waiting.sort()
            yield from waiting[:window]
            del waiting[:window]
    waiting.sort()
    yield from waiting
