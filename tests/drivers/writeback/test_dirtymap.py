"""What dropping an epoch from the map costs, in steps that are counted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import dirtyrecords
from bockd.drivers.writeback.dirtymap import REGION_SHIFT, SLICE
from bockd.drivers.writeback.dirtyrecords import DirtyRecords
from bockd.drivers.writeback.epochs import MOST_PIECES, Epoch, jobs_of
from bockd.drivers.writeback.log import Log
from bockd.drivers.writeback.records import Kind, Record
from bockd.model import BLOCK_SIZE, MIB

from .opened import Opened

RANGES = 4096
"""Blocks of one region."""


nowhere: Any = None
"""The segment: nothing is read."""


class Counted(int):
    """A sequence or an offset that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int.__lt__(self, other)

    def __gt__(self, other: int) -> bool:
        Counted.compared += 1
        return int.__gt__(self, other)


def filled(writes_per_epoch: int) -> DirtyRecords:
    """Have so many blocks dirty, in random order."""
    records, sequence = DirtyRecords(), 0
    places = list(range(RANGES))
    random.Random(1).shuffle(places)
    for nth, place in enumerate(places, 1):
        sequence += 1
        offset = Counted(place * BLOCK_SIZE)
        record = Record(Kind.WRITE, Counted(sequence), offset, BLOCK_SIZE, nowhere, 0)
        records.enter(record, 64 + BLOCK_SIZE, 0.0)
        if nth % writes_per_epoch == 0:
            sequence += 1
            records.close_epoch(sequence)
    return records


def settle(records: DirtyRecords) -> None:
    """Drop the oldest epoch, all of it."""
    while not records.settle(records.epochs[0]):
        assert records.epochs[0].map.count


@pytest.mark.parametrize(
    ("writes_per_epoch", "most"), [(1, 80), (64, 64 * 80), (RANGES, 2 * RANGES)]
)
def test_dropping_an_epoch_costs_what_it_has_not_what_there_is(
    writes_per_epoch: int, most: int
) -> None:
    """Each of small epochs is looked for by itself; a large one is dropped in one pass, for to look
    for each range of it would take a dozen steps."""
    records = filled(writes_per_epoch)
    for left in range(RANGES - writes_per_epoch, max(-1, RANGES - 20 * writes_per_epoch), -1):
        if left % writes_per_epoch:
            continue
        Counted.compared = 0
        settle(records)
        assert Counted.compared <= most
        assert records.map.count == left


@pytest.mark.parametrize("slice_of", [1, 7, SLICE])
@pytest.mark.parametrize("largest", [1, 30, 200])
def test_what_is_dirty_after_a_drop_is_what_was_written_later(
    largest: int, slice_of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges of all sizes are overwritten in part; what is left is compared with a list of which
    record each block has."""
    monkeypatch.setattr(dirtyrecords, "SLICE", slice_of)
    blocks, chance = 400, random.Random(largest)
    base = (1 << REGION_SHIFT) - blocks // 2 * BLOCK_SIZE
    records, content = DirtyRecords(), [0] * blocks
    sequence = 0
    for _ in range(60):
        for _ in range(chance.choice((1, 1, 1, 50))):
            sequence += 1
            first = chance.randrange(blocks)
            count = min(chance.randint(1, largest), blocks - first)
            content[first : first + count] = [sequence] * count
            place, length = base + first * BLOCK_SIZE, count * BLOCK_SIZE
            records.enter(Record(Kind.ZERO, sequence, place, length, nowhere, 0), 64, 0.0)
        sequence += 1
        records.close_epoch(sequence)
        if len(records.epochs) > chance.choice((3, 12)):
            below = records.epochs[0].barrier
            settle(records)
            content = [one if one > below else 0 for one in content]
        found = [0] * blocks
        count = 0
        for start, end, record in records.map.pieces():
            count += 1
            for block in range((start - base) // BLOCK_SIZE, (end - base) // BLOCK_SIZE):
                found[block] = record.sequence
        assert found == content
        assert records.map.count == count
    assert (
        records.pieces == sum(one.map.count for one in records.epochs) + records.current.map.count
    )


def test_an_epoch_is_dropped_in_slices() -> None:
    """Of 100,000 ranges at once, everybody waited for 50 ms."""
    records, times = filled(RANGES), 0
    epoch, dirty = records.epochs[0], records.bytes
    while True:
        Counted.compared, before, pieces = 0, epoch.map.count, records.pieces
        settled = records.settle(epoch)
        times += 1
        assert before - epoch.map.count == pieces - records.pieces <= SLICE
        assert Counted.compared <= 3 * SLICE
        if settled:
            break
        assert records.epochs[0] is epoch
        assert records.bytes == dirty
    assert times == RANGES // SLICE
    assert (records.bytes, records.pieces, records.map.count, len(records.epochs)) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [Kind.TRIM, Kind.WRITE])
def test_a_request_is_made_of_so_many_pieces_at_most(kind: Kind) -> None:
    """100,000 trims one behind the other were looked through at once, for 160 ms."""
    epoch, length = Epoch(), BLOCK_SIZE if kind is Kind.TRIM else 64
    count = 3 * MOST_PIECES + 7
    for nth in range(count):
        epoch.add(Record(kind, nth + 1, nth * length, length, nowhere, 0), 64, 0.0)
    jobs = list(jobs_of(epoch))
    assert [job.length // length for job in jobs] == [MOST_PIECES] * 3 + [7]
    assert [job.offset // length for job in jobs] == [nth * MOST_PIECES for nth in range(4)]
    assert {job.kind for job in jobs} == {kind}


def test_clients_go_on_between_two_slices_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they write in between is of another epoch, and stays; and the log may be closed."""
    monkeypatch.setattr(dirtyrecords, "SLICE", 1)
    below = MemoryDevice(MIB)
    opened = Opened(tmp_path / "logs", below)
    settle_some, calls = Log.settle, list[bool]()

    def between(self: Log, epoch: Epoch) -> bool:
        settled = settle_some(self, epoch)
        calls.append(settled)
        place = len(calls) * BLOCK_SIZE
        assert opened.device.try_write(place, memoryview(b"2" * BLOCK_SIZE))
        if len(calls) == 3:
            monkeypatch.setattr(Log, "settle", settle_some)
            opened.scheduler.start(opened.device.close(), lambda: None)
        return settled

    for nth in range(5):
        opened.write(2 * nth * BLOCK_SIZE, b"1" * BLOCK_SIZE)
    monkeypatch.setattr(Log, "settle", between)
    opened.begin(opened.device.flush())
    assert calls == [False] * 3
    opened.open()
    expected = [b"1", b"2", b"2", b"2", b"1", b"\0", b"1", b"\0", b"1"]
    assert opened.read(0, 9 * BLOCK_SIZE) == b"".join(one * BLOCK_SIZE for one in expected)
    opened.flush()
    opened.dispose()
