"""Settling: which layers are due, what moves, and what goes on meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bockd.drivers.local.format import cells, queue
from bockd.drivers.local.format.catalogue import LAYERS, LayerRecord
from bockd.drivers.local.format.cells import RunCount
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance import copying, leading, merging, resting, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import SettleBatch, Settler
from bockd.drivers.local.pool import LocalPool
from bockd.failpoints import Failpoint
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, MIB, LayerId, SnapshotId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.oracle import Node
from tests.drivers.local.process import die

BLOCKS = SIZE // BLOCK_SIZE
HELD = BLOCKS - 32
"""Of the head: some blocks are still in the first layer."""


class Scattered(Bench):
    """A pool whose volume was filled in order, frozen, and written again at random: into a packed
    head. `node` has what it holds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pool.registry.pack = lambda: True
        self.pool.registry.on_garbage = lambda: self.background.spawn(self.reclaimer.run())
        self.random = Random(5)
        self.node = Node(SIZE)
        self.put(0, BLOCKS)
        self.snapshot("before")
        self.scatter(range(HELD))
        self.settler = Settler(self.pool.registry)

    def put(self, first: int, count: int) -> None:
        data = self.random.randbytes(count * BLOCK_SIZE)
        device = run_inline(self.pool.registry.use_volume(self.volume)).volume
        run_inline(device.write(first * BLOCK_SIZE, memoryview(data)))
        self.pool.registry.leave_volume(self.volume)
        self.node.write(first * BLOCK_SIZE, data)

    def scatter(self, blocks: range) -> None:
        for block in self.random.sample(blocks, len(blocks)):
            self.put(block, 1)

    def frozen(self) -> LayerRecord:
        """Freeze the head; it is due after two looks."""
        with self.pool.registry.catalogue() as catalogue:
            head = catalogue.volume(self.volume).head
        self.snapshot(f"frozen {head}")
        return self.layer(head)

    def layer(self, layer: LayerId) -> LayerRecord:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.layer(layer)

    def exists(self, layer: LayerId) -> bool:
        with self.pool.index.reading() as txn:
            return txn.get(LAYERS, id_key(layer)) is not None

    def layers(self) -> list[LayerRecord]:
        with self.pool.registry.catalogue() as catalogue:
            return list(catalogue.layers())

    def look(self) -> None:
        run_inline(self.settler.look())

    def step(self) -> SettleBatch:
        return run_inline(self.settler.step())

    def settle(self) -> int:
        """All that is due. The number of steps."""
        steps = 1
        while self.step().more:
            steps += 1
            self.background.run()
        self.background.run()
        return steps

    def move_one_window(self) -> None:
        """After a look that found one layer to be due."""
        while not self.step().work_bytes or self.settler._job is None or not self.moving:
            pass

    @property
    def moving(self) -> bool:
        job = self.settler._job
        return job is not None and job.next_leaf > 0

    def content(self, node: int) -> bytes:
        found = bytearray(SIZE)
        if node == self.volume:
            opened = run_inline(self.pool.registry.use_volume(self.volume))
            run_inline(opened.volume.read(0, memoryview(found)))
            self.pool.registry.leave_volume(self.volume)
        else:
            snapshot = run_inline(self.pool.registry.use_snapshot(SnapshotId(node))).snapshot
            run_inline(snapshot.read(0, memoryview(found)))
            self.pool.registry.leave_snapshot(SnapshotId(node))
        return bytes(found)

    def verify(self) -> None:
        assert self.content(self.volume) == self.node.content
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems
        assert report.hollow_blocks == 0

    def stray_blocks(self) -> int:
        return check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        ).stray_blocks

    def reopen(self) -> None:
        """As the next process does after a death."""
        die(self.pool)
        root = self.pool.registry.store.layout.root
        self.background = Background()
        self.pool = LocalPool.open(root, self.background.spawn)
        self.pool.registry.pack = lambda: True
        self.reclaimer = Reclaimer(self.pool.registry)
        self.pool.registry.on_garbage = lambda: self.background.spawn(self.reclaimer.run())
        self.settler = Settler(self.pool.registry)
        run_inline(self.pool.registry.recover_volumes())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scattered]:
    monkeypatch.setattr(copying, "WINDOW_BLOCKS", LEAF_BLOCKS)  # two windows
    monkeypatch.setattr(settling, "MIN_BYTES", 0)
    bench = Scattered(tmp_path)
    yield bench
    die(bench.pool)


# -- what is due ---------------------------------------------------------------------------------


def counted(*runs: int) -> RunCount:
    """Of a layer whose blocks lie in runs of these lengths, each behind a cell that is free."""
    count, cell, block = RunCount(), 0, 0
    row: dict[int, int] = {}
    for run in runs:
        for _ in range(run):
            if block == LEAF_BLOCKS:
                count.add(row)
                row, block = {}, 0
            row[block] = cell
            cell, block = cell + 1, block + 1
        cell += 1
    count.add(row)
    return count


@pytest.mark.parametrize(
    ("runs", "due"),
    [
        ([32] * 8, False),
        ([32] * 7 + [16, 16], True),
        ([32] * 16, False),
        ([32] * 15 + [16, 16], True),
        ([1] * 8, False),  # less than a MiB counts as one
        ([1] * 9, True),
        ([1] * 9 + [247], True),
        ([1] * 9 + [248], False),  # the second MiB has begun
        ([1] * 16 + [241], True),
    ],
)
def test_a_layer_is_due_with_more_than_eight_runs_in_each_mib(
    monkeypatch: pytest.MonkeyPatch, runs: list[int], due: bool
) -> None:
    monkeypatch.setattr(settling, "MIN_BYTES", 0)
    count = counted(*runs)
    assert (count.blocks, count.runs) == (sum(runs), len(runs))
    assert settling._is_due(count) is due


def test_a_layer_that_holds_little_is_left_alone() -> None:
    blocks = settling.MIN_BYTES // BLOCK_SIZE
    assert not settling._is_due(counted(*[1] * (blocks - 1)))
    assert settling._is_due(counted(*[1] * blocks))


def test_a_window_ends_when_enough_leaves_are_to_change(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves that are looked up, and do not show the layer, are counted apart. And what a window
    costs besides its bytes counts as work."""
    monkeypatch.setattr(copying, "WINDOW_BLOCKS", 4 * LEAF_BLOCKS)
    bench.frozen()
    bench.look()
    bench.look()
    assert bench.step().work_bytes == 2 * 1024  # counted
    work = bench.step().work_bytes
    assert work == HELD * BLOCK_SIZE + settling.WINDOW_COST_BYTES + 2 * 1024
    bench.settle()
    bench.scatter(range(HELD))
    bench.frozen()
    monkeypatch.setattr(settling, "WINDOW_CHANGES", 1)
    bench.look()
    bench.look()
    bench.step()
    assert bench.step().work_bytes < work
    bench.settle()
    bench.verify()


def test_blocks_of_other_layers_in_between_end_no_run() -> None:
    count = RunCount()
    count.add({3: 10, 7: 11, 255: 12})
    count.add({200: 13})
    assert (count.blocks, count.runs) == (4, 1)
    count.add({0: 15})
    assert count.runs == 2


def test_a_layer_must_be_frozen_at_two_looks(bench: Scattered) -> None:
    bench.look()
    source = bench.frozen()
    bench.settler.note_frozen()
    bench.look()
    assert bench.step() == SettleBatch(more=False)
    assert bench.exists(source.id)
    bench.look()
    bench.settle()
    assert not bench.exists(source.id)
    bench.verify()


def test_who_has_nothing_to_settle_waits_for_nobody(bench: Scattered) -> None:
    """The daemon asks before each step. Whoever has the maintenance lock may have it for long."""

    async def ask() -> bool:
        async with bench.pool.registry.maintenance_lock:
            return bench.settler.must_wait

    bench.frozen()
    bench.look()
    assert not run_inline(ask()), "it was frozen at one look only"
    bench.look()
    assert run_inline(ask())
    bench.settle()
    assert not run_inline(ask())


def test_what_is_not_due_is_not_counted_again(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.frozen()
    bench.put(0, BLOCKS)  # in order
    in_order = bench.frozen()
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    bench.look()
    bench.look()
    bench.settle()
    assert bench.exists(in_order.id)
    counting: list[LayerId] = []
    rows_between = cells.ROWS.rows_between

    def counted_rows(txn: Any, layer: LayerId, first: int, end: int) -> Any:
        counting.append(layer)
        return rows_between(txn, layer, first, end)

    monkeypatch.setattr(type(cells.ROWS), "rows_between", staticmethod(counted_rows))
    bench.settler.note_frozen()
    for _ in range(3):
        bench.look()
        assert bench.step() == SettleBatch(more=False)
    assert not counting
    # Nor is the index asked while nothing can have become due.
    monkeypatch.setattr(bench.pool.index, "reading", None)
    bench.look()


def test_rows_are_counted_a_few_at_a_time(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "COUNT_ROWS", 1)
    source = bench.frozen()
    bench.look()
    bench.look()
    # Rows, that there are no more, windows, the last walk, all is done.
    assert bench.settle() == 2 + 1 + 2 + 1 + 1
    assert not bench.exists(source.id)


# -- heads ---------------------------------------------------------------------------------------


def test_a_large_head_that_has_come_to_rest_is_frozen_and_settled(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.device()
    head = device.durability.head.id
    run_inline(device.durability.checkpoint())
    monkeypatch.setattr(resting, "HEAD_BYTES", HELD * BLOCK_SIZE)
    bench.look()
    bench.look()
    bench.settle()
    assert device.durability.head.id == head, "it does not hold more than that"
    monkeypatch.setattr(resting, "HEAD_BYTES", HELD * BLOCK_SIZE - 1)
    bench.look()
    bench.settle()
    assert device.durability.head.id == head, "that was the first look that saw it"
    bench.look()
    bench.settle()
    assert device.durability.head.id != head
    assert bench.exists(head)
    bench.look()
    bench.look()
    bench.settle()
    assert not bench.exists(head)
    assert bench.stray_blocks() == 0
    bench.verify()


@pytest.mark.parametrize("growth", [16, 17])
def test_a_head_that_grows_is_left_alone(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch, growth: int
) -> None:
    """By more than a sixteenth from one look to the next."""
    monkeypatch.setattr(resting, "HEAD_BYTES", 64 * BLOCK_SIZE)
    bench.frozen()
    device = bench.device()
    head = device.durability.head.id
    bench.scatter(range(256))
    run_inline(device.durability.checkpoint())
    bench.look()
    for block in range(256, 256 + growth):
        bench.put(block, 1)
    run_inline(device.durability.checkpoint())
    bench.look()
    bench.settle()
    assert (device.durability.head.id == head) is (growth == 17)
    bench.verify()


def test_a_head_whose_blocks_came_in_order_is_counted_once(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "HEAD_BYTES", 64 * BLOCK_SIZE)
    bench.frozen()
    bench.put(0, BLOCKS)
    device = bench.device()
    head = device.durability.head.id
    run_inline(device.durability.checkpoint())
    for _ in range(3):
        bench.look()
        bench.settle()
    assert device.durability.head.id == head
    bench.look()
    assert bench.step() == SettleBatch(more=False)


def test_a_head_that_is_overwritten_is_left_alone(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not grow, but more than a sixteenth of it is written from one look to the next."""
    monkeypatch.setattr(resting, "HEAD_BYTES", 64 * BLOCK_SIZE)
    device = bench.device()
    head = device.durability.head.id
    run_inline(device.durability.checkpoint())
    written = 0
    bench.settler.heads.written_bytes = lambda _volume: written
    for _ in range(4):
        bench.look()
        bench.settle()
        assert device.durability.head.id == head
        written += HELD * BLOCK_SIZE // 16 + 1
    written = HELD * BLOCK_SIZE // 16  # counted anew
    bench.look()
    bench.settle()
    assert device.durability.head.id != head
    bench.verify()


def test_a_head_rests_twice_as_long_if_the_one_before_it_was_written_again(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "HEAD_BYTES", 64 * BLOCK_SIZE)
    monkeypatch.setattr(resting, "MAX_REST_LOOKS", 4)
    device = bench.device()
    waited = []
    for blocks in (HELD, HELD, HELD, HELD, HELD // 2 - 1, HELD):
        bench.scatter(range(blocks))
        run_inline(device.durability.checkpoint())
        head = device.durability.head.id
        looks = 0
        while device.durability.head.id == head:
            bench.look()
            bench.settle()
            looks += 1
        waited.append(looks - 1)
    assert waited == [1, 2, 4, 4, 1, 2]
    bench.verify()


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


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_failure_gives_back_what_was_copied(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source = bench.frozen()
    bench.look()
    bench.look()
    bench.move_one_window()
    space = bench.allocated()
    real = getattr(Layer, what)

    def full(self: Layer, *given: Any) -> None:
        monkeypatch.setattr(Layer, what, real)
        real(self, *given)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Layer, what, full)
    assert bench.step() == SettleBatch(more=True)
    assert "full" in (bench.settler.put_off or "")
    assert bench.allocated() <= space
    assert bench.step() == SettleBatch(more=False)
    bench.verify()
    bench.look()
    bench.settle()
    assert not bench.exists(source.id)
    assert bench.settler.put_off is None
    bench.verify()


def test_nothing_begins_without_room_for_all_of_it(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bench.frozen()
    known = bench.layers()
    free = settling.SPARE_BYTES + HELD * BLOCK_SIZE
    with_free(monkeypatch, free - 1)
    for _ in range(3):
        bench.look()
        bench.settle()
    assert bench.settler.put_off == (
        f"to settle layer {source.id} of volume 'v' 1026 MiB must be free (1024 of them for "
        "others), and 1025 are; delete snapshots or volumes, or enlarge the file system; until "
        "then reading it in order is slow"
    )
    assert bench.layers() == known
    with_free(monkeypatch, free)
    bench.look()
    bench.settle()
    assert not bench.exists(source.id)
    assert bench.settler.put_off is None


def test_where_little_is_free_nothing_is_settled_and_nobody_warned(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = bench.frozen()
    with_free(monkeypatch, settling.SPARE_BYTES - 1)
    with caplog.at_level(logging.INFO, settling.__name__):
        for _ in range(4):
            bench.look()
            bench.settle()
    assert bench.exists(source.id)
    assert bench.settler.put_off is None
    assert [record.levelname for record in caplog.records] == ["INFO"]


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    found = os.statvfs("/")
    values = [*found[:2], free, free, free, *found[5:]]
    values[0] = values[1] = 1
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))


def test_a_layer_that_fails_holds_up_no_other_and_is_tried_less_and_less(
    bench: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = bench.frozen()
    bench.scatter(range(HELD))
    good = bench.frozen()
    reading: list[int] = []
    counting: list[LayerId] = []
    read, rows_between = Layer.read, cells.ROWS.rows_between

    def failing(self: Layer, offset: int, into: memoryview) -> None:
        if self.id == bad.id:
            reading.append(bench.settler._looks)
            raise OSError(errno.EIO, "broken")
        read(self, offset, into)

    def counted_rows(txn: Any, layer: LayerId, first: int, end: int) -> Any:
        counting.append(layer)
        return rows_between(txn, layer, first, end)

    monkeypatch.setattr(settling, "MAX_BACKOFF_LOOKS", 4)
    monkeypatch.setattr(Layer, "read", failing)
    monkeypatch.setattr(type(cells.ROWS), "rows_between", staticmethod(counted_rows))
    for _ in range(18):
        bench.look()
        bench.settle()
    assert not bench.exists(good.id)
    assert bench.exists(bad.id)
    assert reading == [2, 3, 5, 9, 13, 17]
    assert counting.count(bad.id) == 1
    assert f"layer {bad.id}" in (bench.settler.put_off or "")


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


def test_a_layer_that_cannot_be_read_is_told_once(
    bench: Scattered, caplog: pytest.LogCaptureFixture
) -> None:
    source = bench.frozen()
    with bench.pool.index.reading() as txn:
        row = cells.stored_cells(txn, source.id, 1)
    doubled = {**row, 0: row[1]}
    bench.pool.index.update(lambda txn: cells.ROWS.put(txn, source.id, 1, doubled))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            bench.look()
            bench.settle()
    assert bench.exists(source.id)
    assert len(caplog.records) == 1
    assert "is not settled: two blocks" in caplog.text


def test_nobody_is_led_to_what_was_not_copied(
    bench: Scattered, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged index: a descendant shows what its home does not."""
    source = bench.frozen()
    key = leaf_key(source.home, 0)
    with bench.pool.index.reading() as txn:
        payload = txn.get(LEAVES, key)
    assert payload is not None
    leaf = Leaf.decode(payload)
    bench.put(5, 1)
    run_inline(bench.device().durability.checkpoint())  # the volume has a leaf of its own
    other = next(x.id for x in bench.layers())
    leaf.assign(9, 10, other)
    bench.pool.index.update(lambda txn: txn.put(LEAVES, key, leaf.encode()))
    bench.look()
    bench.look()
    bench.settle()
    assert bench.exists(source.id)
    assert "shows blocks of layer" in caplog.text
    assert bench.content(bench.volume) == bench.node.content


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


def test_a_leaf_that_still_shows_a_layer_keeps_it(
    bench: Scattered, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged index, in a leaf of a descendant where no window came by."""
    source = bench.frozen()
    run_inline(bench.pool.extend_volume(bench.volume, SIZE + 8 * MIB))
    with bench.pool.registry.catalogue() as catalogue:
        record = catalogue.volume(bench.volume)
    payload = Leaf.uniform(source.id).encode()
    bench.pool.index.update(lambda txn: txn.put(LEAVES, leaf_key(record.map, 5), payload))
    bench.look()
    bench.look()
    bench.settle()
    assert bench.exists(source.id)
    assert "shows blocks of layer" in caplog.text


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
