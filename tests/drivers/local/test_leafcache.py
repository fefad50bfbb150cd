"""What is in memory of a map: leaves that hold something, and which others are holes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.volume.slots import HOLE_SLOT
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def test_holes_that_were_read_take_no_place_and_can_be_written(bench: Bench) -> None:
    """The volume has two leaves, read together; only the second has a block."""
    bench.write(256, b"D")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    device = bench.device()
    into = memoryview(bytearray(BLOCK_SIZE))

    assert not device.try_read(0, into)  # neither is in memory
    run_inline(device.read(256 * BLOCK_SIZE, into))

    assert set(device.map.leaves) == {1}
    assert device.map.find(0) is device.map.uniform(HOLE_SLOT)
    assert device.try_read(0, into)
    assert bytes(into) == bytes(BLOCK_SIZE)
    assert device.try_write(0, memoryview(b"N" * BLOCK_SIZE))
    device.commit()
    assert bench.block(bench.volume, 0) == b"N"
    assert bench.block(bench.volume, 1) == b"\0"


def test_a_leaf_that_left_memory_is_not_taken_for_a_hole(bench: Bench) -> None:
    bench.write(256, b"D")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    device = bench.device()
    run_inline(device.read(0, memoryview(bytearray(BLOCK_SIZE))))

    device.map.clear_damaged(256)

    assert device.map.find(1) is None
    assert bench.block(bench.volume, 256) == b"D"
