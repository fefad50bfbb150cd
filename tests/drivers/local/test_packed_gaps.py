"""Packed heads where the index may have lost rows of cells: nothing is changed that no checkpoint
could store, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.cells import CELLS, ROWS
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.format.leafvalues import leaf_value_key
from bockd.drivers.local.maintenance import resting, settling
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.rotating import Rotations
from bockd.drivers.local.volume.redirecting import PackedLaneRedirects
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import DamagedError
from bockd.index.transaction import Gap
from bockd.model import BLOCK_SIZE, LayerId, VolumeId
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die

LEAF_BYTES = LEAF_BLOCKS * BLOCK_SIZE
NUMBERS = (0, 4, 8)
"""The leaves that have blocks in the head. The row of the second one is lost."""


class Gapped(Bench):
    """A volume of ten leaves, full of "a" in a snapshot, with a block in the packed head in each of
    the leaves NUMBERS. Its index has a gap in the cells between the first and the last of these."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        run_inline(self.pool.extend_volume(self.volume, 10 * LEAF_BYTES))
        self.write(0, b"a", 10 * LEAF_BLOCKS)
        self.pool.registry.pack = lambda: True
        self.kept = self.snapshot("kept")
        for number in NUMBERS:
            self.write(number * LEAF_BLOCKS, b"h")
        run_inline(self.pool.registry.close_idle_volume(self.volume))
        with self.pool.registry.catalogue() as catalogue:
            self.head = catalogue.volume(self.volume).head
        self.pool.index.update(lambda txn: ROWS.put(txn, self.head, 4, {}))
        first, last = (leaf_value_key(self.head, number) for number in (0, 8))
        self.pool.index._gaps = {CELLS: [Gap(first, last, "the index has lost cells")]}

    def loaded(self) -> Volume:
        """The open volume, with those of its leaves in memory that can be read."""
        device = self.device()
        for number in (0, 1, 2, 3, 5, 6, 7, 8, 9):
            run_inline(device.loader.load(number * LEAF_BLOCKS, (number + 1) * LEAF_BLOCKS))
        return device


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gapped]:
    monkeypatch.setattr("bockd.drivers.local.volume.leafcache.GROUP_LEAVES", 1)
    bench = Gapped(tmp_path / "pool")
    yield bench
    die(bench.pool)


def write(device: Volume, block: int, count: int = 1) -> None:
    data = memoryview(b"n" * BLOCK_SIZE * count)
    if not device.try_write(block * BLOCK_SIZE, data):
        run_inline(device.write(block * BLOCK_SIZE, data))
    device.commit()


def trim(device: Volume, block: int, count: int) -> None:
    if not device.try_trim(block * BLOCK_SIZE, count * BLOCK_SIZE):
        run_inline(device.trim(block * BLOCK_SIZE, count * BLOCK_SIZE))
    device.commit()


@pytest.mark.parametrize("number", [2, 6])
@pytest.mark.parametrize("count", [1, LEAF_BLOCKS, 2 * LEAF_BLOCKS])
def test_nothing_is_trimmed_where_cells_may_be_lost(bench: Gapped, number: int, count: int) -> None:
    """Leaves that have no block in the head, and are in memory."""
    device = bench.loaded()
    with pytest.raises(DamagedError, match="lost cells"):
        trim(device, number * LEAF_BLOCKS, count)
    assert not device.map.unstored()
    assert device.durability.tail.untouched
    run_inline(device.durability.checkpoint())
    assert bench.block(bench.volume, number * LEAF_BLOCKS) == b"a"


@pytest.mark.parametrize("count", [1, 20])
def test_nothing_new_is_written_where_cells_may_be_lost(bench: Gapped, count: int) -> None:
    device = bench.loaded()
    with pytest.raises(DamagedError, match="lost cells"):
        write(device, 2 * LEAF_BLOCKS + 5, count)
    with pytest.raises(DamagedError, match="lost cells"):
        run_inline(device.zero(2 * LEAF_BYTES, LEAF_BYTES, allocate=True))
    assert not device.map.unstored()
    assert device.durability.tail.untouched
    redirects = device.fast_view().redirects
    assert isinstance(redirects, PackedLaneRedirects)
    assert redirects.take(1) == -1


def test_the_rest_of_the_volume_goes_on(bench: Gapped) -> None:
    """Where rows stand before the gap and behind it, and all reads but of the leaf that lost it."""
    device = bench.loaded()
    for block in (0, 8 * LEAF_BLOCKS):
        write(device, block)
    for block in (7, 9 * LEAF_BLOCKS):
        write(device, block, 3)
    trim(device, 9 * LEAF_BLOCKS + 1, 1)
    trim(device, 8 * LEAF_BLOCKS + 100, LEAF_BLOCKS)
    run_inline(device.durability.checkpoint())
    assert not device.map.unstored()
    assert bench.block(bench.volume, 0) == b"n"
    assert bench.block(bench.volume, 9 * LEAF_BLOCKS) == b"\0"
    assert bench.block(bench.volume, 9 * LEAF_BLOCKS + 2) == b"\0"
    assert bench.block(bench.volume, 9 * LEAF_BLOCKS + 200) == b"a"
    assert bench.block(bench.volume, 2 * LEAF_BLOCKS) == b"a"
    with pytest.raises(DamagedError):
        bench.block(bench.volume, 4 * LEAF_BLOCKS)


def test_new_heads_are_raw_where_cells_may_be_lost(bench: Gapped) -> None:
    """What was lost behind the last row may be of any later layer."""
    last = leaf_value_key(bench.head, 8)
    bench.pool.index._gaps = {CELLS: [Gap(last, None, "the index has lost cells")]}
    clone = VolumeId(run_inline(bench.pool.create_volume("clone", None, bench.kept)).id)
    with bench.pool.registry.catalogue() as catalogue:
        assert not catalogue.layer(catalogue.volume(clone).head).packed
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    run_inline(device.write(0, memoryview(b"c" * BLOCK_SIZE)))
    run_inline(device.durability.checkpoint())
    bench.pool.registry.leave_volume(clone)


def test_a_rotation_makes_a_raw_head_where_cells_may_be_lost(bench: Gapped, tmp_path: Path) -> None:
    """All that can be read can be written to again, also after a death."""
    first, last = (leaf_value_key(bench.head, number) for number in (0, 8))
    bench.loaded()
    registry = bench.pool.registry
    run_inline(Rotations(registry, registry.layer_maker).freeze_head(bench.volume, bench.head))
    with registry.catalogue() as catalogue:
        head = catalogue.layer(catalogue.volume(bench.volume).head)
        assert catalogue.layer(bench.head).home == head.home
    assert head.id != bench.head
    assert not head.packed
    device = bench.device()
    for block in (0, 2 * LEAF_BLOCKS, 9 * LEAF_BLOCKS):
        write(device, block, 2)
    trim(device, 9 * LEAF_BLOCKS, 1)
    die(bench.pool)
    bench.pool = LocalPool.open(tmp_path / "pool", bench.background.spawn)
    bench.pool.index._gaps = {CELLS: [Gap(first, last, "the index has lost cells")]}
    run_inline(bench.pool.registry.recover_volumes())
    assert bench.block(bench.volume, 0) == b"n"
    assert bench.block(bench.volume, 2 * LEAF_BLOCKS + 1) == b"n"
    assert bench.block(bench.volume, 8 * LEAF_BLOCKS) == b"h"
    assert bench.block(bench.volume, 9 * LEAF_BLOCKS) == b"\0"
    assert bench.block(bench.volume, 9 * LEAF_BLOCKS + 1) == b"n"
    with pytest.raises(DamagedError):
        bench.block(bench.volume, 4 * LEAF_BLOCKS)


def test_settling_rotates_nothing_where_cells_may_be_lost(
    bench: Gapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "HEAD_BYTES", 0)
    monkeypatch.setattr(settling, "RUNS_PER_MIB", 0)
    device = bench.loaded()
    write(device, 0)
    later = leaf_value_key(LayerId(bench.head + 1), 0)
    bench.pool.index._gaps = {CELLS: [Gap(later, None, "the index has lost cells")]}
    settler = Settler(bench.pool.registry)
    for _ in range(3):
        run_inline(settler.look())
        while run_inline(settler.step()).more:
            pass
    assert device.durability.head.id == bench.head
