"""Merging layers while other things go on: each case once lost data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import queue
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_SHIFT, LEAVES
from bockd.drivers.local.maintenance import merging
from bockd.drivers.local.maintenance.merging import LayerMerger
from bockd.drivers.local.volume import leafcache
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Blocking, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench, gather_layers, resume, stepwise
from tests.drivers.local.process import die


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def test_a_punch_queued_at_the_last_moment_misses_what_is_moved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of a dead layer is overwritten, and the head that has it now is frozen and merged
    into that very layer: the punch of the old block must not take the new one."""
    device = bench.device()
    bench.write(200, b"T", 3)
    gather_layers(bench, 8, monkeypatch)
    run_inline(device.durability.checkpoint())
    planning = LayerMerger.plan.__name__
    reclaiming = stepwise(bench.reclaimer.run())
    for step in reclaiming:
        if isinstance(step, Blocking) and getattr(step.call, "__name__", "") == planning:
            break
    bench.write(200, b"N")
    snapshot = bench.snapshot("precious")
    for _ in reclaiming:
        pass
    bench.reclaim()
    assert bench.block(bench.volume, 200) == b"N"
    assert bench.block(snapshot, 200) == b"N"


def test_a_map_made_during_the_merge_is_redirected_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches a snapshot is taken and its volume copies a leaf that still refers to
    the layer that is about to go."""
    monkeypatch.setattr(merging, "BATCH_LEAVES", 1)
    bench.write(256, b"S", 2)
    device = bench.device()
    gather_layers(bench, 9, monkeypatch)
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None
    index = bench.pool.index
    update: Callable[[Any], Any] = index.update

    def meanwhile(change: Callable[[Any], Any]) -> object:
        result = update(change)
        monkeypatch.setattr(index, "update", update)
        bench.snapshot("precious")
        bench.write(300, b"W")
        run_inline(device.durability.checkpoint())
        return result

    monkeypatch.setattr(index, "update", meanwhile)
    run_inline(merger.run(merge))
    bench.reclaim()
    bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    assert bench.block(bench.volume, 256) == b"S"
    assert bench.block(bench.volume, 300) == b"W"


@pytest.mark.parametrize("known", [False, True])
def test_a_load_under_way_does_not_bring_a_merged_layer_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    bench.write(256, b"S", 2)
    gather_layers(bench, 9, monkeypatch)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    device = bench.device()
    buffer = bytearray(BLOCK_SIZE)
    if known:
        run_inline(device.read(256 * BLOCK_SIZE, memoryview(buffer)))
        monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
        device.map.mark_clean(1 << 60)
        assert device.map.find(256 >> LEAF_SHIFT) is None
    reading = device.read(256 * BLOCK_SIZE, memoryview(buffer))
    step = reading.send(None)
    assert isinstance(step, Blocking)
    loaded = step.call()
    reclaiming = bench.reclaimer.run()
    waiting = reclaiming.send(None)
    while isinstance(waiting, Blocking):
        waiting = reclaiming.send(waiting.call())
    resume(reading, loaded)
    assert buffer == b"S" * BLOCK_SIZE
    assert waiting.fired
    run_inline(reclaiming)
    assert bench.block(bench.volume, 256) == b"S"
    run_inline(device.write(256 * BLOCK_SIZE, memoryview(b"p" * 512)))
    run_inline(device.read(256 * BLOCK_SIZE, memoryview(buffer)))
    assert buffer == b"p" * 512 + b"S" * (BLOCK_SIZE - 512)


def test_a_leaf_stored_and_evicted_during_a_walk_is_not_overlooked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for what is no hole means the index and memory; a leaf moved from here to there
    between the two looks must be found."""
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 1)
    device = bench.device()
    bench.write(256, b"D")
    device.map.mark_clean(0)  # evicts what is clean: there are cold leaves, so the index is asked
    assert device.map.find(0) is None
    looking = device.loader.present(0, 2)
    step = looking.send(None)
    assert isinstance(step, Blocking)
    stored = step.call()
    run_inline(device.durability.checkpoint())
    with pytest.raises(StopIteration) as ended:
        looking.send(stored)
    assert ended.value.value == [1]


def test_nothing_merges_at_a_home_that_is_half_folded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage may have stopped its folding: its child has some of its leaves, and shows blocks that
    it does not show itself any more, so they would not be copied."""
    gather_layers(bench, 9, monkeypatch)
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None

    def kill(txn: Transaction) -> None:
        catalogue = Catalogue(txn)
        catalogue.put_map(replace(catalogue.map(merge.home), dead=True))
        catalogue.new_map(merge.home, SIZE)

    bench.pool.index.update(kill)
    assert merger.plan() is None


def test_an_interrupted_merge_goes_on_where_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home already leads to the copies, a descendant does not: it must come to lead to the same
    ones, although another layer has become the best place by now."""
    bench.write(240, b"F", 6)
    gather_layers(bench, 9, monkeypatch)
    snapshot = bench.snapshot("kept")
    bench.write(250, b"C")
    run_inline(bench.device().durability.checkpoint())
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None
    redirect = merging._redirect_batch

    def interrupted(txn: Transaction, member: MapId, *args: Any, **named: Any) -> Any:
        if member != merge.home:
            raise InterruptedError
        return redirect(txn, member, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "_redirect_batch", interrupted)
        with pytest.raises(InterruptedError):
            run_inline(merger.run(merge))
    bench.reclaim()
    for number in range(9):
        for node in (bench.volume, snapshot):
            assert bench.block(node, number * 8) == bytes([65 + number])


def empty_layer(bench: Bench) -> LayerId:
    """A frozen layer that holds nothing."""
    bench.write(0, b"a")
    bench.snapshot("first")
    bench.write(0, b"b")
    bench.snapshot("second")
    bench.write(0, b"c")
    device = bench.device()
    run_inline(device.durability.checkpoint())
    with bench.pool.index.reading() as txn:
        [record] = list(Catalogue(txn).layers())[1:2]
    opened = Layer.of(bench.pool.registry.store.layout, record, writable=True)
    opened.punch(0, SIZE)
    opened.close()
    bench.pool.index.update(
        lambda txn: [txn.delete(LEAVES, key) for key in list(txn.keys(LEAVES, b"", b"\xff" * 20))]
    )
    return record.id


def begin_merge(bench: Bench, source: LayerId, target: LayerId) -> None:
    bench.pool.index.update(lambda txn: queue.begin_merge(txn, source, target))


def end_merge(bench: Bench, source: LayerId) -> None:
    bench.pool.index.update(lambda txn: queue.end_merge(txn, source))


def test_a_layer_is_not_forgotten_in_the_middle_of_a_merge(bench: Bench) -> None:
    """It was, when it was empty at the moment: each later plan then failed."""
    layer = empty_layer(bench)
    other = LayerId(1)
    assert other != layer
    for source, target in ((layer, other), (other, layer)):
        begin_merge(bench, source, target)
        bench.reclaimer._forget_if_empty(layer)
        with bench.pool.index.reading() as txn:
            assert txn.get(LAYERS, id_key(layer)) is not None
        end_merge(bench, source)
    bench.reclaimer._forget_if_empty(layer)
    with bench.pool.index.reading() as txn:
        assert txn.get(LAYERS, id_key(layer)) is None


@pytest.mark.parametrize("merge", [(1, 99), (99, 1)])
def test_a_merge_of_a_layer_that_is_no_more_is_given_up(
    bench: Bench, merge: tuple[int, int]
) -> None:
    source, target = map(LayerId, merge)
    bench.write(0, b"a")
    begin_merge(bench, source, target)
    assert LayerMerger(bench.pool.registry).plan() is None
    with bench.pool.index.reading() as txn:
        assert queue.begun_merges(txn) == []
