"""Zeros that keep their space: allocated in the head without a write, where the file system can."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import layer as layer_module
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import room, volume
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import NoSpaceError
from bockd.model import BLOCK_SIZE, KIB, MIB, TIB, LayerId
from bockd.pool.reports import CheckReport
from bockd.runtime.steps import Background, Blocking, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.named import snapshot_named
from tests.drivers.local.process import die

BLOCKS = SIZE // BLOCK_SIZE


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def zero(bench: Bench, first: int = 0, count: int = BLOCKS) -> None:
    device = bench.device()
    run_inline(device.zero(first * BLOCK_SIZE, count * BLOCK_SIZE, allocate=True))


def check(bench: Bench) -> CheckReport:
    """What a check of the closed pool says."""
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    return check_open_pool(bench.pool.registry.store, live=frozenset(), repair=False)


def cannot(*_: Any) -> None:
    raise NotImplementedError


@pytest.mark.parametrize("in_place", [False, True])
def test_allocated_zeros_take_space_and_are_not_written(bench: Bench, in_place: bool) -> None:
    if in_place:
        bench.write(0, b"a", BLOCKS)
    zero(bench)
    assert bench.block(bench.volume, 0) == bench.block(bench.volume, BLOCKS - 1) == b"\0"
    assert bench.allocated() >= SIZE
    evicted = bench.device()._flusher.head
    evicted.sync()
    evicted.evict(0)
    assert list(evicted.data_ranges(0, SIZE)) == []


def test_a_trim_of_allocated_zeros_gives_their_space_back(bench: Bench) -> None:
    """SEEK_DATA calls them a hole."""
    zero(bench)
    head = bench.device()._flusher.head
    head.sync()
    head.evict(0)
    before = bench.allocated()
    assert before >= SIZE
    run_inline(bench.device().trim(0, SIZE))
    run_inline(bench.device().heads.finish_punching())
    assert bench.allocated() <= before - SIZE


def test_allocated_zeros_are_neither_strays_nor_hollow(bench: Bench) -> None:
    bench.write(3, b"a")
    zero(bench)
    bench.write(5, b"b")
    report = check(bench)
    assert report.clean, report.problems
    assert (report.stray_blocks, report.hollow_blocks) == (0, 0)


def test_zeros_that_were_allocated_and_never_redirected_to_are_strays(bench: Bench) -> None:
    """As a death leaves them before the journal knows."""
    bench.write(3, b"a")
    head = bench.device()._flusher.head
    head.zero(8 * BLOCK_SIZE, 20 * BLOCK_SIZE)
    assert check(bench).stray_blocks == 12
    check_open_pool(bench.pool.registry.store, live=frozenset(), repair=True)
    assert check(bench).stray_blocks == 0
    assert bench.block(bench.volume, 3) == b"a"


def test_a_range_that_begins_and_ends_within_blocks_keeps_its_edges(bench: Bench) -> None:
    bench.write(0, b"a", BLOCKS)
    bench.snapshot("s")
    device = bench.device()
    run_inline(device.zero(100, SIZE - 200, allocate=True))
    found = bytearray(SIZE)
    run_inline(device.read(0, memoryview(found)))
    assert found == b"a" * 100 + bytes(SIZE - 200) + b"a" * 100


def test_few_zeros_are_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "zero", cannot)
    zero(bench, 0, volume.MIN_ALLOCATED_BYTES // BLOCK_SIZE - 1)
    assert bench.block(bench.volume, 0) == b"\0"


@pytest.mark.parametrize("flushed", [False, True])
def test_zeros_that_were_acknowledged_survive_a_death(
    bench: Bench, tmp_path: Path, flushed: bool
) -> None:
    """Also in a copy that has no memory of the head: the journal has foretold the zeros."""
    bench.write(0, b"a", BLOCKS // 2)
    bench.snapshot("s")
    bench.write(0, b"b", BLOCKS // 4)
    if flushed:
        run_inline(bench.device().flush())
    zero(bench)
    bench.write(7, b"c")
    die(bench.pool)
    subprocess.run(["cp", "-r", tmp_path, f"{tmp_path}.copy"], check=True)
    bench.background = Background()
    bench.pool = LocalPool.open(Path(f"{tmp_path}.copy"), bench.background.spawn)
    assert [bench.block(bench.volume, n) for n in (0, 7, BLOCKS - 1)] == [b"\0", b"c", b"\0"]
    snapshot = snapshot_named(bench.pool, "s")
    assert bench.block(snapshot, 0) == b"a"


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk_fails_the_zeros_and_gives_back_what_they_took(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    bench.write(0, b"a", BLOCKS if in_place else 4)
    if not in_place:
        bench.snapshot("s")
        bench.write(9, b"b")
    before = bench.allocated()
    real = Layer.zero

    def half(self: Layer, offset: int, end: int) -> int:
        real(self, offset, (offset + end) // 2)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr(Layer, "zero", half)
        with pytest.raises(NoSpaceError):
            zero(bench)
    bench.background.run()
    if not in_place:
        assert bench.block(bench.volume, 0) == b"a"
        # What the head has may be zeros: in a raw one so much of it was done.
        assert bench.block(bench.volume, 9) in (b"\0", b"b")
    assert bench.allocated() <= before
    zero(bench)
    assert bench.block(bench.volume, 0) == b"\0"
    assert check(bench).stray_blocks == 0


def test_zeros_are_written_where_the_file_system_cannot_allocate_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"a", BLOCKS)
    bench.snapshot("s")
    monkeypatch.setattr(layer_module, "zero_range", cannot)
    zero(bench)
    head = bench.device()._flusher.head
    assert list(head.data_ranges(0, SIZE)) == [(0, SIZE)]
    assert bench.block(bench.volume, 100) == b"\0"


def test_pieces_that_take_too_long_end_early(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is redirected that has not been zeroed, and in the end all of it is."""
    bench.write(0, b"a", BLOCKS)
    bench.snapshot("s")
    monkeypatch.setattr(layer_module, "ZERO_PIECE_BYTES", 64 * KIB)
    monkeypatch.setattr(layer_module, "ZERO_SECONDS", 0.0)
    zero(bench)
    assert bench.allocated() >= 2 * SIZE
    found = bytearray(SIZE)
    run_inline(bench.device().read(0, memoryview(found)))
    assert found == bytes(SIZE)
    assert check(bench).clean


def test_zeros_that_a_running_sync_does_not_cover_are_synced_by_the_next(bench: Bench) -> None:
    bench.write(0, b"a", BLOCKS)
    device = bench.device()
    zeroing = device.zero(0, SIZE, allocate=True)
    step = zeroing.send(None)
    assert isinstance(step, Blocking)
    run_inline(device.flush())  # begins and ends before the zeros are there
    assert not device._flusher.unsynced
    zeroed = step.call()
    with pytest.raises(StopIteration):
        zeroing.send(zeroed)
    assert device._flusher.unsynced


def test_an_operation_is_let_in_only_with_room_for_what_others_were_promised(
    bench: Bench,
) -> None:
    bench.write(0, b"a")
    device: Volume = bench.device()
    assert device._room.has_room()
    needed = room.RESERVED_RECORDS + room.RECORDS_PER_OPERATION + room.ALLOWANCE_BLOCKS
    free = device._tail.free()
    assert device._room.has_room(free - needed)
    assert not device._room.has_room(free - needed + 1)
    device._room.promised = free - needed + 1
    assert not device._room.has_room()


@pytest.fixture(params=["here", "tmpfs"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layout]:
    """On the file system of the tests, and on one that cannot zero a range."""
    root = tmp_path if request.param == "here" else Path(f"/dev/shm/{tmp_path.name}-{os.getpid()}")
    layout = Layout(root)
    os.makedirs(layout.layers)
    yield layout
    for path in layout.layers.iterdir():
        path.unlink()
    layout.layers.rmdir()
    root.rmdir()


def test_a_layer_is_zeroed_across_its_segments(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_module, "SEGMENT_BYTES", 40 * MIB)
    create_layer(layout, LayerId(5), 64 * MIB)
    layer = Layer.open(layout, LayerId(5), 64 * MIB, writable=True)
    start, end = 10 * MIB, 50 * MIB
    layer.write(start - BLOCK_SIZE, memoryview(b"a" * (30 * MIB)))
    layer.write(end, memoryview(b"b" * BLOCK_SIZE))
    at = start
    while at < end:
        reached = layer.zero(at, end)
        assert at < reached <= end
        at = reached
    found = bytearray(end - start + 2 * BLOCK_SIZE)
    layer.read(start - BLOCK_SIZE, memoryview(found))
    assert found == b"a" * BLOCK_SIZE + bytes(end - start) + b"b" * BLOCK_SIZE
    assert layer.allocated_bytes() >= end - start
    layer.close()


def test_unwritten_ranges_are_what_was_zeroed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    os.makedirs(layout.layers)
    create_layer(layout, LayerId(5), 9 * TIB)
    layer = Layer.open(layout, LayerId(5), 9 * TIB, writable=True)
    assert list(layer.unwritten_ranges()) == []
    for at in range(1000):  # more extents than are asked for at once
        layer.zero(2 * at * MIB, 2 * at * MIB + BLOCK_SIZE)
    layer.zero(8 * TIB, 8 * TIB + BLOCK_SIZE)
    layer.write(MIB, memoryview(b"a" * BLOCK_SIZE))
    assert list(layer.unwritten_ranges()) == [
        *((2 * at * MIB, 2 * at * MIB + BLOCK_SIZE) for at in range(1000)),
        (8 * TIB, 8 * TIB + BLOCK_SIZE),
    ]
    layer.close()
