"""Holes of whole groups of leaves: made without a look at what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format import journal
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.volume import leafcache, room
from bockd.drivers.local.volume.volume import HOLE_PIECE_BLOCKS
from bockd.model import BLOCK_SIZE, GIB, MIB, VolumeId
from bockd.runtime.steps import Blocking, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench, resume, stepwise
from tests.drivers.local.groups import ZERO, cold, records, reopened, stored, trim, two_groups
from tests.drivers.local.process import die


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield from two_groups(tmp_path, monkeypatch)


def test_whole_groups_are_trimmed_without_being_read(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    trim(device, 0, MIB)

    assert not device.map.leaves
    into = memoryview(bytearray(b"x" * BLOCK_SIZE))
    assert device.try_read(0, into)
    assert not any(into)
    assert not device.try_read(MIB, into)
    assert set(stored(bench)) == {0, 1}
    run_inline(device.durability.checkpoint())
    assert set(stored(bench)) == {1}
    assert bench.block(bench.volume, 255) == ZERO
    assert bench.block(bench.volume, 256) == b"A"


def test_a_group_that_is_not_covered_has_to_be_read(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    assert not device.try_trim(0, MIB + BLOCK_SIZE)

    assert not device.map.unstored()
    run_inline(device.trim(0, MIB + BLOCK_SIZE))
    assert set(device.map.leaves) == {1}
    assert [bench.block(bench.volume, b) for b in (0, 255, 256, 257)] == [ZERO, ZERO, ZERO, b"A"]


def test_the_last_group_of_a_volume_may_be_short(bench: Bench) -> None:
    run_inline(bench.pool.extend_volume(bench.volume, SIZE + 3 * BLOCK_SIZE))
    bench.write(2 * LEAF_BLOCKS, b"A", 3)
    device = cold(bench)

    trim(device, SIZE, 3 * BLOCK_SIZE)

    run_inline(device.durability.checkpoint())
    assert not stored(bench)
    assert bench.block(bench.volume, 2 * LEAF_BLOCKS + 2) == ZERO


def test_an_acknowledged_trim_of_groups_survives_a_death(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    bench.write(7, b"B")

    reopened(bench)

    assert [bench.block(bench.volume, b) for b in (6, 7, 8, 256)] == [ZERO, b"B", ZERO, b"A"]
    assert set(stored(bench)) == {0, 1}
    bench.reclaim()


def test_a_holed_group_is_not_evicted_before_the_index_has_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    bench.write(3, b"B")
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
    device.map.mark_clean(0)  # evicts what it can

    assert bench.block(bench.volume, 256) == b"A"
    assert [bench.block(bench.volume, b) for b in (2, 3, 4)] == [ZERO, b"B", ZERO]

    run_inline(device.durability.checkpoint())
    assert not device.map.unstored()
    assert device.map.find(0) is None
    assert [bench.block(bench.volume, b) for b in (2, 3, 4)] == [ZERO, b"B", ZERO]


def test_a_load_under_way_does_not_bring_back_what_was_trimmed(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    reading = device.read(0, memoryview(bytearray(BLOCK_SIZE)))
    step = reading.send(None)
    assert isinstance(step, Blocking)
    loaded = step.call()

    trim(device, 0, MIB)
    resume(reading, loaded)

    assert set(device.map.leaves) == {1}
    assert bench.block(bench.volume, 0) == ZERO


def test_a_trim_during_a_checkpoint_is_not_taken_for_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    apply = device.durability._indexed.apply

    async def apply_late(segments: list[journal.JournalSegment]) -> None:
        trim(device, 0, MIB)
        await apply(segments)

    monkeypatch.setattr(device.durability._indexed, "apply", apply_late)
    run_inline(device.durability.checkpoint())

    assert set(stored(bench)) == {0, 1}
    assert device.map.unstored() == 1
    assert bench.block(bench.volume, 0) == ZERO
    reopened(bench)
    assert bench.block(bench.volume, 0) == ZERO


def test_what_was_a_hole_already_costs_no_record(bench: Bench) -> None:
    bench.write(300, b"A")
    device = bench.device()
    trim(device, 0, SIZE)
    before = records(device)

    trim(device, 0, SIZE)
    trim(device, MIB, 5 * BLOCK_SIZE)
    run_inline(device.durability.checkpoint())
    trim(device, 0, SIZE)

    assert before
    assert records(device) == 0
    assert device.durability.tail.untouched


def test_trims_one_behind_the_other_are_one_record(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    before = records(device)

    assert all(device.try_trim(offset, 64 * 1024) for offset in range(0, SIZE, 64 * 1024))
    device.commit()

    assert records(device) == before + 1
    reopened(bench)
    assert {bench.block(bench.volume, b) for b in range(0, 2 * LEAF_BLOCKS, 8)} == {ZERO}


def test_a_trimmed_clone_shows_nothing_of_its_origin(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    snapshot = bench.snapshot("s")
    clone = VolumeId(run_inline(bench.pool.create_volume("c", SIZE, snapshot)).id)
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    run_inline(device.durability.begin(reserve=False))

    trim(device, 0, MIB)
    run_inline(device.write(5 * BLOCK_SIZE, memoryview(b"C" * BLOCK_SIZE)))
    run_inline(device.durability.checkpoint())
    bench.pool.registry.leave_volume(clone)
    run_inline(bench.pool.registry.close_idle_volume(clone))

    assert set(stored(bench, clone)) == {0}
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    content = bytearray(SIZE)
    run_inline(device.read(0, memoryview(content)))
    assert not any(content[: 5 * BLOCK_SIZE])
    assert content[5 * BLOCK_SIZE : 6 * BLOCK_SIZE] == b"C" * BLOCK_SIZE
    assert not any(content[6 * BLOCK_SIZE : MIB])
    assert content[MIB:] == b"A" * MIB
    assert bench.block(snapshot, 0) == b"A"


def test_blocks_of_layers_at_home_are_reclaimed(bench: Bench) -> None:
    """A layer of a deleted snapshot is at home in the volume's map."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    snapshot = bench.snapshot("s")
    bench.write(1, b"B")
    bench.delete(snapshot)
    bench.reclaim()
    before = bench.allocated()
    device = cold(bench)

    trim(device, 0, MIB)
    bench.write(2, b"C")
    bench.reclaim()

    assert bench.allocated() < before - MIB // 2
    assert [bench.block(bench.volume, b) for b in (0, 1, 2, 256)] == [ZERO, ZERO, b"C", b"A"]


def test_many_holed_groups_ask_for_a_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And wait for it, when there are too many."""
    monkeypatch.setattr(room, "CHECKPOINT_DIRTY_LEAVES", 0)
    monkeypatch.setattr(room, "MAX_DIRTY_LEAVES", 2)
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    trim(device, 0, MIB)
    trim(device, MIB, MIB)
    assert not device.try_trim(0, MIB)
    bench.background.run()

    assert not device.map.unstored()
    assert not stored(bench)
    assert device.try_trim(0, MIB)


def test_a_trim_waits_for_whoever_holds_its_blocks(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    held = run_inline(device.locks.acquire(200, 300))
    assert not device.try_trim(0, MIB)
    device.locks.release(held)
    run_inline(device.gate.quiesce())
    assert not device.try_trim(0, MIB)
    device.gate.open()
    assert device.try_trim(0, MIB)


def test_a_large_volume_is_trimmed_piece_by_piece(tmp_path: Path) -> None:
    """With groups as they are: each piece is a step, so that others have their turn."""
    bench = Bench(tmp_path)
    size = 3 * HOLE_PIECE_BLOCKS * BLOCK_SIZE
    run_inline(bench.pool.extend_volume(bench.volume, size + 4 * MIB))
    device = bench.device()
    for place in (0, GIB, size - MIB, size + MIB):
        run_inline(device.write(place, memoryview(b"D" * BLOCK_SIZE)))

    assert not device.try_trim(0, size)
    steps = list(stepwise(device.trim(0, size)))

    assert len([step for step in steps if isinstance(step, Blocking)]) == 2
    assert device.map.unstored() <= 3 * 64 + 1
    bench.background.run()
    assert bench.allocated() < MIB
    reopened(bench)
    found = bytearray(BLOCK_SIZE)
    device = bench.device()
    for place, byte in ((0, 0), (GIB, 0), (size - MIB, 0), (size + MIB, ord("D"))):
        run_inline(device.read(place, memoryview(found)))
        assert set(found) == {byte}
    bench.reclaim()
    die(bench.pool)


def test_a_repaired_block_does_not_bring_back_what_was_trimmed(bench: Bench) -> None:
    """The fast lane has a leaf of its own in a holed group, which nothing has changed so far."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    assert device.map.own(0) is not None

    device.map.clear_damaged(5)

    assert bench.block(bench.volume, 5) == ZERO
