"""A volume's journal: map changes that the index does not have yet.

A segment file is one header page and `SEGMENT_RECORDS` records of 32 bytes, written full of zeros
when it is made, so that neither a full disk nor file-system metadata stands in the way of an
append. All numbers little-endian:

    header   magic:8s | format:u32 | number:u32 | volume:u64 | generation:u64
             | boot_id:36s | crc:u32
    record   crc:u32 | kind:u32 | sequence:u64 | start:u64 | count:u64

A record's sequence is its place: `number * SEGMENT_RECORDS + 1` for the first one of a segment, and
so on, so sequences grow through the segments of a generation. The CRC-32 covers the record's 28
bytes, seeded with volume, generation and segment number, so that a record left over from another
life never verifies. Kinds:

    REDIRECT  blocks start..start+count-1 are now in the head
    HOLE      blocks start..start+count-1 are now holes
    BARRIER   every write up to sequence `start` is on disk, data and records
    SEAL      a barrier, and the last record of its segment
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from bockd.errors import DamagedError
from bockd.model import MIB
from bockd.store.layout import JournalName, Layout, sync_directory

SEGMENT_BYTES = 1 * MIB
"""32,640 changes between checkpoints: enough that their index work is done in bulk, little enough
that recovery replays them in a moment and the leaves they pin stay in tens of MiB."""

HEADER_BYTES = 4096
_MAGIC = b"bockdjnl"
_FORMAT = 1
_HEADER = struct.Struct("<8sIIQQ36s")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIQQQ")
_BODY = struct.Struct("<IQQQ")
_SEED = struct.Struct("<QQI")
RECORD_BYTES = _RECORD.size
SEGMENT_RECORDS = (SEGMENT_BYTES - HEADER_BYTES) // RECORD_BYTES
BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


class Kind(IntEnum):
    """What a record says."""

    REDIRECT = 1
    HOLE = 2
    BARRIER = 3
    SEAL = 4


BARRIERS = (Kind.BARRIER, Kind.SEAL)
_KINDS = {int(kind): kind for kind in Kind}


class Change(NamedTuple):
    """A verified record: `blocks` blocks from `start` on. For a barrier `start` is the sequence it
    covers, and `blocks` is 0."""

    sequence: int
    kind: Kind
    start: int
    blocks: int


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """What a segment file holds: its header, and its records up to the first that fails."""

    name: JournalName
    boot_id: str
    changes: tuple[Change, ...]
    torn: bool
    """Something that is not zeros follows the last verified record."""

    @property
    def sealed(self) -> bool:
        """True when the segment is complete and on disk."""
        return bool(self.changes) and self.changes[-1].kind is Kind.SEAL


def first_sequence(number: int) -> int:
    """The sequence of the first record of segment `number`."""
    return number * SEGMENT_RECORDS + 1


def boot_id() -> str:
    """The kernel's random name for the time since it booted: 36 characters."""
    with open(BOOT_ID_PATH, encoding="ascii") as file:
        return file.read().strip()


def _seed(name: JournalName) -> int:
    return zlib.crc32(_SEED.pack(name.volume, name.generation, name.number))


class JournalSegment:
    """A segment open for appending. `append` is for the owner thread, `sync` for any."""

    def __init__(self, name: JournalName, fd: int) -> None:
        self.name = name
        self.next_sequence = first_sequence(name.number)
        self.free = SEGMENT_RECORDS
        """Records that still fit."""
        self._fd = fd
        self._seed = _seed(name)

    @classmethod
    def create(cls, layout: Layout, name: JournalName, boot: str) -> JournalSegment:
        """Write a new segment in full, durably. OSError."""
        path = layout.journal_segment(name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            header = _HEADER.pack(
                _MAGIC, _FORMAT, name.number, name.volume, name.generation, boot.encode()
            )
            header += _CRC.pack(zlib.crc32(header))
            image = header + bytes(SEGMENT_BYTES - len(header))
            written = 0
            while written < len(image):
                written += os.pwrite(fd, image[written:], written)
            os.fsync(fd)
            sync_directory(layout.journal)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        return cls(name, fd)

    @property
    def last_sequence(self) -> int:
        return self.next_sequence - 1

    def append(self, changes: list[tuple[Kind, int, int]]) -> None:
        """Append (kind, start, count) records with one write. OSError: none of them counts, and
        the segment must not be appended to again."""
        assert len(changes) <= self.free
        seed, sequence = self._seed, self.next_sequence
        records = []
        for kind, start, count in changes:
            body = _BODY.pack(kind, sequence, start, count)
            records.append(_CRC.pack(zlib.crc32(body, seed)))
            records.append(body)
            sequence += 1
        data = b"".join(records)
        at = HEADER_BYTES + (SEGMENT_RECORDS - self.free) * RECORD_BYTES
        written = os.pwrite(self._fd, data, at)
        if written != len(data):
            raise OSError(errno.EIO, "short write to a preallocated journal")
        self.next_sequence = sequence
        self.free -= len(changes)

    def sync(self) -> None:
        """fdatasync. OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; again does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_segment(layout: Layout, name: JournalName) -> SegmentContents:
    """Read and verify a segment. DamagedError when its header is not what its name says."""
    with open(layout.journal_segment(name), "rb") as file:
        image = file.read(SEGMENT_BYTES)
    fields = image[: _HEADER.size]
    checksum = image[_HEADER.size : _HEADER.size + 4]
    if len(checksum) < 4 or _CRC.unpack(checksum)[0] != zlib.crc32(fields):
        raise DamagedError(f"journal segment {layout.journal_segment(name)} has a broken header")
    magic, form, number, volume, generation, boot = _HEADER.unpack(fields)
    expected = (_MAGIC, _FORMAT, name.number, name.volume, name.generation)
    if (magic, form, number, volume, generation) != expected:
        raise DamagedError(
            f"journal segment {layout.journal_segment(name)} belongs to another volume or version"
        )
    changes = _verified(image[HEADER_BYTES:], _seed(name), first_sequence(name.number))
    rest = image[HEADER_BYTES + len(changes) * RECORD_BYTES :]
    return SegmentContents(name, boot.decode("ascii"), changes, torn=any(rest))


def _verified(records: bytes, seed: int, first: int) -> tuple[Change, ...]:
    """Records from the start, up to the first that does not verify or is out of order."""
    changes: list[Change] = []
    usable = len(records) // RECORD_BYTES * RECORD_BYTES
    view = memoryview(records)[:usable]
    for at, (checksum, kind, sequence, start, count) in zip(
        range(4, usable + 4, RECORD_BYTES), _RECORD.iter_unpack(view), strict=True
    ):
        if kind == 0 or checksum != zlib.crc32(view[at : at + 28], seed):
            break
        if sequence != first + len(changes) or kind > Kind.SEAL:
            break
        changes.append(Change(sequence, _KINDS[kind], start, count))
    return tuple(changes)


def last_barrier(changes: tuple[Change, ...]) -> int:
    """The sequence covered by the last barrier; 0 when there is none."""
    return max((c.start for c in changes if c.kind in BARRIERS), default=0)
