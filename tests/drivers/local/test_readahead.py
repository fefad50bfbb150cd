"""Reading ahead of sequential readers, and of nobody else."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format import prefetch
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume import reading
from bockd.drivers.local.volume.readahead import (
    MAX_CANDIDATES,
    MAX_SPAN_BYTES,
    MAX_STREAMS,
    ReadAhead,
    extents_of,
)
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.runtime.steps import Blocking, run_inline
from tests import pagecache
from tests.drivers.local.bench_pool import SIZE, Bench, stepwise

STEP = 64 * KIB


def test_a_span_is_as_long_as_what_was_read_and_each_twice_the_last() -> None:
    """Up to the longest. Each is asked for when the reader is in the middle of the last."""
    ahead = ReadAhead()
    assert ahead.missed(0, STEP) is None
    assert ahead.missed(STEP, 2 * STEP) == (2 * STEP, 4 * STEP)
    front, span, read = 4 * STEP, 2 * STEP, 2 * STEP
    while span < MAX_SPAN_BYTES:
        [mark] = ahead.marks
        assert mark == front - span // 2
        while not read <= mark < read + STEP:
            assert ahead.touched(read, read + STEP) is None
            read += STEP
        span *= 2
        assert ahead.touched(read, read + STEP) == (front, front + span)
        front += span
    assert span == MAX_SPAN_BYTES
    [mark] = ahead.marks
    assert ahead.touched(mark, mark + STEP) == (front, front + MAX_SPAN_BYTES)


def test_a_reader_that_is_faster_than_the_disk_is_one_stream() -> None:
    """It misses what is being read. That is no second stream, and past the mark it is the next
    span's turn."""
    ahead = ReadAhead()
    ahead.missed(0, MIB)
    assert ahead.missed(MIB, 2 * MIB) == (2 * MIB, 4 * MIB)
    assert ahead.missed(2 * MIB, 2 * MIB + STEP) is None
    assert ahead.missed(2 * MIB + STEP, 2 * MIB + 2 * STEP) is None
    assert ahead.missed(3 * MIB, 3 * MIB + STEP) == (4 * MIB, 8 * MIB)
    assert ahead.missed(3 * MIB + STEP, 3 * MIB + 2 * STEP) is None
    assert len(ahead.marks) == 1
    # It has overtaken its span: what it reads now is not asked for once more.
    assert ahead.missed(8 * MIB, 8 * MIB + STEP) == (8 * MIB + STEP, 16 * MIB + STEP)


def test_random_reads_have_nothing_read_ahead() -> None:
    ahead, places = ReadAhead(), list(range(0, 20_000, 2))
    random.Random(1).shuffle(places)
    for place in places:
        assert ahead.missed(place * BLOCK_SIZE, (place + 1) * BLOCK_SIZE) is None
    assert ahead.marks == []
    assert len(ahead._candidates) == MAX_CANDIDATES


def test_several_readers_have_a_stream_each() -> None:
    """The one that has not moved for longest gives way to another one."""
    ahead = ReadAhead()
    bases = [reader * 1000 * MIB for reader in range(MAX_STREAMS + 1)]
    for base in bases[:-1]:
        ahead.missed(base, base + STEP)
    for base in bases[:-1]:
        assert ahead.missed(base + STEP, base + 2 * STEP) == (base + 2 * STEP, base + 4 * STEP)
    assert len(ahead.marks) == MAX_STREAMS
    assert ahead.touched(ahead.marks[0], ahead.marks[0] + STEP) is not None
    ahead.missed(bases[-1], bases[-1] + STEP)
    ahead.missed(bases[-1] + STEP, bases[-1] + 2 * STEP)
    assert len(ahead.marks) == MAX_STREAMS
    kept = {mark // (1000 * MIB) for mark in ahead.marks}
    assert kept == set(range(MAX_STREAMS + 1)) - {1}


def test_reads_that_follow_each_other_are_one() -> None:
    assert extents_of([(0, 4), (4, 6), (6, 7), (9, 10), (12, 14), (14, 15)]) == [
        (0, 7),
        (9, 10),
        (12, 15),
    ]


# -- a volume ------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.background.run()
    run_inline(bench.pool.close_all())
    bench.pool.release()


@pytest.fixture
def prefetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel is asked for: offset and length."""
    asked: list[tuple[int, int]] = []
    ask = Layer.prefetch

    def note(layer: Layer, offset: int, length: int) -> None:
        asked.append((offset, length))
        ask(layer, offset, length)

    monkeypatch.setattr(Layer, "prefetch", note)
    return asked


def cold(bench: Bench) -> Volume:
    """The volume, full and written to the disk, with nothing of it in the page cache."""
    bench.write(0, b"c", SIZE // BLOCK_SIZE)
    volume = run_inline(bench.pool.registry.use_volume(bench.volume)).volume
    run_inline(volume.flush())
    bench.background.run()
    drop(volume)
    return volume


def drop(device: Reader) -> None:
    for layer in device.layers.slots:
        for fd in layer.descriptors if layer is not None else []:
            if fd >= 0:
                pagecache.drop(fd)


def hit(device: Reader, offset: int, length: int = STEP) -> bool:
    return device.try_read(offset, memoryview(bytearray(length)))


def miss(device: Reader, offset: int, length: int = STEP) -> None:
    assert not hit(device, offset, length)
    run_inline(device.read(offset, memoryview(bytearray(length))))


def test_what_lies_ahead_of_a_sequential_reader_is_read(
    bench: Bench, prefetched: list[tuple[int, int]]
) -> None:
    volume = cold(bench)
    miss(volume, 0)
    bench.background.run()
    assert prefetched == []
    miss(volume, STEP)
    bench.background.run()
    assert prefetched == [(2 * STEP, 2 * STEP)]
    [layer] = [layer for layer in volume.layers.slots[2:] if layer is not None]
    os.pread(layer.descriptors[0], 1, 4 * STEP - 1)  # its last byte is there: so is the rest
    assert hit(volume, 2 * STEP)
    bench.background.run()
    assert len(prefetched) == 1
    assert hit(volume, 3 * STEP)  # touches the mark
    bench.background.run()
    assert prefetched[1:] == [(4 * STEP, 4 * STEP)]


def test_a_random_reader_costs_no_reading_ahead(
    bench: Bench, prefetched: list[tuple[int, int]]
) -> None:
    volume = cold(bench)
    for offset in (5 * STEP, 0, 9 * STEP, 3 * STEP, 7 * STEP):
        miss(volume, offset)
    bench.background.run()
    assert prefetched == []


def test_what_is_frozen_is_not_read_ahead(bench: Bench, prefetched: list[tuple[int, int]]) -> None:
    """It would be given to clients from the page cache, unverified."""
    volume = cold(bench)
    snapshot = bench.snapshot("s")
    bench.background.run()
    reader = run_inline(bench.pool.registry.use_snapshot(snapshot)).snapshot
    for device in (volume, reader):
        drop(volume)
        miss(device, 0)
        miss(device, STEP)
        bench.background.run()
    assert prefetched == []
    bench.pool.registry.leave_snapshot(snapshot)


def test_the_cache_command_reads_all_of_its_range(
    bench: Bench, prefetched: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen, too, and in pieces that hold nobody up for long."""
    monkeypatch.setattr(reading, "CACHE_PIECE_BYTES", 4 * STEP)
    volume = cold(bench)
    bench.snapshot("s")
    bench.background.run()
    for step in stepwise(volume.cache(STEP, 10 * STEP)):
        assert isinstance(step, Blocking), "not on the owner thread"
    assert prefetched == [(STEP, 4 * STEP), (5 * STEP, 4 * STEP), (9 * STEP, 2 * STEP)]


def test_nothing_is_read_ahead_of_a_volume_that_was_closed_meanwhile(bench: Bench) -> None:
    volume = cold(bench)
    miss(volume, 0)
    miss(volume, STEP)
    bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    assert not volume.layers.slots
    bench.background.run()


def test_reading_goes_on_where_nothing_more_can_be_spawned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may have no more threads than it has."""
    volume = cold(bench)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(volume, "_spawn", refuse)
    miss(volume, 0)
    miss(volume, STEP)


def test_reading_ahead_ends_where_the_volume_does(
    bench: Bench, prefetched: list[tuple[int, int]]
) -> None:
    volume = cold(bench)
    miss(volume, SIZE - 3 * STEP)
    miss(volume, SIZE - 2 * STEP)
    bench.background.run()
    assert prefetched == [(SIZE - STEP, STEP)]
    assert volume.fast_view().marks == [SIZE]


# -- asking the kernel ---------------------------------------------------------------------------


def test_a_long_range_is_asked_for_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would silently cut it short."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(prefetch, "piece_bytes", lambda _: 128 * KIB)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, count, __: asked.append((at, count)))
    with (tmp_path / "file").open("wb") as file:
        prefetch.prefetch_range(file.fileno(), 5 * KIB, 300 * KIB)
    assert asked == [(5 * KIB, 128 * KIB), (133 * KIB, 128 * KIB), (261 * KIB, 44 * KIB)]


def test_a_piece_is_what_the_device_takes(tmp_path: Path) -> None:
    """As far as sysfs says it, and within bounds where it does not."""
    device = os.stat(tmp_path).st_dev
    assert 128 * KIB <= prefetch.piece_bytes(device) <= MIB
    assert prefetch.piece_bytes(os.makedev(0, 1 << 16)) == 128 * KIB
