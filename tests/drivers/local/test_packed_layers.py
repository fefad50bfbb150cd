"""Packed layers that were made by hand: what `check` says of them, and what goes with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from bockd.drivers.local.backup import Backup
from bockd.drivers.local.format import cells, queue
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.cells import CELLS, LeafCells
from bockd.drivers.local.format.leafvalues import leaf_value_key
from bockd.drivers.local.format.queue import PunchEntry
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.reports import CheckReport
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.packing import pack_all, pack_layer
from tests.drivers.local.process import die

BLOCKS = SIZE // BLOCK_SIZE


class Packed:
    """A closed pool with a volume `v`, its snapshots `older` and `newer`, and a clone of one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.random = Random(7)
        self.background = Background()
        bench = Bench(root)
        self.volume = bench.volume
        for block in self.random.sample(range(BLOCKS), 200):
            bench.write(block, bytes([1 + block % 250]))
        self.older = bench.snapshot("older")
        for block in self.random.sample(range(BLOCKS), 150):
            bench.write(block, bytes([1 + (block + 1) % 250]))
        self.newer = bench.snapshot("newer")
        bench.write(3, b"h", 20)
        self.clone = VolumeId(run_inline(bench.pool.create_volume("c", None, self.older)).id)
        run_inline(bench.pool.close_all())
        die(bench.pool)
        self.pool = LocalPool.open(root, self.background.spawn)
        self.store = self.pool.registry.store

    def check(self, *, repair: bool = False) -> CheckReport:
        return check_open_pool(self.store, live=frozenset(), repair=repair)

    def head_of(self, volume: VolumeId) -> LayerId:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.volume(volume).head

    def layers_of(self, snapshot: SnapshotId) -> list[LayerId]:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.layers_of(catalogue.snapshot(snapshot).map)

    def record(self, layer: LayerId) -> LayerRecord:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.layer(layer)

    def rows(self, layer: LayerId) -> dict[int, LeafCells]:
        with self.pool.index.reading() as txn:
            return dict(cells.ROWS.rows_of(txn, layer))

    def put_record(self, record: LayerRecord) -> None:
        self.pool.index.update(lambda txn: Catalogue(txn).put_layer(record))

    def put_row(self, layer: LayerId, number: int, row: LeafCells) -> None:
        self.pool.index.update(lambda txn: cells.ROWS.put(txn, layer, number, row))

    def reclaim(self) -> None:
        run_inline(Reclaimer(self.pool.registry).run())
        self.background.run()


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Packed]:
    """Every layer of it is packed."""
    made = Packed(tmp_path / "pool")
    pack_all(made.store, made.random)
    yield made
    die(made.pool)


def test_check_finds_nothing_wrong(packed: Packed) -> None:
    report = packed.check()
    assert report.problems == ()
    assert (report.stray_blocks, report.hollow_blocks) == (0, 0)


def first_row(packed: Packed, layer: LayerId) -> tuple[int, LeafCells]:
    return next(iter(packed.rows(layer).items()))


def lose_a_cell(packed: Packed, layer: LayerId) -> None:
    number, row = first_row(packed, layer)
    packed.put_row(layer, number, dict(list(row.items())[1:]))


def lose_a_row(packed: Packed, layer: LayerId) -> None:
    packed.put_row(layer, first_row(packed, layer)[0], {})


def double_a_cell(packed: Packed, layer: LayerId) -> None:
    number, row = first_row(packed, layer)
    one, other, *_ = row
    packed.put_row(layer, number, {**row, one: row[other]})


def double_across_leaves(packed: Packed, layer: LayerId) -> None:
    (number, row), (_, other) = packed.rows(layer).items()
    packed.put_row(layer, number, {**row, min(row): min(other.values())})


def name_a_cell_beyond(packed: Packed, layer: LayerId) -> None:
    number, row = first_row(packed, layer)
    end = packed.record(layer).cells
    os.truncate(packed.store.layout.layer_segment(layer, 0), (end + 1) * BLOCK_SIZE)
    packed.put_row(layer, number, {**row, min(row): end})


def cut_the_file(packed: Packed, layer: LayerId) -> None:
    end = packed.record(layer).cells
    os.truncate(packed.store.layout.layer_segment(layer, 0), (end - 1) * BLOCK_SIZE)


def call_it_raw(packed: Packed, layer: LayerId) -> None:
    os.truncate(packed.store.layout.layer_segment(layer, 0), SIZE)
    packed.put_record(replace(packed.record(layer), packed=False))


def name_a_missing_layer(packed: Packed, layer: LayerId) -> None:
    packed.put_row(LayerId(77), 0, {0: 0})


def name_a_block_beyond(packed: Packed, layer: LayerId) -> None:
    packed.put_row(layer, BLOCKS // 256, {0: 0})


def malform_a_row(packed: Packed, layer: LayerId) -> None:
    key = leaf_value_key(layer, first_row(packed, layer)[0])
    packed.pool.index.update(lambda txn: txn.put(CELLS, key, b"\1" + bytes(31)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_a_cell, "1 mapped blocks without a cell"),
        (lose_a_row, "mapped blocks without a cell"),
        (double_a_cell, "1 blocks whose cell is another block's as well"),
        (double_across_leaves, "1 blocks whose cell is another block's as well"),
        (name_a_cell_beyond, "1 blocks whose cell is beyond its"),
        (cut_the_file, "is truncated"),
        (call_it_raw, "has cells, and is not packed"),
        (name_a_missing_layer, "there are cells of layer 77, which is missing"),
        (name_a_block_beyond, "has cells for blocks beyond its end in leaf 2"),
        (malform_a_row, "stored cells are malformed"),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_check_finds_damage_and_repair_punches_nothing_for_it(
    packed: Packed, damage: Callable[[Packed, LayerId], None], said: str, *, live: bool
) -> None:
    """Of a head that another process writes to, too: its index is as it should be all the time."""
    layer = packed.head_of(packed.volume) if live else packed.layers_of(packed.newer)[0]
    if live and damage is double_across_leaves:
        return  # all of its blocks are in one leaf
    damage(packed, layer)
    opened = frozenset({packed.volume}) if live else frozenset()
    before = packed.store.layout.layer_segment(layer, 0).stat().st_blocks
    report = check_open_pool(packed.store, live=opened, repair=not live)
    assert any(said in problem for problem in report.problems), report.problems
    assert packed.store.layout.layer_segment(layer, 0).stat().st_blocks == before


def test_strays_and_leftovers_are_no_problems_and_are_repaired(tmp_path: Path) -> None:
    packed = Packed(tmp_path / "pool")
    layer = packed.layers_of(packed.older)[0]
    pack_layer(packed.store, layer, packed.random, strays=True)
    strays = packed.check().stray_blocks
    assert strays > 10
    # A block that no map shows in the layer has a cell, with something in it.
    number, row = first_row(packed, layer)
    named = {cell for row in packed.rows(layer).values() for cell in row.values()}
    free = min(set(range(packed.record(layer).cells)) - named)
    absent = min(set(range(256)) - set(row))
    packed.put_row(layer, number, {**row, absent: free})
    report = packed.check(repair=True)
    assert report.problems == ()
    assert "forgot the cells of 1 blocks that nothing shows" in report.repaired
    assert f"returned {strays} stray blocks to the file system" in report.repaired
    assert (report.stray_blocks, report.hollow_blocks) == (0, 0)
    assert packed.rows(layer)[number] == row
    die(packed.pool)


def test_queued_cells_are_excused(packed: Packed) -> None:
    """Blocks that lost their last reference: their cells wait to be punched."""
    layer = packed.layers_of(packed.newer)[0]

    def queue_it(txn: Transaction) -> None:
        number, row = first_row(packed, layer)
        block, cell = next(iter(row.items()))
        cells.ROWS.forget(txn, layer, number, {block})
        queue.add_punch(txn, PunchEntry(layer, cell, 1))

    packed.pool.index.update(queue_it)
    report = packed.check()
    assert report.stray_blocks == 0
    assert any("1 mapped blocks without a cell" in problem for problem in report.problems)


def test_the_rows_of_a_deleted_layer_go_before_its_files(packed: Packed) -> None:
    head = packed.head_of(packed.clone)
    packed.put_row(head, 0, {1: 0})
    packed.put_record(replace(packed.record(head), cells=1))
    run_inline(packed.pool.delete_volume(packed.clone))
    packed.reclaim()
    assert packed.rows(head) == {}
    assert not packed.store.layout.layer_segment(head, 0).exists()
    assert packed.check().clean


def test_a_folded_map_queues_cells_and_forgets_them(packed: Packed) -> None:
    """A deleted snapshot's map moves into the next one: what that has overwritten is punched, at
    its cells, and nothing else is."""
    layer = packed.layers_of(packed.older)[0]
    run_inline(packed.pool.delete_volume(packed.clone))
    before = sum(len(row) for row in packed.rows(layer).values())
    run_inline(packed.pool.delete_snapshot(packed.older))
    packed.reclaim()
    after = sum(len(row) for row in packed.rows(layer).values())
    assert 0 < after < before
    report = packed.check()
    assert report.clean, report.problems
    assert (report.stray_blocks, report.hollow_blocks, report.pending_reclaim) == (0, 0, 0)


@contextmanager
def backed_up(packed: Packed, target: Path, *, frozen: bool) -> Iterator[LocalPool]:
    """A backup of it, opened. With `frozen`, the snapshot `newer` was taken for it."""
    backup = Backup(packed.store, target, lambda _done, _total: None)
    backup.begin({packed.volume: packed.newer} if frozen else None)
    backup.copy()
    backup.complete()
    backup.end()
    pool = LocalPool.open(target, Background().spawn)
    yield pool
    die(pool)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_backup_of_packed_layers_is_whole(
    packed: Packed, tmp_path: Path, *, frozen: bool
) -> None:
    """Frozen layers as they are; heads are empty and packed in one of a pool in use."""
    sources = {
        layer: packed.store.layout.layer_segment(layer, 0).read_bytes()
        for layer in (*packed.layers_of(packed.older), *packed.layers_of(packed.newer))
    }
    with backed_up(packed, tmp_path / "copy", frozen=frozen) as copy:
        report = check_open_pool(copy.registry.store, live=frozenset(), repair=False)
        assert report.problems == ()
        assert (report.stray_blocks, report.hollow_blocks) == (0, 0)
        for layer, content in sources.items():
            assert copy.registry.store.layout.layer_segment(layer, 0).read_bytes() == content
        head = packed.head_of(packed.volume)
        length = copy.registry.store.layout.layer_segment(head, 0).stat().st_size
        with copy.registry.catalogue() as catalogue:
            record = catalogue.layer(head)
        assert record.packed
        assert record.cells * BLOCK_SIZE == length
        assert (length == 0) is frozen


def test_a_packed_layer_is_opened_by_the_length_of_its_cells(packed: Packed) -> None:
    layer = packed.layers_of(packed.older)[0]
    record = packed.record(layer)
    path = packed.store.layout.layer_segment(layer, 0)
    assert path.stat().st_size == record.file_bytes < record.size_bytes
    frozen = packed.store.frozen_layer(record)
    frozen.prepare()
    assert frozen.is_open
    assert frozen.near_descriptor == -1  # nobody reads it without asking for a cell
    frozen.close()
    os.truncate(path, record.file_bytes - 1)
    with pytest.raises(DamagedError, match="truncated"):
        packed.store.frozen_layer(record).prepare()
