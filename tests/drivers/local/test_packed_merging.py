"""Merging packed layers: their blocks move from their cells to their own offsets in a raw layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.maintenance import copying, merging
from bockd.drivers.local.maintenance.leading import Merge
from bockd.drivers.local.maintenance.merging import LayerMerger
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.errors import DamagedError
from bockd.model import LayerId
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import Bench, gather_layers
from tests.drivers.local.packing import pack_layer
from tests.drivers.local.process import die

GATHERED = 10
BLOCKS = range(GATHERED * 8)


def frozen(bench: Bench) -> list[LayerRecord]:
    with bench.pool.registry.catalogue() as catalogue:
        heads = {volume.head for volume in catalogue.volumes()}
        return [layer for layer in catalogue.layers() if layer.id not in heads]


def reopen(bench: Bench) -> None:
    """As the next process does after a death."""
    die(bench.pool)
    bench.pool = LocalPool.open(bench.pool.registry.store.layout.root, bench.background.spawn)
    bench.pool.registry.pack = lambda: False
    bench.reclaimer = Reclaimer(bench.pool.registry)


def crowded(
    root: Path, monkeypatch: pytest.MonkeyPatch, packs: Callable[[int], bool]
) -> tuple[Bench, dict[int, bytes]]:
    """A pool with more layers at one home than there may be, some of them packed, and what its
    volume's blocks hold."""
    bench = Bench(root)
    bench.pool.registry.pack = lambda: False  # layers are packed by hand
    gather_layers(bench, GATHERED, monkeypatch)
    content = {block: bench.block(bench.volume, block) for block in BLOCKS}
    run_inline(bench.pool.close_all())
    random = Random(3)
    for number, layer in enumerate(frozen(bench)):
        if packs(number):
            pack_layer(bench.pool.registry.store, layer.id, random, strays=True)
    reopen(bench)
    assert len(frozen(bench)) == GATHERED
    return bench, content


def shown(bench: Bench) -> dict[int, bytes]:
    return {block: bench.block(bench.volume, block) for block in BLOCKS}


def packs_all(_number: int) -> bool:
    return True


def packs_all_but_one(number: int) -> bool:
    return number != 4


def packs_every_other(number: int) -> bool:
    return number % 2 == 0


@pytest.mark.parametrize("packs", [packs_all, packs_all_but_one, packs_every_other])
def test_packed_layers_move_into_a_raw_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: Callable[[int], bool]
) -> None:
    """One that is there, or is made for it. Who has the volume open reads on, from memory, too."""
    monkeypatch.setattr(copying, "WINDOW_BLOCKS", LEAF_BLOCKS)
    bench, content = crowded(tmp_path, monkeypatch, packs)
    assert shown(bench) == content
    device = bench.device()
    assert device.map.cells
    known = {layer.id for layer in frozen(bench)}
    monkeypatch.setattr(merging, "MAX_DEAD_LAYERS", 3)
    bench.reclaim()
    left = frozen(bench)
    assert len(left) == 3
    assert bool({layer.id for layer in left} - known) is (packs is packs_all)
    assert any(not layer.packed for layer in left)
    assert shown(bench) == content
    with bench.pool.index.reading() as txn:
        assert {layer for layer, _, _ in cells.ROWS.rows_from(txn, LayerId(0), 0)} == {
            layer.id for layer in left if layer.packed
        }
    run_inline(bench.pool.close_all())
    reopen(bench)
    assert shown(bench) == content
    die(bench.pool)


@pytest.mark.parametrize("reached", ["made", "_copy", "_begin", "_redirect"])
def test_a_merge_of_a_packed_layer_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: str
) -> None:
    bench, content = crowded(tmp_path, monkeypatch, packs_all)
    merger = LayerMerger(bench.pool.registry)
    merge = run_inline(merger.next())
    assert merge is not None
    assert merge.source.packed
    assert not merge.target.packed
    for step in ("_copy", "_begin", "_redirect") if reached != "made" else ():
        getattr(merger, step)(merge)
        if step == reached:
            break
    reopen(bench)
    again = LayerMerger(bench.pool.registry).plan()
    assert again is not None
    assert (again.source.id, again.target.id) == (merge.source.id, merge.target.id)
    assert shown(bench) == content
    bench.reclaim()
    assert len(frozen(bench)) == merging.MAX_DEAD_LAYERS
    assert shown(bench) == content
    die(bench.pool)


def test_nothing_moves_out_of_a_layer_whose_cells_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks with one cell: one of them would be lost."""
    bench, _ = crowded(tmp_path, monkeypatch, packs_all_but_one)
    source = next(layer for layer in frozen(bench) if layer.cells)
    target = next(layer for layer in frozen(bench) if not layer.packed)
    merge = Merge(source.home, source, target)
    with bench.pool.index.reading() as txn:
        number, row = next(cells.ROWS.rows_of(txn, merge.source.id))
    doubled = {**row, min(row): row[max(row)]}
    bench.pool.index.update(lambda txn: cells.ROWS.put(txn, merge.source.id, number, doubled))
    with pytest.raises(DamagedError, match="have one cell"):
        run_inline(LayerMerger(bench.pool.registry).run(merge))
    with bench.pool.registry.catalogue() as catalogue:
        assert Catalogue(catalogue.txn).layer(merge.source.id) == merge.source
    die(bench.pool)
