"""What is dirty laid over what is below: the right answer, and no more work than it needs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import overlay
from bockd.drivers.writeback.dirtymap import DirtyMap, Piece
from bockd.drivers.writeback.overlay import LONGEST_BYTES, MOST_PIECES, merged, runs_of
from bockd.drivers.writeback.records import Kind, Record
from bockd.model import BLOCK_SIZE, GIB, Extent
from bockd.runtime.steps import Signal

from .opened import Opened

T = TypeVar("T")

nowhere: Any = None
"""The segment: nothing is read."""


class Counted:
    """Counts what is taken from something."""

    def __init__(self) -> None:
        self.taken = 0

    def all_of(self, some: Iterable[T]) -> Iterator[T]:
        for one in some:
            self.taken += 1
            yield one


def asked(
    dirty: DirtyMap, below: list[Extent], offset: int, end: int, limit: int
) -> tuple[list[Extent], int]:
    """Return the extents of a range of a device, and how many dirty pieces were passed for them."""
    counted = Counted()
    there = [
        Extent(start, stop - start, one.hole)
        for one in below
        if (start := max(one.offset_bytes, offset))
        < (stop := min(one.offset_bytes + one.length_bytes, end))
    ][:limit]
    over = runs_of(counted.all_of(dirty.overlapping(offset, end)), offset)
    return merged(over, there, limit), counted.taken


def holes_of(pieces: Iterable[Piece], below: list[Extent], unit: int, count: int) -> list[bool]:
    """Return of each unit whether it is a hole, found in the slowest way."""
    data, covered = set[int](), set[int]()
    for start, end, record in pieces:
        if record.kind is Kind.TRIM:
            covered.update(range(-(-start // BLOCK_SIZE), end // BLOCK_SIZE))
        else:
            data.update(range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE)))
    holes = []
    for nth in range(count):
        at = nth * unit
        block = at // BLOCK_SIZE
        under = next(one for one in below if at < one.offset_bytes + one.length_bytes)
        holes.append(block not in data and (block in covered or under.hole))
    return holes


@pytest.mark.parametrize("seed", range(12))
def test_extents_are_those_of_each_block(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks again where an answer has ended is told of all of the range, whatever the limits
    are; and the range begins and ends within blocks."""
    chance = random.Random(seed)
    monkeypatch.setattr(overlay, "MOST_PIECES", chance.choice((1, 3, 500)))
    blocks, unit = 60, 512
    size = blocks * BLOCK_SIZE
    dirty = DirtyMap()
    for sequence in range(1, chance.choice((3, 30, 120))):
        kind = chance.choice((Kind.TRIM, Kind.WRITE))
        grain = chance.choice((unit, BLOCK_SIZE))
        start = chance.randrange(0, size, grain)
        length = min(chance.randrange(1, 9) * grain, size - start)
        dirty.put(Record(kind, sequence, start, length, nowhere, 0))
    edges = sorted({0, size, *(chance.randrange(1, blocks) * BLOCK_SIZE for _ in range(8))})
    below = [Extent(a, b - a, hole=bool(nth % 2)) for nth, (a, b) in enumerate(pairwise(edges))]
    expected = holes_of(dirty.overlapping(0, size), below, unit, size // unit)
    for limit in (1, 2, 5, 1000):
        at, end = sorted(chance.sample(range(0, size + 1, unit), 2))
        while at < end:
            found, _ = asked(dirty, below, at, end, limit)
            assert 0 < len(found) <= limit
            for one, following in pairwise(found):
                assert one.hole != following.hole
            for one in found:
                assert one.offset_bytes == at
                assert one.length_bytes > 0
                at += one.length_bytes
                for place in range(one.offset_bytes, at, unit):
                    assert expected[place // unit] == one.hole
        assert at == end


def scattered(count: int, step: int = 2 * BLOCK_SIZE) -> DirtyMap:
    """Have so many ranges of a sector dirty, each in a block of its own."""
    dirty = DirtyMap()
    for nth in range(count):
        dirty.put(Record(Kind.WRITE, nth + 1, nth * step, 512, nowhere, 0))
    return dirty


def test_an_answer_costs_what_it_tells_and_what_it_passes() -> None:
    """Not what is dirty in the range, nor that times what is below: one answer held all clients
    of a daemon for the better part of a minute."""
    dirty, size = scattered(5000), 4 * GIB
    hole, data = [Extent(0, size, hole=True)], [Extent(0, size, hole=False)]
    for limit in (1, 2, 10, 100):
        found, passed = asked(dirty, hole, 0, size, limit)
        assert len(found) == limit
        assert passed <= limit // 2 + 2
    for limit in (1, 4096):
        found, passed = asked(dirty, data, 0, size, limit)
        assert len(found) == 1
        assert passed == MOST_PIECES + 1
    found, passed = asked(dirty, hole, 0, size, 4096)
    assert len(found) == 2 * MOST_PIECES
    assert passed == MOST_PIECES + 1


def test_each_extent_below_is_looked_at_as_the_walk_passes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, step = 2000, 2 * BLOCK_SIZE
    below = [Extent(nth * step, step, hole=bool(nth % 2)) for nth in range(count)]
    over = runs_of(scattered(MOST_PIECES, 2 * step).overlapping(0, count * step), 0)
    looks, end = list[Extent](), overlay._end

    def counting(extent: Extent) -> int:
        looks.append(extent)
        return end(extent)

    monkeypatch.setattr(overlay, "_end", counting)
    assert len(merged(over, below, 4096)) > MOST_PIECES
    assert len(looks) <= 4 * (count + MOST_PIECES)


@pytest.mark.parametrize("mixed", [True, False])
def test_an_answer_goes_on_by_a_block_at_least(mixed: bool) -> None:
    """Whoever asks again comes to an end, also where a block is full of pieces."""
    dirty = DirtyMap()
    for nth in range(BLOCK_SIZE):
        kind = Kind.WRITE if mixed and nth % 2 else Kind.ZERO
        dirty.put(Record(kind, nth + 1, BLOCK_SIZE + nth, 1, nowhere, 0))
    below = [Extent(BLOCK_SIZE, 3 * BLOCK_SIZE, hole=mixed)]
    found, passed = asked(dirty, below, BLOCK_SIZE, 4 * BLOCK_SIZE, 9)
    if mixed:
        assert found == [Extent(BLOCK_SIZE, BLOCK_SIZE, hole=False)]
        assert passed == MOST_PIECES + 1
    else:
        assert found == below
        assert passed == BLOCK_SIZE


def test_a_device_passes_what_its_answers_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the one below must be waited for, and in a range of any length."""
    size, count = 2 * LONGEST_BYTES, 1200
    below = MemoryDevice(size)
    opened = Opened(tmp_path / "logs", below)
    below.gate = Signal()
    opened.write(0, b"1" * BLOCK_SIZE)
    for nth in range(count):
        opened.run(opened.device.zero(nth * 2 * BLOCK_SIZE, BLOCK_SIZE, allocate=True))
    assert opened.device.way.log is not None
    assert opened.device.way.log.dirty.count >= count
    counted, overlapping = Counted(), DirtyMap.overlapping

    def counting(self: DirtyMap, start: int, end: int) -> Iterator[Piece]:
        assert end - start <= LONGEST_BYTES
        return counted.all_of(overlapping(self, start, end))

    monkeypatch.setattr(DirtyMap, "overlapping", counting)
    monkeypatch.setattr(below, "_extents", lambda at, length, _: [Extent(at, length, hole=True)])
    for limit, most in ((1, 2), (10, 7), (4096, MOST_PIECES + 1)):
        counted.taken = 0
        found = opened.device.try_extents(0, size, limit)
        assert found is not None
        assert counted.taken <= most
        assert found[0] == Extent(0, BLOCK_SIZE, hole=False)
    below.immediate, below.gate = False, None
    counted.taken = 0
    assert opened.run(opened.device.extents(0, size, 4096)) == found
    assert counted.taken <= MOST_PIECES + 1
    opened.dispose()
