"""Journals that are torn, damaged or not whole: where they end, and when they are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    SEGMENT_BYTES,
    SEGMENT_RECORDS,
    CellBlocks,
    CellRun,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
)
from bockd.drivers.local.format.journalreading import read_journal, read_segment
from bockd.drivers.local.format.layout import JournalName, Layout
from bockd.errors import DamagedError
from bockd.model import VolumeId
from tests.drivers.local.format.segments import BOOT, FIRST, NAME, RECORDS


def flip(path: Path, at: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ bits]))


def zero(path: Path, at: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(length))


@pytest.mark.parametrize("record", range(3))
def test_any_flipped_bit_is_damage(layout: Layout, path: Path, record: int) -> None:
    """In the last record too: a crash leaves sectors unwritten, not a record half right. One bit
    of each byte: a CRC takes each bit for what it is."""
    for byte in range(RECORD_BYTES):
        place, bits = HEADER_BYTES + record * RECORD_BYTES + byte, 1 << (byte + record) % 8
        flip(path, place, bits)
        with pytest.raises(DamagedError, match="fails its checksum"):
            read_segment(layout, NAME)
        flip(path, place, bits)


@pytest.mark.parametrize("place", [3, 4, 15, 16, 5000, SEGMENT_RECORDS - 1])
def test_noise_where_nothing_was_written_changes_nothing(
    layout: Layout, path: Path, place: int
) -> None:
    for byte in range(RECORD_BYTES):
        flip(path, HEADER_BYTES + place * RECORD_BYTES + byte, 0x80)
        contents = read_segment(layout, NAME)
        assert contents.changes == RECORDS
        assert contents.torn
        flip(path, HEADER_BYTES + place * RECORD_BYTES + byte, 0x80)


def test_a_torn_record_of_zeros_ends_the_journal_there(layout: Layout) -> None:
    """Whichever of its two sectors is missing."""
    for missing in (0, 1):
        segment = JournalSegment.create(layout, NAME, BOOT)
        segment.append([(Kind.HOLE, 1, 1)] * 14)
        segment.append([ZeroBlocks([0, 300])])  # two places in the first sector, one in the second
        segment.close()
        path = layout.journal_segment(NAME)
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES + (14 * RECORD_BYTES, 512)[missing])
            file.write(bytes(512 - (14 * RECORD_BYTES, 0)[missing]))
        contents = read_segment(layout, NAME)
        assert (len(contents.changes), contents.torn) == (14, True)


@pytest.mark.parametrize("sectors", range(5))
def test_a_torn_append_ends_the_journal_there(layout: Layout, sectors: int) -> None:
    segment = JournalSegment.create(layout, NAME, BOOT)
    segment.append([(Kind.HOLE, 1, 1)] * 14)
    segment.append([[*range(300)]])  # in sectors 0 to 3
    segment.close()
    path = layout.journal_segment(NAME)
    os.truncate(path, HEADER_BYTES + sectors * 512)
    os.truncate(path, SEGMENT_BYTES)
    contents = read_segment(layout, NAME)
    assert len(contents.changes) == (0, 14, 14, 14, 314)[sectors]
    assert contents.torn == (0 < sectors < 4)


@pytest.mark.parametrize("sectors", range(5))
def test_a_torn_append_to_a_packed_head_ends_the_journal_there(
    layout: Layout, sectors: int
) -> None:
    segment = JournalSegment.create(layout, NAME, BOOT, packed=True)
    segment.append([(Kind.HOLE, 1, 1)] * 14)
    segment.append([CellBlocks(range(300), 7)])  # in sectors 0 to 3
    segment.close()
    path = layout.journal_segment(NAME)
    os.truncate(path, HEADER_BYTES + sectors * 512)
    os.truncate(path, SEGMENT_BYTES)
    contents = read_segment(layout, NAME)
    assert len(contents.changes) == (0, 14, 14, 14, 314)[sectors]
    assert contents.torn == (0 < sectors < 4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_record_that_ends_with_block_0_is_torn_like_any_other(
    layout: Layout, *, packed: bool
) -> None:
    """Its last place holds one number, and that is 0: the sector is there all the same."""
    blocks = [*range(1, 8 * 18 + 1), 0]
    segment = JournalSegment.create(layout, NAME, BOOT, packed=packed)
    segment.append([(Kind.HOLE, 1, 1)] * 14)
    segment.append([CellBlocks(blocks, 7) if packed else blocks])  # in sectors 0 to 2
    segment.close()
    zero(layout.journal_segment(NAME), HEADER_BYTES + 512, 512)
    contents = read_segment(layout, NAME)
    assert (len(contents.changes), contents.torn) == (14, True)


def test_a_truncated_segment_is_refused(layout: Layout, path: Path) -> None:
    """Who knows what was there."""
    os.truncate(path, SEGMENT_BYTES - 1)
    with pytest.raises(DamagedError, match="truncated"):
        read_segment(layout, NAME)


def test_sectors_lost_before_their_flush_are_no_damage_and_after_it_they_are(
    layout: Layout,
) -> None:
    """A barrier that got to disk before what it covers: its flush was never acknowledged."""
    segment = JournalSegment.create(layout, NAME, BOOT)
    segment.append([(Kind.HOLE, 1, 1)] * 20)
    segment.append([(Kind.BARRIER, FIRST + 19, 0)])
    path = layout.journal_segment(NAME)
    zero(path, HEADER_BYTES, 512)
    assert read_segment(layout, NAME).changes == ()
    segment.append([(Kind.HOLE, 1, 1), (Kind.BARRIER, FIRST + 21, 0)])
    segment.close()
    with pytest.raises(DamagedError, match="was flushed"):
        read_segment(layout, NAME)


@pytest.mark.parametrize(
    "other",
    [
        JournalName(VolumeId(8), 3, 2),
        JournalName(VolumeId(7), 4, 2),
        JournalName(VolumeId(7), 3, 1),
    ],
)
def test_a_segment_under_another_name_is_refused(
    layout: Layout, path: Path, other: JournalName
) -> None:
    os.rename(path, layout.journal_segment(other))
    with pytest.raises(DamagedError, match="another volume"):
        read_segment(layout, other)


@pytest.mark.parametrize("byte", range(0, 72, 3))
def test_a_broken_header_is_refused(layout: Layout, path: Path, byte: int) -> None:
    flip(path, byte, 1)
    with pytest.raises(DamagedError):
        read_segment(layout, NAME)


def test_records_of_another_segment_do_not_verify(layout: Layout, path: Path) -> None:
    """The bytes of one segment's records, copied into another: not one of them counts."""
    other = JournalName(VolumeId(7), 4, 2)
    JournalSegment.create(layout, other, BOOT).close()
    records = path.read_bytes()[HEADER_BYTES:]
    with layout.journal_segment(other).open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(records)
    with pytest.raises(DamagedError, match="fails its checksum"):
        read_segment(layout, other)


@pytest.mark.parametrize("packed", [False, True])
def test_a_record_of_another_kind_of_head_is_damage(layout: Layout, *, packed: bool) -> None:
    of_raw: list[Entry] = [(Kind.REDIRECT, 1, 2), [1, 2, 3]]
    of_packed: list[Entry] = [CellRun(1, 2, 3), CellBlocks([1, 2, 3], 4)]
    for entry in of_raw if packed else of_packed:
        segment = JournalSegment.create(layout, NAME, BOOT, packed=packed)
        segment.append([(Kind.HOLE, 1, 2), entry])
        segment.close()
        with pytest.raises(DamagedError, match="of a kind that another head's journal has"):
            read_segment(layout, NAME)


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_scatter_is_damage(layout: Layout, *, packed: bool) -> None:
    segment = JournalSegment.create(layout, NAME, BOOT, packed=packed)
    blocks = [0x01010101 * n for n in range(1, 25)]
    segment.append([(Kind.HOLE, 1, 2), CellBlocks(blocks, 1 << 31) if packed else blocks])
    segment.close()
    path = layout.journal_segment(NAME)
    for byte in range(4 * RECORD_BYTES):
        place, bits = HEADER_BYTES + RECORD_BYTES + byte, 1 << byte % 8
        flip(path, place, bits)
        with pytest.raises(DamagedError, match="fails its checksum"):
            read_segment(layout, NAME)
        flip(path, place, bits)


def test_a_broken_run_of_cells_is_damage(layout: Layout) -> None:
    segment = JournalSegment.create(layout, NAME, BOOT, packed=True)
    segment.append([(Kind.HOLE, 1, 2), CellRun(5, 6, 7)])
    segment.close()
    path = layout.journal_segment(NAME)
    for byte in range(RECORD_BYTES):
        place, bits = HEADER_BYTES + RECORD_BYTES + byte, 1 << byte % 8
        flip(path, place, bits)
        with pytest.raises(DamagedError, match="fails its checksum"):
            read_segment(layout, NAME)
        flip(path, place, bits)


@pytest.mark.parametrize(
    ("there", "missing"),
    [("", 2), ("o", None), ("s", 3), ("so", None), ("ss", 4), ("-o", 2), ("s-o", 3), ("oo", None)],
)
def test_a_missing_segment_is_noticed(layout: Layout, there: str, missing: int | None) -> None:
    """From segment 2 on, segments that are open (o), sealed (s) or missing (-). Behind a seal there
    must be another one; and neither other generations nor earlier segments count."""
    for number, what in enumerate(f"s{there}", 1):
        name = JournalName(NAME.volume, NAME.generation, number)
        if what != "-":
            segment = JournalSegment.create(layout, name, BOOT)
            segment.append([(Kind.REDIRECT, number, 1)])
            if what == "s":
                segment.append([(Kind.SEAL, segment.last_sequence, 0)])
            segment.close()
    JournalSegment.create(layout, JournalName(NAME.volume, NAME.generation + 1, 2), BOOT).close()
    segments, found = read_journal(layout, NAME)
    assert (None if found is None else found.number) == missing
    assert [s.changes[0].start for s in segments] == [s.name.number for s in segments]
    if missing is None:
        assert len(segments) == len(there)
