"""Journal segments: what was appended comes back, and in which bytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from bockd.drivers.local.format.journal import (
    SEGMENT_BYTES,
    SEGMENT_RECORDS,
    CellBlocks,
    CellRun,
    Change,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
    places,
)
from bockd.drivers.local.format.journalreading import last_barrier, read_segment
from bockd.drivers.local.format.layout import Layout
from tests.drivers.local.format.segments import BOOT, FIRST, NAME, RECORDS


def test_records_come_back_in_order(layout: Layout, path: Path) -> None:
    contents = read_segment(layout, NAME)
    assert contents.changes == RECORDS
    assert contents.boot_id == BOOT
    assert not contents.torn
    assert not contents.sealed
    assert last_barrier(contents.changes) == FIRST + 1


def test_a_segment_is_written_in_full_when_it_is_made(path: Path) -> None:
    status = path.stat()
    assert status.st_size == SEGMENT_BYTES
    assert status.st_blocks * 512 >= SEGMENT_BYTES


def test_a_segment_holds_as_many_records_as_it_says(layout: Layout) -> None:
    segment = JournalSegment.create(layout, NAME, BOOT)
    assert segment.free == SEGMENT_RECORDS
    segment.append([(Kind.REDIRECT, block, 1) for block in range(SEGMENT_RECORDS - 1)])
    segment.append([(Kind.SEAL, FIRST, 0)])
    assert segment.free == 0
    segment.close()
    assert layout.journal_segment(NAME).stat().st_size == SEGMENT_BYTES
    contents = read_segment(layout, NAME)
    assert len(contents.changes) == SEGMENT_RECORDS
    assert contents.sealed


def test_blocks_that_may_be_zeros_come_back(layout: Layout) -> None:
    """As runs, in the order of the journal; alone, far apart, and as many as one write covers."""
    zeros = ZeroBlocks([9]), ZeroBlocks([7, 8, 10, 262]), ZeroBlocks([*range(100, 357)])
    segment = JournalSegment.create(layout, NAME, BOOT)
    segment.append([(Kind.REDIRECT, 7, 400), *zeros, (Kind.HOLE, 1, 1)])
    segment.close()
    contents = read_segment(layout, NAME)
    assert contents.notes_zeros
    assert contents.places == 1 + 2 + 2 + 3 + 1 == places([*zeros]) + 2
    assert [change[1:4] for change in contents.changes] == [
        (Kind.REDIRECT, 7, 400),
        (Kind.ZEROS, 9, 1),
        (Kind.ZEROS, 7, 2),
        (Kind.ZEROS, 10, 1),
        (Kind.ZEROS, 262, 1),
        (Kind.ZEROS, 100, 257),
        (Kind.HOLE, 1, 1),
    ]
    numbers = [change.sequence - FIRST for change in contents.changes]
    assert numbers == [0, 1, 3, 3, 3, 5, 8]


def test_a_segment_of_the_first_format_is_read(layout: Layout, path: Path) -> None:
    image = bytearray(path.read_bytes())
    image[8:12] = (1).to_bytes(4, "little")
    header = 8 + 4 + 4 + 8 + 8 + 36
    image[header : header + 4] = zlib.crc32(image[:header]).to_bytes(4, "little")
    path.write_bytes(image)
    contents = read_segment(layout, NAME)
    assert contents.changes == RECORDS
    assert not contents.notes_zeros


@pytest.mark.parametrize("count", [1, 7, 8, 9, 32, 5000])
def test_scattered_blocks_come_back_one_by_one(layout: Layout, count: int) -> None:
    blocks = [(n * 7919) % (1 << 32) for n in range(count)]
    segment = JournalSegment.create(layout, NAME, BOOT)
    entries: list[Entry] = [(Kind.HOLE, 1, 2), blocks, (Kind.BARRIER, FIRST, 0)]
    segment.append(entries)
    assert segment.free == SEGMENT_RECORDS - places(entries)
    segment.close()
    contents = read_segment(layout, NAME)
    assert contents.places == places(entries)
    assert contents.changes == (
        Change(FIRST, Kind.HOLE, 1, 2),
        *(Change(FIRST + 1, Kind.REDIRECT, block, 1) for block in blocks),
        Change(FIRST + places(entries) - 1, Kind.BARRIER, FIRST, 0),
    )


@pytest.mark.parametrize("count", [1, 7, 8, 9, 32, 257, 5000])
def test_blocks_in_cells_come_back(layout: Layout, count: int) -> None:
    """Runs as runs, single blocks one by one; with the largest numbers there are."""
    end = 1 << 32
    blocks = [(n * 7919) % end for n in range(count)]
    segment = JournalSegment.create(layout, NAME, BOOT, packed=True)
    entries: list[Entry] = [
        CellRun(end - count, count, end - count),
        CellBlocks(blocks, end - count),
        ZeroBlocks([5]),
        (Kind.HOLE, 1, end),
        CellRun(9, 1, 0),
    ]
    segment.append(entries)
    assert segment.free == SEGMENT_RECORDS - places(entries)
    segment.close()
    contents = read_segment(layout, NAME)
    assert contents.packed
    assert contents.notes_zeros
    assert contents.places == places(entries)
    assert [change[1:] for change in contents.changes] == [
        (Kind.CELLS, end - count, count, end - count),
        *((Kind.CELLS, block, 1, end - count + n) for n, block in enumerate(blocks)),
        (Kind.ZEROS, 5, 1, -1),
        (Kind.HOLE, 1, end, -1),
        (Kind.CELLS, 9, 1, 0),
    ]
    assert contents.changes[-1].sequence == FIRST + places(entries) - 1


def test_a_raw_head_has_a_segment_that_older_code_reads(layout: Layout, path: Path) -> None:
    assert path.read_bytes()[8:12] == (2).to_bytes(4, "little")
    assert not read_segment(layout, NAME).packed
