"""Settling: which layers and heads are due."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.cells import RunCount
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.maintenance import copying, resting, settling
from bockd.drivers.local.maintenance.settling import SettleBatch
from bockd.model import BLOCK_SIZE, LayerId
from bockd.runtime.steps import run_inline
from tests.drivers.local.scattered import BLOCKS, HELD, Scattered, scattered


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scattered]:
    yield from scattered(tmp_path, monkeypatch)


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
