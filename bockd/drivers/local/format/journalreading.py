"""Reading a journal back: its segments, each up to where a crash may have ended it.

A record that does not verify ends the journal where a crash may have left it like that: unwritten,
or with whole sectors of it unwritten. Anything else is damage (`_find_damage`), and refused: the
records that follow were acknowledged. The format is that of format.journal.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from bockd.drivers.local.format import journal
from bockd.drivers.local.format.journal import (
    BARRIERS,
    CRC,
    FORMAT,
    FORMAT_PACKED,
    FORMAT_WITHOUT_ZEROS,
    HEADER,
    HEADER_BYTES,
    KINDS,
    MAGIC,
    PACKED_KINDS,
    RAW_KINDS,
    RECORD,
    RECORD_BYTES,
    Change,
    Kind,
    Kinds,
    decode,
    first_sequence,
    following_places,
    seed_of,
)
from bockd.drivers.local.format.layout import JournalName, Layout
from bockd.errors import DamagedError, from_os_error

_PLACES_PER_SECTOR = 512 // 32
"""A disk writes whole sectors of 512 bytes; a place is never in two."""


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


def last_barrier(changes: tuple[Change, ...]) -> int:
    """Return the sequence covered by the last barrier, or 0 when there is none."""
    return max((c.start for c in changes if c.kind in BARRIERS), default=0)


def read_journal(
    layout: Layout, first: JournalName
) -> tuple[list[SegmentContents], JournalName | None]:
    """Read the segments of a volume and generation from `first` on.

    Returns them in order up to the first that is missing, and the name of that one, or None.
    Missing may be `first` itself, one between others, or the one behind a seal: the next segment is
    made before one is sealed. Raises DamagedError as `read_segment` does.
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
    """Read and verify a segment.

    Raises:
        DamagedError: its header is not what its name says, it is cut short, or a record fails in a
            way that no crash leaves.
        BockdError: the file cannot be read.
    """
    path = layout.journal_segment(name)
    try:
        with open(path, "rb") as file:
            image = file.read(journal.SEGMENT_BYTES)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    boot, form = _read_header(image, name, path)
    if len(image) < journal.SEGMENT_BYTES:
        raise DamagedError(f"journal segment {path} is truncated; {_WHAT_TO_DO}")
    records = image[HEADER_BYTES:]
    packed = form == FORMAT_PACKED
    kinds = PACKED_KINDS if packed else RAW_KINDS
    changes, places = decode(records, seed_of(name), first_sequence(name.number), kinds)
    torn = bool(records[places * RECORD_BYTES :].strip(b"\0"))
    if torn and (damage := _find_damage(records, name, places, kinds)):
        raise DamagedError(f"journal segment {path} is damaged: {damage}; {_WHAT_TO_DO}")
    return SegmentContents(name, boot, changes, places, torn, form != FORMAT_WITHOUT_ZEROS, packed)


_WHAT_TO_DO = "restore it, or accept the loss of the latest writes with 'bockd check --repair'"


def _read_header(image: bytes, name: JournalName, path: Path) -> tuple[str, int]:
    """The boot id and the format of a segment. Raises DamagedError if it is not what its name
    says."""
    fields = image[: HEADER.size]
    checksum = image[HEADER.size : HEADER.size + 4]
    if len(checksum) < 4 or CRC.unpack(checksum)[0] != zlib.crc32(fields):
        raise DamagedError(f"journal segment {path} has a broken header; {_WHAT_TO_DO}")
    magic, form, number, volume, generation, boot = HEADER.unpack(fields)
    expected = (MAGIC, name.number, name.volume, name.generation)
    known = form in (FORMAT_WITHOUT_ZEROS, FORMAT, FORMAT_PACKED)
    if not known or (magic, number, volume, generation) != expected:
        raise DamagedError(f"journal segment {path} belongs to another volume or version")
    return boot.decode("ascii"), form


def _find_damage(records: bytes, name: JournalName, place: int, kinds: Kinds) -> str | None:
    """Say why no crash has left the record at `place`, the first that fails, as it is. None if one
    may have."""
    first = first_sequence(name.number)
    if decode(records, seed_of(name), first, KINDS, place)[1] > place:
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
    checksum, kind, sequence, _, _ = RECORD.unpack_from(records, place * RECORD_BYTES)
    return sequence == first + place or bool(checksum and kind in KINDS)


def _is_torn(records: bytes, place: int) -> bool:
    """Whether a record may have been written in part: whole sectors of it are missing, and the
    others are there. Of a record that was written no place is all zeros."""
    _, kind, _, start, count = RECORD.unpack_from(records, place * RECORD_BYTES)
    following = following_places(kind, start, count)
    if not following:
        return False
    end = min(place + 1 + following, journal.SEGMENT_RECORDS)
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
    seed, first = seed_of(name), first_sequence(name.number)
    found: list[Change] = []
    end = -(-len(records.rstrip(b"\0")) // RECORD_BYTES)
    place += 1
    while place < end:
        changes, reached = decode(records, seed, first, kinds, place)
        found.extend(changes)
        place = max(reached, place) + 1
    return found
