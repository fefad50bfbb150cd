"""Reclaim, case by case: what is given back, and what must not be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format import queue
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.leaf import leaf_key
from bockd.drivers.local.maintenance.merging import MAX_DEAD_LAYERS
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, MIB, SnapshotId, VolumeId
from bockd.runtime.steps import Blocking, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.named import snapshot_named
from tests.drivers.local.process import die
from tests.drivers.local.rotting import rot


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def test_a_deleted_snapshot_returns_what_the_volume_has_overwritten(bench: Bench) -> None:
    bench.write(0, b"a", 100)
    snapshot = bench.snapshot("s")
    bench.write(0, b"b", 60)
    assert bench.allocated() == 160 * BLOCK_SIZE
    bench.delete(snapshot)
    bench.reclaim()
    assert bench.allocated() == 100 * BLOCK_SIZE
    assert bench.block(bench.volume, 0) == b"b"
    assert bench.block(bench.volume, 99) == b"a"
    assert bench.maps() == 1


def test_an_ancestor_keeps_what_a_folded_map_had_copied(bench: Bench) -> None:
    """Three maps in a row with a leaf each; folding the middle one must not take the first one's
    blocks, though the middle one refers to them and the last one does not."""
    bench.write(0, b"a", 4)
    first = bench.snapshot("first")
    bench.write(0, b"b")
    middle = bench.snapshot("middle")
    bench.write(1, b"c")
    bench.delete(middle)
    bench.reclaim()
    assert [bench.block(first, n) for n in range(4)] == [b"a"] * 4
    assert [bench.block(bench.volume, n) for n in range(4)] == [b"b", b"c", b"a", b"a"]


def test_a_layer_that_came_home_is_punched_by_later_writes_and_goes_when_empty(
    bench: Bench,
) -> None:
    bench.write(0, b"a", 10)
    bench.delete(bench.snapshot("s"))
    bench.reclaim()
    layers = len(os.listdir(bench.pool.registry.store.layout.layers))
    bench.write(0, b"b", 5)
    bench.reclaim()
    assert bench.allocated() == 10 * BLOCK_SIZE
    bench.write(5, b"b", 5)
    bench.reclaim()
    assert bench.allocated() == 10 * BLOCK_SIZE
    assert len(os.listdir(bench.pool.registry.store.layout.layers)) == layers - 1


def test_a_map_with_two_children_waits_until_one_is_gone(bench: Bench) -> None:
    bench.write(0, b"a", 10)
    snapshot = bench.snapshot("s")
    clone = run_inline(bench.pool.create_volume("c", None, snapshot)).id
    bench.write(0, b"b", 10)
    bench.delete(snapshot)
    with bench.pool.index.reading() as txn:
        assert len([m for m in Catalogue(txn).maps() if m.dead]) == 1
    run_inline(bench.reclaimer.run())
    assert bench.maps() == 3
    run_inline(bench.pool.delete_volume(VolumeId(clone)))
    bench.reclaim()
    assert bench.maps() == 1
    assert bench.allocated() == 10 * BLOCK_SIZE
    assert bench.block(bench.volume, 0) == b"b"


def test_a_deleted_volume_leaves_nothing(bench: Bench) -> None:
    bench.write(0, b"a", 200)
    bench.snapshot("s")
    bench.write(0, b"b", 100)
    run_inline(bench.pool.delete_volume(bench.volume))
    run_inline(bench.reclaimer.run())
    assert bench.allocated() == 200 * BLOCK_SIZE
    run_inline(bench.pool.delete_snapshot(snapshot_named(bench.pool, "s")))
    run_inline(bench.reclaimer.run())
    assert os.listdir(bench.pool.registry.store.layout.layers) == []
    assert bench.maps() == 0


def test_a_read_that_has_begun_gets_its_old_data_before_anything_is_punched(
    bench: Bench,
) -> None:
    bench.write(0, b"a", 4)
    bench.delete(bench.snapshot("s"))
    bench.reclaim()
    device = run_inline(bench.pool.registry.use_volume(bench.volume)).volume
    buffer = bytearray(BLOCK_SIZE)
    reading = device.read(0, memoryview(buffer))
    step = reading.send(None)  # the read knows the old layer now, and has not read yet
    assert isinstance(step, Blocking)
    bench.write(0, b"b")
    # The index does not tell that the old block is unused before the read has ended, for whoever
    # reclaims may be another process and knows nothing of this one's reads.
    checkpointing = device.durability.checkpoint()
    waiting = checkpointing.send(None)
    while isinstance(waiting, Blocking):
        waiting = checkpointing.send(waiting.call())
    assert not waiting.fired
    run_inline(bench.reclaimer.run())
    with pytest.raises(StopIteration):
        reading.send(step.call())
    assert buffer == b"a" * BLOCK_SIZE
    assert waiting.fired
    run_inline(checkpointing)
    with bench.pool.index.reading() as txn:
        assert queue.punches(txn, 1)
    run_inline(bench.reclaimer.run())
    bench.pool.registry.leave_volume(bench.volume)


def test_layers_of_a_rotation_of_snapshots_stay_few(bench: Bench) -> None:
    """A snapshot a day, three kept: without merging every day would leave a layer for ever."""
    expected: dict[int, bytes] = {}
    kept: list[tuple[SnapshotId, dict[int, bytes]]] = []
    reader = None
    for day in range(40):
        value = bytes([day + 1])
        for block in (day, day + 1, (day * 7) % 90, 100 + day):
            bench.write(block, value)
            expected[block] = value
        kept.append((bench.snapshot(f"day {day}"), dict(expected)))
        if day == 20:  # a device that stays open through all the merging
            reader = run_inline(bench.pool.registry.use_volume(bench.volume)).volume
        if len(kept) > 3:
            bench.delete(kept.pop(0)[0])
            bench.reclaim()
        files = len(os.listdir(bench.pool.registry.store.layout.layers))
        assert files <= MAX_DEAD_LAYERS + len(kept) + 2
        for snapshot, content in kept:
            for block in (0, day, 100 + day // 2):
                assert bench.block(snapshot, block) == content.get(block, b"\0")
    assert reader is not None
    for block, value in expected.items():
        assert bench.block(bench.volume, block) == value
    bench.pool.registry.leave_volume(bench.volume)
    for snapshot, content in kept:
        for block, value in content.items():
            assert bench.block(snapshot, block) == value


def test_a_deleted_snapshot_goes_whatever_has_become_of_its_map(bench: Bench) -> None:
    bench.write(0, b"a", 100)
    origin = bench.snapshot("origin")
    run_inline(bench.pool.create_volume("clone", 2 * MIB, origin))
    clone = VolumeId(run_inline(bench.pool.create_volume("other", 2 * MIB, origin)).id)
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    run_inline(device.write(0, memoryview(b"c" * BLOCK_SIZE)))
    bench.pool.registry.leave_volume(clone)
    run_inline(bench.pool.registry.close_idle_volume(clone))
    run_inline(bench.pool.delete_volume(clone))
    with bench.pool.index.reading() as txn:
        [dead] = queue.dead_maps(txn)
    rot(bench, leaf_key(dead, 0))

    bench.reclaim()

    assert bench.maps() == 3


def test_a_map_that_cannot_be_read_keeps_no_other_one(bench: Bench) -> None:
    """It is folded later, if the index is mended; who asks is told."""
    bench.write(0, b"a", 10)
    first = bench.snapshot("first")
    bench.write(300, b"b", 10)
    bench.delete(first)
    with bench.pool.index.reading() as txn:
        [dead] = queue.dead_maps(txn)
    other = VolumeId(run_inline(bench.pool.create_volume("other", 2 * MIB)).id)
    run_inline(bench.pool.delete_volume(other))
    rot(bench, leaf_key(dead, 0))

    run_inline(bench.reclaimer.run())

    with bench.pool.index.reading() as txn:
        assert queue.dead_maps(txn) == [dead]
    assert isinstance(bench.reclaimer.put_off, DamagedError)
