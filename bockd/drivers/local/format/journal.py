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

A segment is read back by format.journalreading.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from bockd.drivers.local.format.layout import JournalName, Layout, unlink_if_present
from bockd.durable import sync_directory
from bockd.failpoints import Failpoint, hit
from bockd.model import KIB, MIB
from bockd.runtime.syncing import Syncing

SEGMENT_BYTES = 2 * MIB
"""65,408 places: as many single changes, or 400,000 scattered blocks in batches of 32. Enough that
their index work is done in bulk, little enough that recovery replays them in a moment."""

HEADER_BYTES = 4096
MAGIC = b"bockdjnl"
FORMAT_WITHOUT_ZEROS = 1
FORMAT = 2
FORMAT_PACKED = 3
HEADER = struct.Struct("<8sIIQQ36s")
CRC = struct.Struct("<I")
RECORD = struct.Struct("<IIQQQ")
_BODY = struct.Struct("<IQQQ")
_SEED = struct.Struct("<QQI")
_BLOCKS_PER_PLACE = 8
_BITS_PER_PLACE = 256
_CELL_SHIFT = 32
_COUNT_MASK = (1 << _CELL_SHIFT) - 1
_ONE = ord("1")
_PIECE_BYTES = 64 * KIB
RECORD_BYTES = RECORD.size
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
KINDS: Kinds = {int(kind): kind for kind in Kind}
RAW_KINDS: Kinds = {int(kind): kind for kind in Kind if kind not in _OF_PACKED_HEADS}
PACKED_KINDS: Kinds = {int(kind): kind for kind in Kind if kind not in _OF_RAW_HEADS}


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


def first_sequence(number: int) -> int:
    """Return the sequence of the first record of segment `number`."""
    return number * SEGMENT_RECORDS + 1


def boot_id() -> str:
    """Return the kernel's random id of the time since it booted: 36 characters."""
    with open(BOOT_ID_PATH, encoding="ascii") as file:
        return file.read().strip()


def seed_of(name: JournalName) -> int:
    return zlib.crc32(_SEED.pack(name.volume, name.generation, name.number))


class JournalSegment:
    """A segment open for appending. `append` is for the owner thread, `sync` for any."""

    def __init__(self, name: JournalName, fd: int) -> None:
        self.name = name
        self.next_sequence = first_sequence(name.number)
        self.free = SEGMENT_RECORDS
        """Record places that are still empty."""
        self._fd = fd
        self._seed = seed_of(name)

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
        overwrite the blocks of the file that has the name of an unfinished segment. Raises
        OSError."""
        path = layout.journal_segment(name)
        # Under another name until it is whole: a segment without a header is damage.
        unfinished = layout.unfinished_segment(name)
        flags = 0 if reuse else os.O_CREAT | os.O_TRUNC
        fd = os.open(unfinished, os.O_RDWR | flags | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            form = FORMAT_PACKED if packed else FORMAT
            header = HEADER.pack(
                MAGIC, form, name.number, name.volume, name.generation, boot.encode()
            )
            header += CRC.pack(zlib.crc32(header))
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
        none of them counts then, and nothing more may be appended to the segment."""
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
                body += bits.to_bytes(
                    following_places(Kind.ZEROS, first, span) * RECORD_BYTES, "little"
                )
                sequence += len(body) // RECORD_BYTES
            else:
                kind, start, count = entry
                body = _BODY.pack(kind, sequence, start, count)
            records.append(CRC.pack(zlib.crc32(body, seed)))
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
        """Close the file. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def decode(
    records: bytes, seed: int, first: int, kinds: Kinds, place: int = 0
) -> tuple[tuple[Change, ...], int]:
    """Return the changes from `place` on, up to the first record that does not verify, is out of
    order or of none of the `kinds`, and the place of that one. `first` is the sequence of place
    0."""
    changes: list[Change] = []
    view = memoryview(records)
    places = len(records) // RECORD_BYTES
    while place < places:
        at = place * RECORD_BYTES
        checksum, kind, sequence, start, count = RECORD.unpack_from(records, at)
        known = kinds.get(kind)
        if known is None or sequence != first + place:
            break
        following = following_places(kind, start, count)
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


def following_places(kind: int, start: int, count: int) -> int:
    """Return how many more places a record takes than one."""
    if kind in (Kind.SCATTER, Kind.CELL_SCATTER):
        return -(-start // _BLOCKS_PER_PLACE)
    return -(-count // _BITS_PER_PLACE) if kind == Kind.ZEROS else 0


def _numbers(blocks: Sequence[int]) -> bytes:
    """The numbers of single blocks, in whole places. Each has something in it, even if the last
    number is 0: so it can be told that a sector of them is there (format.journalreading)."""
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
    """Return how many record places entries take."""
    total = len(entries)
    for entry in entries:
        if isinstance(entry, list):
            total += following_places(Kind.SCATTER, len(entry), 0)
        elif isinstance(entry, CellBlocks):
            total += following_places(Kind.CELL_SCATTER, len(entry.blocks), 0)
        elif isinstance(entry, ZeroBlocks):
            total += following_places(Kind.ZEROS, 0, _span(entry))
    return total
