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
    SCATTER   `start` single blocks are now in the head: their numbers, u32 each, fill the places of
              the following records (padded with ones), and the CRC-32 covers them too
    ZEROS     of the blocks start..start+count-1 in the head, those whose bits are set may hold
              nothing but zeros from now on. The bits fill the places of the following records,
              lowest bit first; the first and the last are set, and the CRC-32 covers them too
    CELLS     count is c << 32 | n: blocks start..start+n-1 are now in the head, which is packed
              (format.cells), in cells from c on
    CELL_SCATTER  as SCATTER, in a packed head: its blocks are in cells from `count` on, one behind
              the other

A block whose latest redirect no barrier covers, and of which no later ZEROS record speaks, holds a
byte that is not zero. Where one holds none, the page cache was lost (volume.recovery). A hole
proves nothing without that: copies and some file systems store zeros as holes.

Formats of a segment:

    1: no ZEROS records
    2: with them
    3: of a packed head: CELLS and CELL_SCATTER instead of REDIRECT and SCATTER. Only these have
       it, so that older code reads what a co-opener leaves in a pool of an older format.

A record that does not verify ends the journal where a crash may have left it like that: unwritten,
or with whole sectors of it unwritten. Anything else is damage (`_find_damage`), and refused: the
records that follow were acknowledged.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from bockd.directories import sync_directory
from bockd.drivers.local.format.layout import JournalName, Layout, unlink_if_present
from bockd.errors import DamagedError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.model import KIB, MIB
from bockd.runtime.syncing import Syncing

SEGMENT_BYTES = 2 * MIB
"""65,408 places: as many single changes, or 400,000 scattered blocks in batches of 32. Enough that
their index work is done in bulk, little enough that recovery replays them in a moment."""

HEADER_BYTES = 4096
_MAGIC = b"bockdjnl"
_FORMAT_WITHOUT_ZEROS = 1
_FORMAT = 2
_FORMAT_PACKED = 3
_HEADER = struct.Struct("<8sIIQQ36s")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIQQQ")
_BODY = struct.Struct("<IQQQ")
_SEED = struct.Struct("<QQI")
_BLOCKS_PER_PLACE = 8
_BITS_PER_PLACE = 256
_CELL_SHIFT = 32
_COUNT_MASK = (1 << _CELL_SHIFT) - 1
_PLACES_PER_SECTOR = 512 // 32
"""A disk writes whole sectors of 512 bytes; a place is never in two."""

_ONE = ord("1")
_PIECE_BYTES = 64 * KIB
RECORD_BYTES = _RECORD.size
SEGMENT_RECORDS = (SEGMENT_BYTES - HEADER_BYTES) // RECORD_BYTES
BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


class Kind(IntEnum):
    """What a record says."""

    REDIRECT = 1
    HOLE = 2
    BARRIER = 3
    SEAL = 4
    SCATTER = 5
    ZEROS = 6
    CELLS = 7
    CELL_SCATTER = 8


BARRIERS = (Kind.BARRIER, Kind.SEAL)
MAP_CHANGES = (Kind.REDIRECT, Kind.HOLE, Kind.CELLS)
"""The kinds of `Change` that change a map."""

Kinds = dict[int, Kind]
_OF_RAW_HEADS = (Kind.REDIRECT, Kind.SCATTER)
_OF_PACKED_HEADS = (Kind.CELLS, Kind.CELL_SCATTER)
_KINDS: Kinds = {int(kind): kind for kind in Kind}
_RAW_KINDS: Kinds = {int(kind): kind for kind in Kind if kind not in _OF_PACKED_HEADS}
_PACKED_KINDS: Kinds = {int(kind): kind for kind in Kind if kind not in _OF_RAW_HEADS}


class ZeroBlocks(NamedTuple):
    """What a ZEROS record is made of: at least one block, in ascending order."""

    blocks: Sequence[int]


class CellRun(NamedTuple):
    """What a CELLS record is made of: `blocks` blocks from `start` on are in cells from `cell`
    on."""

    start: int
    blocks: int
    cell: int


class CellBlocks(NamedTuple):
    """What a CELL_SCATTER record is made of: single blocks are in cells from `cell` on, one behind
    the other."""

    blocks: Sequence[int]
    cell: int


Entry = tuple[Kind, int, int] | list[int] | ZeroBlocks | CellRun | CellBlocks
"""What is appended: (kind, start, count), a list of single blocks redirected to the head, blocks
that may hold nothing but zeros, or blocks that are in cells of a packed head."""


class Change(NamedTuple):
    """A verified record, or a run of blocks of one: `blocks` blocks from `start` on. For a barrier
    `start` is the sequence it covers, and `blocks` is 0. REDIRECT stands for SCATTER, too, and
    CELLS for CELL_SCATTER."""

    sequence: int
    kind: Kind
    start: int
    blocks: int
    cell: int = -1
    """Of CELLS: where the first of the blocks lies; the others follow."""


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """What a segment file holds: its header, and its records up to the first that fails."""

    name: JournalName
    boot_id: str
    changes: tuple[Change, ...]
    places: int
    """Record places that verified."""
    torn: bool
    """Something that is not zeros follows the last verified record."""
    notes_zeros: bool = True
    """Its writer appended ZEROS records where they are due (format 2)."""
    packed: bool = False
    """It is of a packed head (format 3)."""

    @property
    def sealed(self) -> bool:
        """True when the segment is complete and on disk."""
        return bool(self.changes) and self.changes[-1].kind is Kind.SEAL


def first_sequence(number: int) -> int:
    """Return the sequence of the first record of segment `number`."""
    return number * SEGMENT_RECORDS + 1


def boot_id() -> str:
    """Return the kernel's random id of the time since it booted: 36 characters."""
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
        """Record places that are still empty."""
        self._fd = fd
        self._seed = _seed(name)

    @classmethod
    def create(
        cls,
        layout: Layout,
        name: JournalName,
        boot: str,
        *,
        reuse: bool = False,
        packed: bool = False,
    ) -> JournalSegment:
        """Write a new segment in full, durably; `packed` says what the head is. With `reuse`,
        overwrite the file that has the name of an unfinished one, in its blocks. Raises
        OSError."""
        path = layout.journal_segment(name)
        # Under another name until it is whole: a segment without a header is damage.
        unfinished = layout.unfinished_segment(name)
        flags = 0 if reuse else os.O_CREAT | os.O_TRUNC
        fd = os.open(unfinished, os.O_RDWR | flags | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            form = _FORMAT_PACKED if packed else _FORMAT
            header = _HEADER.pack(
                _MAGIC, form, name.number, name.volume, name.generation, boot.encode()
            )
            header += _CRC.pack(zlib.crc32(header))
            image = header + bytes(SEGMENT_BYTES - len(header))
            written = 0
            while written < len(image):
                # In pieces, because large page-cache folios make every later append dearer.
                written += os.pwrite(fd, image[written : written + _PIECE_BYTES], written)
            hit(Failpoint.SEGMENT_WRITTEN)
            os.fsync(fd)
            hit(Failpoint.SEGMENT_SYNCED)
            os.rename(unfinished, path)
            hit(Failpoint.SEGMENT_NAMED)
            sync_directory(layout.journal)
        except BaseException:
            os.close(fd)
            unlink_if_present(unfinished)
            unlink_if_present(path)
            raise
        return cls(name, fd)

    @property
    def last_sequence(self) -> int:
        return self.next_sequence - 1

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries with one write. The segment has room for them (`places`). Raises OSError:
        then none of them counts, and the segment must not be appended to again."""
        seed, sequence = self._seed, self.next_sequence
        records: list[bytes] = []
        for entry in entries:
            if isinstance(entry, list):
                body = _BODY.pack(Kind.SCATTER, sequence, len(entry), 0) + _numbers(entry)
                sequence += len(body) // RECORD_BYTES
            elif isinstance(entry, CellBlocks):
                body = _BODY.pack(Kind.CELL_SCATTER, sequence, len(entry.blocks), entry.cell)
                body += _numbers(entry.blocks)
                sequence += len(body) // RECORD_BYTES
            elif isinstance(entry, CellRun):
                count = entry.cell << _CELL_SHIFT | entry.blocks
                body = _BODY.pack(Kind.CELLS, sequence, entry.start, count)
            elif isinstance(entry, ZeroBlocks):
                first, span = entry.blocks[0], _span(entry)
                body = _BODY.pack(Kind.ZEROS, sequence, first, span)
                bits = _bits_of(entry, span)
                body += bits.to_bytes(_following(Kind.ZEROS, first, span) * RECORD_BYTES, "little")
                sequence += len(body) // RECORD_BYTES
            else:
                kind, start, count = entry
                body = _BODY.pack(kind, sequence, start, count)
            records.append(_CRC.pack(zlib.crc32(body, seed)))
            records.append(body)
            sequence += 1
        data = b"".join(records)
        used = sequence - self.next_sequence
        assert used <= self.free
        at = HEADER_BYTES + (SEGMENT_RECORDS - self.free) * RECORD_BYTES
        if os.pwrite(self._fd, data, at) != len(data):
            raise OSError(errno.EIO, "short write to a preallocated journal")
        self.next_sequence = sequence
        self.free -= used

    @property
    def used(self) -> int:
        """Record places that are not empty any more."""
        return SEGMENT_RECORDS - self.free

    def sync(self) -> None:
        """Sync the file with fdatasync. Raises OSError."""
        os.fdatasync(self._fd)

    def syncing(self) -> Syncing:
        """Return `sync` as a step. Raises OSError where it is awaited."""
        return Syncing(self.sync, (self._fd,))

    def close(self) -> None:
        """Close the file. Repeating it does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(
    layout: Layout, first: JournalName
) -> tuple[list[SegmentContents], JournalName | None]:
    """Read the segments from `first` on, of its volume and generation.

    Returns them in order, and the one that is missing, or None: `first` itself, one between others,
    or the one behind a seal, since the next segment is made before one is sealed. Raises
    DamagedError as `read_segment` does.
    """
    there = {
        name
        for name in layout.journal_segments()
        if (name.volume, name.generation) == (first.volume, first.generation)
        and name.number >= first.number
    }
    segments: list[SegmentContents] = []
    name = first
    while name in there:
        segments.append(read_segment(layout, name))
        name = replace(name, number=name.number + 1)
    complete = len(segments) == len(there) and segments and not segments[-1].sealed
    return segments, None if complete else name


def read_segment(layout: Layout, name: JournalName) -> SegmentContents:
    """Read and verify a segment. Raises DamagedError when its header is not what its name says,
    when it is cut short, or when a record fails in a way that no crash leaves."""
    path = layout.journal_segment(name)
    try:
        with open(path, "rb") as file:
            image = file.read(SEGMENT_BYTES)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    boot, form = _read_header(image, name, path)
    if len(image) < SEGMENT_BYTES:
        raise DamagedError(f"journal segment {path} is truncated; {_WHAT_TO_DO}")
    records = image[HEADER_BYTES:]
    packed = form == _FORMAT_PACKED
    kinds = _PACKED_KINDS if packed else _RAW_KINDS
    changes, places = _verified(records, _seed(name), first_sequence(name.number), kinds)
    torn = bool(records[places * RECORD_BYTES :].strip(b"\0"))
    if torn and (damage := _find_damage(records, name, places, kinds)):
        raise DamagedError(f"journal segment {path} is damaged: {damage}; {_WHAT_TO_DO}")
    return SegmentContents(name, boot, changes, places, torn, form != _FORMAT_WITHOUT_ZEROS, packed)


_WHAT_TO_DO = "restore it, or accept the loss of the latest writes with 'bockd check --repair'"


def _read_header(image: bytes, name: JournalName, path: Path) -> tuple[str, int]:
    """The boot id and the format of a segment that is what its name says; DamagedError for any
    other."""
    fields = image[: _HEADER.size]
    checksum = image[_HEADER.size : _HEADER.size + 4]
    if len(checksum) < 4 or _CRC.unpack(checksum)[0] != zlib.crc32(fields):
        raise DamagedError(f"journal segment {path} has a broken header; {_WHAT_TO_DO}")
    magic, form, number, volume, generation, boot = _HEADER.unpack(fields)
    expected = (_MAGIC, name.number, name.volume, name.generation)
    known = form in (_FORMAT_WITHOUT_ZEROS, _FORMAT, _FORMAT_PACKED)
    if not known or (magic, number, volume, generation) != expected:
        raise DamagedError(f"journal segment {path} belongs to another volume or version")
    return boot.decode("ascii"), form


def _find_damage(records: bytes, name: JournalName, place: int, kinds: Kinds) -> str | None:
    """Why the record at `place`, the first that fails, was not left like that by a crash."""
    first = first_sequence(name.number)
    if _verified(records, _seed(name), first, _KINDS, place)[1] > place:
        return f"record {first + place} is of a kind that another head's journal has"
    if _was_written(records, first, place) and not _is_torn(records, place):
        return f"record {first + place} fails its checksum"
    later = _verified_after(records, name, place, kinds)
    barriers = [change for change in later if change.kind in BARRIERS]
    # The second was appended when the first, and what it covers, was on disk.
    if len(barriers) > 1 and barriers[0].start >= first + place:
        return f"record {first + place} is missing, and was flushed"
    return None


def _was_written(records: bytes, first: int, place: int) -> bool:
    """Whether a place holds a record, damaged or not, rather than noise where none was written."""
    checksum, kind, sequence, _, _ = _RECORD.unpack_from(records, place * RECORD_BYTES)
    return sequence == first + place or bool(checksum and kind in _KINDS)


def _is_torn(records: bytes, place: int) -> bool:
    """Whether a record may have been written in part: sectors of it are there and sectors are not.
    Every place of a record has something in it."""
    _, kind, _, start, count = _RECORD.unpack_from(records, place * RECORD_BYTES)
    following = _following(kind, start, count)
    if not following:
        return False
    end = min(place + 1 + following, SEGMENT_RECORDS)
    missing = 0
    while place < end:
        stop = min(_next_sector(place), end)
        there = {
            any(records[at * RECORD_BYTES : (at + 1) * RECORD_BYTES]) for at in range(place, stop)
        }
        if len(there) > 1:
            return False
        missing += there == {False}
        place = stop
    return missing > 0


def _next_sector(place: int) -> int:
    """The first place of the sector after that of `place`."""
    return (place // _PLACES_PER_SECTOR + 1) * _PLACES_PER_SECTOR


def _verified_after(records: bytes, name: JournalName, place: int, kinds: Kinds) -> list[Change]:
    """The records that verify after the one at `place`, which does not."""
    seed, first = _seed(name), first_sequence(name.number)
    found: list[Change] = []
    end = -(-len(records.rstrip(b"\0")) // RECORD_BYTES)
    place += 1
    while place < end:
        changes, reached = _verified(records, seed, first, kinds, place)
        found.extend(changes)
        place = max(reached, place) + 1
    return found


def _verified(
    records: bytes, seed: int, first: int, kinds: Kinds, place: int = 0
) -> tuple[tuple[Change, ...], int]:
    """Changes from `place` on, up to the first record that does not verify, is out of order or of
    none of the `kinds`, and the place of that one."""
    changes: list[Change] = []
    view = memoryview(records)
    places = len(records) // RECORD_BYTES
    while place < places:
        at = place * RECORD_BYTES
        checksum, kind, sequence, start, count = _RECORD.unpack_from(records, at)
        known = kinds.get(kind)
        if known is None or sequence != first + place:
            break
        following = _following(kind, start, count)
        end = at + (1 + following) * RECORD_BYTES
        if end > len(records) or checksum != zlib.crc32(view[at + 4 : end], seed):
            break
        if known in (Kind.SCATTER, Kind.CELL_SCATTER):
            numbers = array("I", records[at + RECORD_BYTES : at + RECORD_BYTES + 4 * start])
            if known is Kind.SCATTER:
                changes.extend([Change(sequence, Kind.REDIRECT, block, 1) for block in numbers])
            else:
                pairs = zip(numbers, range(count, count + start), strict=True)
                changes.extend([Change(sequence, Kind.CELLS, b, 1, cell) for b, cell in pairs])
        elif known is Kind.CELLS:
            run = count & _COUNT_MASK
            changes.append(Change(sequence, known, start, run, count >> _CELL_SHIFT))
        elif known is Kind.ZEROS:
            bits = int.from_bytes(view[at + RECORD_BYTES : end], "little")
            runs = _runs_of_bits(bits)
            changes.extend([Change(sequence, known, start + low, n) for low, n in runs])
        else:
            changes.append(Change(sequence, known, start, count))
        place += 1 + following
    return tuple(changes), place


def _following(kind: int, start: int, count: int) -> int:
    """Places that a record takes beside its own."""
    if kind in (Kind.SCATTER, Kind.CELL_SCATTER):
        return -(-start // _BLOCKS_PER_PLACE)
    return -(-count // _BITS_PER_PLACE) if kind == Kind.ZEROS else 0


def _numbers(blocks: Sequence[int]) -> bytes:
    """The numbers of single blocks, in whole places. Each has something in it, even if the last
    number is 0: so it can be told that a sector of them is there (`_is_torn`)."""
    numbers = array("I", blocks).tobytes()
    return numbers + b"\xff" * (-len(numbers) % RECORD_BYTES)


def _span(zeros: ZeroBlocks) -> int:
    """Blocks from the first to the last."""
    return zeros.blocks[-1] - zeros.blocks[0] + 1


def _bits_of(zeros: ZeroBlocks, span: int) -> int:
    """A bit for each block, counted from the first."""
    if len(zeros.blocks) == span:
        return (1 << span) - 1
    first = zeros.blocks[0]
    digits = bytearray(b"0") * span
    for block in zeros.blocks:
        digits[first - block - 1] = _ONE  # the highest comes first
    return int(digits, 2)


def _runs_of_bits(bits: int) -> Iterator[tuple[int, int]]:
    """Runs of set bits as (lowest, number)."""
    base = 0
    while bits:
        low = (bits & -bits).bit_length() - 1
        bits >>= low
        length = (~bits & (bits + 1)).bit_length() - 1
        yield base + low, length
        bits >>= length
        base += low + length


def places(entries: Sequence[Entry]) -> int:
    """Record places that entries take."""
    total = len(entries)
    for entry in entries:
        if isinstance(entry, list):
            total += _following(Kind.SCATTER, len(entry), 0)
        elif isinstance(entry, CellBlocks):
            total += _following(Kind.CELL_SCATTER, len(entry.blocks), 0)
        elif isinstance(entry, ZeroBlocks):
            total += _following(Kind.ZEROS, 0, _span(entry))
    return total


def last_barrier(changes: tuple[Change, ...]) -> int:
    """Return the sequence covered by the last barrier, or 0 when there is none."""
    return max((c.start for c in changes if c.kind in BARRIERS), default=0)
