"""Settling: what fails or is damaged holds up no other and is told."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAVES, Leaf, leaf_key
from bockd.drivers.local.maintenance import settling
from bockd.drivers.local.maintenance.settling import SettleBatch
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import SIZE
from tests.drivers.local.scattered import HELD, Scattered, scattered


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scattered]:
    yield from scattered(tmp_path, monkeypatch)


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
