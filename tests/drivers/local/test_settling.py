"""Settling: what moves, and what goes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import cells, queue
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance import leading, merging, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import SettleBatch, Settler
from bockd.failpoints import Failpoint
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import SIZE
from tests.drivers.local.scattered import BLOCKS, HELD, Scattered, scattered


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scattered]:
    yield from scattered(tmp_path, monkeypatch)


# -- what moves ----------------------------------------------------------------------------------


def test_settled_blocks_are_the_same_for_all_and_lie_in_order(bench: Scattered) -> None:
    """For who has them open, and for who opens them later; in one raw layer, and no space more."""
    source = bench.frozen()
    with bench.pool.registry.catalogue() as catalogue:
        snapshots = [snapshot.id for snapshot in catalogue.snapshots()]
    held = {node: bench.content(node) for node in (bench.volume, *snapshots)}
    clone = run_inline(bench.pool.create_volume("clone", None, snapshots[-1])).id
    space = bench.allocated()
    bench.look()
    bench.look()
    bench.move_one_window()
    assert bench.exists(source.id)
    bench.verify()
    bench.scatter(range(250, 262))  # a new leaf, copied from one that leads to both
    held[bench.volume] = bytes(bench.node.content)
    for node, content in held.items():
        assert bench.content(node) == content
    bench.settle()
    assert not bench.exists(source.id)
    for node, content in held.items():
        assert bench.content(node) == content
    opened = run_inline(bench.pool.registry.use_volume(clone)).volume
    found = bytearray(SIZE)
    run_inline(opened.read(0, memoryview(found)))
    assert found == held[snapshots[-1]]
    bench.verify()
    [settled] = [x for x in bench.layers() if x.home == source.home]
    assert not settled.packed
    with bench.pool.index.reading() as txn:
        assert not cells.ROWS.has_rows(txn, source.id)
    run_inline(bench.device().heads.finish_punching())
    # The rest of the new head's blocks: it was empty.
    assert bench.allocated() <= space + 16 * BLOCK_SIZE
    bench.reopen()
    bench.verify()


def test_checksums_and_what_has_none_move_along(bench: Scattered) -> None:
    scrubber = Scrubber(bench.pool.registry)
    bench.frozen()
    bench.look()
    bench.look()
    run_inline(scrubber.read_on())
    bench.move_one_window()
    while run_inline(scrubber.read_on()).more:
        pass
    bench.settle()
    while run_inline(scrubber.read_on()).more:
        pass
    run_inline(scrubber.begin_pass())
    while run_inline(scrubber.verify_on()).more:
        pass
    with bench.pool.index.reading() as txn:
        status = scrub_status(txn)
    assert not status.damaged
    assert status.verified_bytes == SIZE + HELD * BLOCK_SIZE
    bench.verify()


def test_a_layer_moves_into_the_oldest_raw_one_of_its_home(bench: Scattered) -> None:
    """Here into the volume's first one, after the snapshot that it belonged to was deleted."""
    source = bench.frozen()
    with bench.pool.registry.catalogue() as catalogue:
        before = next(s.id for s in catalogue.snapshots())
    bench.delete(before)
    bench.background.run()
    [raw] = [x for x in bench.layers() if x.home == source.home and not x.packed]
    known = {x.id for x in bench.layers()}
    bench.look()
    bench.look()
    bench.settle()
    assert {x.id for x in bench.layers()} == known - {source.id}
    assert bench.layer(raw.id) == raw
    assert bench.stray_blocks() == 0
    bench.verify()


def test_a_layer_of_a_smaller_volume_is_not_moved_into(bench: Scattered) -> None:
    """What is at home there was made before the volume grew."""
    run_inline(bench.pool.extend_volume(bench.volume, SIZE + MIB))
    source = bench.frozen()
    with bench.pool.registry.catalogue() as catalogue:
        before = next(s.id for s in catalogue.snapshots())
    bench.delete(before)
    bench.background.run()
    [raw] = [x for x in bench.layers() if x.home == source.home and not x.packed]
    assert raw.size_bytes < source.size_bytes
    bench.look()
    bench.look()
    bench.settle()
    made = [x for x in bench.layers() if x.home == source.home and not x.packed]
    assert source.size_bytes in {x.size_bytes for x in made}
    assert not bench.exists(source.id)


# -- what goes on meanwhile ----------------------------------------------------------------------


@pytest.mark.parametrize("windows", [0, 1])
def test_a_layer_that_is_deleted_is_not_moved_on(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch, windows: int
) -> None:
    """Its snapshot goes, and the volume has overwritten all of it: so does the layer."""
    source = bench.frozen()
    bench.put(0, BLOCKS)
    run_inline(bench.device().durability.checkpoint())
    bench.look()
    bench.look()
    for _ in range(windows):
        bench.move_one_window()
        monkeypatch.setattr(settling, "RUNS_PER_MIB", 256)
    with bench.pool.registry.catalogue() as catalogue:
        last = [snapshot.id for snapshot in catalogue.snapshots()][-1]
    run_inline(bench.pool.delete_snapshot(last))
    while bench.step().more:  # not before reclaim has begun
        pass
    assert bench.exists(source.id)
    bench.background.run()
    assert bench.exists(source.id) == bool(windows)
    bench.look()
    bench.settle()  # to its end, though what is left is not due
    assert not bench.exists(source.id)
    assert bench.stray_blocks() == 0
    bench.verify()


def test_a_layer_that_moves_home_is_moved_on_there(bench: Scattered) -> None:
    source = bench.frozen()
    bench.look()
    bench.look()
    bench.move_one_window()
    bench.put(300, 100)
    with bench.pool.registry.catalogue() as catalogue:
        last = [snapshot.id for snapshot in catalogue.snapshots()][-1]
    bench.delete(last)
    bench.background.run()
    assert bench.layer(source.id).home != source.home
    bench.settle()
    assert not bench.exists(source.id)
    assert bench.stray_blocks() == 0
    bench.verify()


def test_what_is_overwritten_while_it_is_copied_leaves_nothing(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotated head, whose home is the volume's own map."""
    device = bench.device()
    source = device.durability.head.id
    run_inline(bench.settler._rotations.freeze_head(bench.volume, source))
    copy = Settler._copy_window

    def copy_window(self: Settler, *given: Any) -> None:
        copy(self, *given)
        monkeypatch.setattr(Settler, "_copy_window", copy)
        bench.put(10, 20)
        run_inline(device.durability.checkpoint())

    monkeypatch.setattr(Settler, "_copy_window", copy_window)
    bench.look()
    bench.look()
    bench.settle()
    assert not bench.exists(source)
    assert bench.stray_blocks() == 0
    bench.verify()


def test_punches_that_are_queued_come_first(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they lie something is moved to."""
    source = bench.frozen()
    with bench.pool.registry.catalogue() as catalogue:
        before = next(s.id for s in catalogue.snapshots())
    run_inline(bench.pool.delete_snapshot(before))
    punch = Reclaimer._punches

    async def none(_: Reclaimer) -> None:
        pass

    monkeypatch.setattr(Reclaimer, "_punches", none)
    bench.background.run()
    with bench.pool.index.reading() as txn:
        assert queue.punched_layers(txn)
    bench.look()
    bench.look()
    assert not bench.step().busy  # it is counted
    for _ in range(settling.PATIENCE):
        assert bench.step().busy
    assert bench.step() == SettleBatch(more=True)
    assert bench.step() == SettleBatch(more=False)
    monkeypatch.setattr(Reclaimer, "_punches", punch)
    bench.look()
    bench.settle()
    assert not bench.exists(source.id)
    assert bench.stray_blocks() == 0
    bench.verify()


def test_each_window_may_wait_for_punches(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "PATIENCE", 1)
    source = bench.frozen()
    bench.look()
    bench.look()
    waits = iter((True, False, True, False, True, False))
    monkeypatch.setattr(Settler, "_waits_for_punches", lambda *_: next(waits))
    bench.settle()
    assert not bench.exists(source.id)


def test_a_window_looks_at_its_own_leaves_alone(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a descendant has: others wait for its transaction. And the last walk goes on in
    pieces, each in a transaction that only reads."""
    many = 300
    run_inline(bench.pool.extend_volume(bench.volume, SIZE + many * LEAF_BLOCKS * BLOCK_SIZE))
    source = bench.frozen()
    with bench.pool.registry.catalogue() as catalogue:
        record = catalogue.volume(bench.volume)
    payload = Leaf.uniform(LayerId(1)).encode()

    def grow(txn: Any) -> None:
        for number in range(8, 8 + many):
            txn.put(LEAVES, leaf_key(record.map, number), payload)

    bench.pool.index.update(grow)
    looked = 0
    decode = Leaf.decode

    def counted(payload: bytes) -> Leaf:
        nonlocal looked
        looked += 1
        return decode(payload)

    lead, most = leading.redirect_window, []

    def measured(*given: Any, **named: Any) -> None:
        nonlocal looked
        looked = 0
        lead(*given, **named)
        most.append(looked)

    monkeypatch.setattr(settling, "redirect_window", measured)
    monkeypatch.setattr(settling, "WALK_LEAVES", 16)
    monkeypatch.setattr(Leaf, "decode", staticmethod(counted))
    bench.look()
    bench.look()
    steps = bench.settle()
    assert len(most) == 2
    assert max(most) <= 4
    assert steps > many // 16
    assert not bench.exists(source.id)


STAGES = (
    Failpoint.SETTLE_COPIED,
    Failpoint.SETTLE_SYNCED,
    Failpoint.SETTLE_LED,
    Failpoint.SETTLE_MOVED,
    Failpoint.MERGE_ALIASED,
    Failpoint.MERGE_DONE,
)


class DeadError(Exception):
    """At a failpoint."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_move_that_was_interrupted_goes_on(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch, stage: Failpoint
) -> None:
    source = bench.frozen()
    run_inline(bench.device().flush())
    bench.look()
    bench.look()

    def hit(point: Failpoint) -> None:
        if point is stage:
            raise DeadError

    for module in (settling, leading, merging):
        monkeypatch.setattr(module, "hit", hit)
    monkeypatch.setattr(settling, "_give_back", lambda *_: None)
    with pytest.raises(DeadError):
        bench.settle()
    for module in (settling, leading, merging):
        monkeypatch.setattr(module, "hit", lambda _: None)
    bench.reopen()
    bench.verify()
    run_inline(bench.reclaimer.run())
    bench.look()
    bench.look()
    bench.settle()
    assert not bench.exists(source.id)
    assert bench.stray_blocks() == 0
    bench.verify()
