"""A pool whose volume has a packed head that was written at random, for tests of settling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from bockd.drivers.local.format.catalogue import LAYERS, LayerRecord
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance import copying, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import SettleBatch, Settler
from bockd.drivers.local.pool import LocalPool
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, LayerId, SnapshotId
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


def scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scattered]:
    """Yield one whose every layer may be due, and whose windows are small."""
    monkeypatch.setattr(copying, "WINDOW_BLOCKS", LEAF_BLOCKS)  # two windows
    monkeypatch.setattr(settling, "MIN_BYTES", 0)
    bench = Scattered(tmp_path)
    yield bench
    die(bench.pool)
