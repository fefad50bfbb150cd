"""Recovery of a volume with a packed head whose journal was written by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import (
    CellBlocks,
    CellRun,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
    boot_id,
)
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, Leaf
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.opening import recover_if_needed
from bockd.drivers.local.pool import LocalPool
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE
from bockd.pool.index import Transaction
from bockd.pool.reports import CheckReport
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.packing import pack_layer
from tests.drivers.local.process import die

OTHER_BOOT = "0" * 36
SEEN = {2: 1, 6: 0, 300: 2}
"""Blocks that the index knows, in order, and their cells."""

TAIL = 3


class Dirty:
    """A pool whose one volume has a packed head and was not closed."""

    def __init__(self, root: Path) -> None:
        bench = Bench(root)
        self.volume = bench.volume
        for block in SEEN:
            bench.write(block, b"s")
        run_inline(bench.pool.close_all())
        die(bench.pool)
        self.pool = LocalPool.open(root, Background().spawn)
        self.store = self.pool.registry.store
        head = self.record().head
        self.path = self.store.layout.layer_segment(head, 0)
        pack_layer(self.store, head, Random(0), chosen=[*SEEN.values()])

    def record(self) -> LocalVolumeRecord:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.volume(self.volume)

    def write(self, cell: int, value: bytes, count: int = 1) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), value * BLOCK_SIZE * count, cell * BLOCK_SIZE)

    def journal(
        self, *batches: Sequence[Entry], boot: str | None = None, packed: bool = True
    ) -> None:
        """As the volume was left: opened, with one segment."""
        opened = replace(self.record(), opened=True, generation=self.record().generation + 1)
        self.pool.index.update(lambda txn: Catalogue(txn).put_volume(opened))
        name = JournalName(self.volume, opened.generation, opened.segment)
        segment = JournalSegment.create(self.store.layout, name, boot or boot_id(), packed=packed)
        for batch in batches:
            segment.append(batch)
            if isinstance(batch[-1], tuple) and batch[-1] == FLUSHED:
                segment.append([(Kind.BARRIER, segment.last_sequence - 1, 0)])
        segment.close()

    def recover(self) -> None:
        recover_if_needed(self.store, self.volume)

    def shown(self) -> dict[int, int]:
        """The blocks of the head that the map shows, and their cells; the rows say no more."""
        record = self.record()
        found: dict[int, int] = {}
        with self.pool.index.reading() as txn:
            rows = dict(cells.ROWS.rows_of(txn, record.head))
            for number, payload in own_leaves(txn, record.map):
                for block, layer in enumerate(Leaf.decode(payload).layers()):
                    if layer == record.head:
                        found[number * LEAF_BLOCKS + block] = rows[number].pop(block)
            known = Catalogue(txn).layer(record.head)
        assert not any(rows.values())
        assert known.cells > max(found.values(), default=-1)
        assert self.path.stat().st_size >= known.cells * BLOCK_SIZE
        return found

    def check(self) -> CheckReport:
        return check_open_pool(self.store, live=frozenset(), repair=False)


FLUSHED: Entry = (Kind.HOLE, 511, 1)
"""Ends a batch that was flushed: a hole where there was one."""


@pytest.fixture
def dirty(tmp_path: Path) -> Iterator[Dirty]:
    made = Dirty(tmp_path / "pool")
    yield made
    die(made.pool)


def test_everything_counts_if_no_page_was_lost(dirty: Dirty) -> None:
    dirty.write(TAIL, b"n", 7)
    dirty.journal(
        [CellRun(10, 3, TAIL), CellBlocks([40, 301, 7], TAIL + 3)],
        [(Kind.HOLE, 11, 1), (Kind.HOLE, 6, 1)],
        [CellRun(11, 1, TAIL + 6)],
    )
    before = dirty.check()
    assert before.problems == ()
    assert (before.stray_blocks, before.hollow_blocks) == (0, 0)
    dirty.recover()
    assert dirty.shown() == {
        2: 1,
        300: 2,
        10: TAIL,
        12: TAIL + 2,
        40: TAIL + 3,
        301: TAIL + 4,
        7: TAIL + 5,
        11: TAIL + 6,
    }
    report = dirty.check()
    assert report.problems == ()
    assert report.stray_blocks == 2  # the cells of what was trimmed


def test_leaves_that_became_holes_as_a_whole_lose_their_cells(dirty: Dirty) -> None:
    """What came before and behind them keeps its own."""
    dirty.write(TAIL, b"n", 20)
    dirty.journal(
        [CellRun(200, 20, TAIL), CellBlocks([310], TAIL + 19)],
        [(Kind.HOLE, 210, 300)],
        [CellRun(400, 2, TAIL)],
    )
    dirty.recover()
    kept = {200 + n: TAIL + n for n in range(10)}
    assert dirty.shown() == {2: 1, 6: 0, **kept, 400: TAIL, 401: TAIL + 1}


def test_a_whole_leaf_in_cells(dirty: Dirty) -> None:
    dirty.write(TAIL, b"n", 300)
    dirty.journal([CellRun(212, 300, TAIL)])
    dirty.recover()
    assert dirty.shown() == {2: 1, 6: 0, **{212 + n: TAIL + n for n in range(300)}}


def test_a_cell_that_was_emptied_may_be_anothers(dirty: Dirty) -> None:
    dirty.write(0, b"n")
    dirty.journal([(Kind.HOLE, 6, 1)], [CellRun(9, 1, 0)])
    dirty.recover()
    assert dirty.shown() == {2: 1, 9: 0, 300: 2}


def test_only_what_was_flushed_counts_in_another_boot(dirty: Dirty) -> None:
    dirty.write(TAIL, b"n", 2)
    dirty.journal([CellRun(10, 1, TAIL), FLUSHED], [CellRun(11, 1, TAIL + 1)], boot=OTHER_BOOT)
    dirty.recover()
    assert dirty.shown() == {**SEEN, 10: TAIL}
    report = dirty.check()
    assert report.problems == ()
    assert report.stray_blocks == 1


@pytest.mark.parametrize("end", [0, 1, BLOCK_SIZE, 3 * BLOCK_SIZE])
def test_a_page_that_was_lost_is_noticed_in_its_cell(dirty: Dirty, end: int) -> None:
    """The file ends before it, within it, or behind it. At the block's own offset there is data
    all the time."""
    dirty.write(TAIL, b"n", 12)
    os.truncate(dirty.path, (TAIL + 1) * BLOCK_SIZE)
    os.truncate(dirty.path, (TAIL + 1) * BLOCK_SIZE + end)
    dirty.journal([CellRun(1, 1, TAIL), FLUSHED], [CellRun(2, 1, TAIL + 1)])
    before = dirty.check()
    assert before.problems == ()
    dirty.recover()
    assert dirty.shown() == {**SEEN, 1: TAIL}


def test_zeros_in_a_cell_that_nobody_foretold_are_a_lost_page(dirty: Dirty) -> None:
    dirty.write(TAIL, b"\0", 4)
    dirty.write(8, b"n")
    dirty.journal([CellRun(8, 1, TAIL)])
    dirty.recover()
    assert dirty.shown() == SEEN


def test_zeros_that_were_foretold_and_blocks_that_were_trimmed_prove_nothing(
    dirty: Dirty,
) -> None:
    """The file is made as long as the cells that were named, so that no read meets its end."""
    dirty.journal(
        [CellBlocks([10, 11, 12], TAIL), ZeroBlocks([10, 11])],
        [(Kind.HOLE, 12, 1)],
        [CellRun(20, 300, TAIL + 3), (Kind.HOLE, 0, 512)],
        [CellRun(30, 2, 90), ZeroBlocks([30, 31])],
    )
    dirty.recover()
    assert dirty.shown() == {30: 90, 31: 91}
    assert dirty.path.stat().st_size >= 92 * BLOCK_SIZE


@pytest.mark.parametrize("packed", [False, True])
def test_a_journal_of_another_kind_of_head_is_refused(tmp_path: Path, *, packed: bool) -> None:
    dirty = Dirty(tmp_path / "pool")
    if not packed:
        os.truncate(dirty.path, 2 << 20)

        def unpack(txn: Transaction) -> None:
            head = Catalogue(txn).layer(dirty.record().head)
            Catalogue(txn).put_layer(replace(head, packed=False, cells=0))
            cells.erase_leaves(txn, head.id, 0, 2)

        dirty.pool.index.update(unpack)
    dirty.journal([(Kind.HOLE, 1, 1)], packed=not packed)
    assert any("of another kind" in problem for problem in dirty.check().problems)
    with pytest.raises(DamagedError, match="is of another kind than the layer"):
        dirty.recover()
    die(dirty.pool)
