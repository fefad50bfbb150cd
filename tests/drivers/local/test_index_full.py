"""LMDB's map is full: the index can take nothing more, whatever room the file system has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.errors import IndexFullError
from bockd.index import mapsize
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die

MAP_BYTES = 5 * MIB // 16
STEP = 8
"""Every so manyth block is written: scattered blocks cost the index most."""
SIZE = 4096 * MIB


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(mapsize, "MAP_SIZE_BYTES", MAP_BYTES)
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def fill(bench: Bench) -> tuple[dict[int, bytes], str]:
    """Write blocks that cost the index most, until it takes no more: what was acknowledged by
    block, and how that was refused."""
    written: dict[int, bytes] = {}
    number = 0
    while True:
        for _ in range(20):
            for block in range(number * LEAF_BLOCKS, (number + 1) * LEAF_BLOCKS, STEP):
                value = bytes([1 + block % 255])
                bench.write(block, value)
                written[block] = value
            number += 1
        try:
            run_inline(bench.device().durability.checkpoint())
        except IndexFullError as error:
            return written, str(error)


def test_a_full_index(bench: Bench, tmp_path: Path) -> None:
    """It says so, and what to do; nothing acknowledged is lost, now and after a death; reads, trims
    and flushes go on."""
    run_inline(bench.pool.extend_volume(bench.volume, SIZE))
    written, refusal = fill(bench)
    assert "greatest size" in refusal
    assert "second pool" in refusal
    assert bench.pool.registry.store.layout.ballast.exists()
    run_inline(bench.device().flush())
    run_inline(bench.device().trim(0, LEAF_BLOCKS * BLOCK_SIZE))
    for block in range(LEAF_BLOCKS):
        written.pop(block, None)
    verify(bench, written)
    with pytest.raises(IndexFullError):
        run_inline(bench.device().durability.checkpoint())

    die(bench.pool)
    bench.background = Background()
    bench.pool = LocalPool.open(tmp_path, bench.background.spawn)
    run_inline(bench.pool.registry.recover_volumes())
    with pytest.raises(IndexFullError):
        bench.device()  # what the index lacks is in the journal, and stays there


def test_a_larger_map_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is there for a bockd whose map is larger."""
    run_inline(bench.pool.extend_volume(bench.volume, SIZE))
    written, _ = fill(bench)
    die(bench.pool)
    monkeypatch.setattr(mapsize, "MAP_SIZE_BYTES", 2 * MAP_BYTES)
    bench.background = Background()
    bench.pool = LocalPool.open(tmp_path, bench.background.spawn)
    run_inline(bench.pool.registry.recover_volumes())
    verify(bench, written)
    bench.reclaimer = Reclaimer(bench.pool.registry)
    bench.reclaim()


def verify(bench: Bench, written: dict[int, bytes]) -> None:
    assert bench.block(bench.volume, 0) == written.get(0, b"\0")
    for block, value in list(written.items())[::17]:
        assert bench.block(bench.volume, block) == value
