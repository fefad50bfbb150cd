"""A process that may have no more threads: background work cannot begin, all else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.journal import JournalSegment
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.pool import LocalPool
from bockd.errors import VolumeFailedError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Background, Steps, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.process import die


class Threads(Background):
    """What is spawned, as long as there can be threads."""

    none_left = False

    def spawn(self, steps: Steps[None]) -> None:
        """See `Spawn`."""
        if self.none_left:
            raise RuntimeError("can't start new thread")
        super().spawn(steps)


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def bench(tmp_path: Path, threads: Threads) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    root = bench.pool.registry.store.layout.root
    die(bench.pool)
    bench.background = threads
    bench.pool = LocalPool.open(root, threads.spawn)
    bench.write(0, b"a", SIZE // BLOCK_SIZE)
    yield bench
    threads.none_left = False
    die(bench.pool)


def test_a_trim_is_punched_when_there_are_threads_again(bench: Bench, threads: Threads) -> None:
    device = bench.device()
    threads.none_left = True
    run_inline(device.trim(0, MIB))
    assert bench.block(bench.volume, 0) == b"\0"
    threads.run()
    assert bench.allocated() == SIZE

    threads.none_left = False
    run_inline(device.trim(SIZE - MIB, BLOCK_SIZE))

    threads.run()
    assert bench.allocated() == SIZE - MIB - BLOCK_SIZE


def test_a_trim_is_punched_when_its_volume_closes(bench: Bench, threads: Threads) -> None:
    device = bench.device()
    threads.none_left = True
    run_inline(device.trim(0, MIB))
    bench.pool.registry.volumes[bench.volume].users = 0

    run_inline(bench.pool.registry.close_idle_volume(bench.volume))

    assert bench.allocated() == SIZE - MIB


def test_punching_begins_again_after_any_error(
    bench: Bench, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.device()

    def cannot(_layer: Layer, _offset: int, _length: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "punch", cannot)
        run_inline(device.trim(0, MIB))
        with pytest.raises(MemoryError):
            threads.run()
    run_inline(device.trim(SIZE - MIB, MIB))
    threads.run()

    assert bench.allocated() == SIZE - MIB


def test_a_snapshot_is_made_and_the_former_head_replaced_by_the_next(
    bench: Bench, threads: Threads
) -> None:
    device = bench.device()
    threads.none_left = True
    bench.snapshot("one")
    bench.write(0, b"b")
    assert bench.block(bench.volume, 0) == b"b"
    assert bench.block(bench.volume, 1) == b"a"
    before = bench.pool.registry.store.files.count

    threads.none_left = False
    bench.snapshot("two")
    threads.run()

    assert bench.pool.registry.store.files.count == before + 2
    assert bench.block(bench.volume, 1) == b"a"
    assert len(device.heads._punchers) == 1


def test_the_first_write_goes_on_where_no_reader_can_be_waited_for(
    bench: Bench, threads: Threads
) -> None:
    """The head was open for reading, and is closed with the volume at the latest."""
    registry = bench.pool.registry
    registry.volumes[bench.volume].users = 0
    run_inline(registry.close_idle_volume(bench.volume))
    threads.run()
    assert bench.block(bench.volume, 0) == b"a"
    threads.none_left = True

    bench.write(0, b"b")

    assert bench.block(bench.volume, 0) == b"b"
    run_inline(registry.close_idle_volume(bench.volume))
    assert not registry.store.files.count


def test_a_failed_volume_says_so_and_is_recorded_later(
    bench: Bench, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.device()
    threads.none_left = True

    def fail(*_args: object) -> None:
        raise OSError(5, "an error")

    with monkeypatch.context() as patch:
        patch.setattr(JournalSegment, "append", fail)
        with pytest.raises(VolumeFailedError):
            run_inline(device.trim(0, BLOCK_SIZE))
    with pytest.raises(VolumeFailedError):
        run_inline(device.flush())

    threads.none_left = False
    with pytest.raises(VolumeFailedError):
        run_inline(device.flush())
    threads.run()
    with bench.pool.registry.catalogue() as catalogue:
        assert catalogue.volume(bench.volume).failed is not None
