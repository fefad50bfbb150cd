"""What dropping an epoch from the map costs, in steps that are counted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bockd.drivers.writeback.dirtymap import REGION_SHIFT
from bockd.drivers.writeback.dirtyrecords import DirtyRecords
from bockd.drivers.writeback.records import Kind, Record
from bockd.model import BLOCK_SIZE

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
        records.settle(records.epochs[0])
        assert Counted.compared <= most
        assert records.map.count == left


@pytest.mark.parametrize("largest", [1, 30, 200])
def test_what_is_dirty_after_a_drop_is_what_was_written_later(largest: int) -> None:
    """Ranges of all sizes are overwritten in part; what is left is compared with a list of which
    record each block has."""
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
            records.settle(records.epochs[0])
            content = [one if one > below else 0 for one in content]
        found = [0] * blocks
        count = 0
        for start, end, record in records.map.pieces():
            count += 1
            for block in range((start - base) // BLOCK_SIZE, (end - base) // BLOCK_SIZE):
                found[block] = record.sequence
        assert found == content
        assert records.map.count == count
