"""One volume with packed heads, driven at random: cells that are emptied, punched and used again,
heads that are rotated, frozen and settled, deaths that leave strays. Content against a plain model,
and `check` after each step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bockd.drivers.local.format.cells import ROWS
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance import copying, resting, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import cells, leafcache, packedwrites
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, LayerId, SnapshotId
from bockd.runtime.steps import Background, run_inline
from tests.amounts import amount
from tests.drivers.local.oracle import Node
from tests.drivers.local.process import die

BLOCKS = 300
SIZE = BLOCKS * BLOCK_SIZE

places = st.one_of(st.integers(0, 12), st.integers(250, 262), st.integers(0, BLOCKS - 1))
counts = st.one_of(st.integers(1, 3), st.integers(1, 20), st.integers(1, BLOCKS))
parts = st.sampled_from((0, 0, 0, 512, 1000))
"""Bytes by which an end lies within a block."""


class PackedMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="bockd-test-"))
        self.patches = [
            mock.patch.object(cells, "MIN_FREE_RUN", 2),
            mock.patch.object(cells, "MAX_CELLS", 1500),
            mock.patch.object(cells, "ROTATION_CELLS", 1000),
            mock.patch.object(packedwrites, "PIECE_CELLS", 257),
            mock.patch.object(leafcache, "GROUP_LEAVES", 1),
            mock.patch.object(copying, "WINDOW_BLOCKS", 256),
            mock.patch.object(settling, "RUNS_PER_MIB", 1),
            mock.patch.object(settling, "MIN_BYTES", 0),
            mock.patch.object(resting, "HEAD_BYTES", 20 * BLOCK_SIZE),
        ]
        for patch in self.patches:
            patch.start()
        self.fill = 0
        self.unswept = False
        """The head was recovered, and not swept since."""
        self.forgotten = False
        """Nor will it be, in this life."""
        self.start()
        self.volume = run_inline(self.pool.create_volume("v", SIZE)).id
        self.node = Node(SIZE)
        self.frozen: dict[SnapshotId, Node] = {}

    def start(self) -> None:
        self.background = Background()
        self.pool = LocalPool.open(self.root, self.background.spawn)
        self.pool.registry.pack = lambda: True
        reclaimer = Reclaimer(self.pool.registry)
        self.pool.registry.on_garbage = lambda: self.background.spawn(reclaimer.run())
        self.settler = Settler(self.pool.registry)
        self.pool.registry.on_frozen = self.settler.note_frozen

    def teardown(self) -> None:
        try:
            self.background.run()
            self.compare()
        finally:
            for patch in self.patches:
                patch.stop()
            die(self.pool)
            shutil.rmtree(self.root)

    @property
    def device(self) -> Volume:
        opened = run_inline(self.pool.registry.use_volume(self.volume))
        self.pool.registry.leave_volume(self.volume)
        return opened.volume

    def span(self, first: int, count: int, before: int, after: int) -> tuple[int, int]:
        start, end = first * BLOCK_SIZE + before, (first + count) * BLOCK_SIZE - after
        return start, min(end, SIZE) - start

    def data(self, length: int) -> bytes:
        self.fill += 1
        return (self.fill.to_bytes(4, "big") * (length // 4 + 1))[:length]

    @initialize()
    def freeze_the_raw_head(self) -> None:
        self.write(0, BLOCKS, 0, 0, fast=False)
        self.snapshot()

    @rule(first=places, count=counts, before=parts, after=parts, fast=st.booleans())
    def write(self, first: int, count: int, before: int, after: int, fast: bool) -> None:
        offset, length = self.span(first, count, before, after)
        data, device = self.data(length), self.device
        if not (fast and device.try_write(offset, memoryview(data))):
            run_inline(device.write(offset, memoryview(data)))
        device.commit()
        self.node.write(offset, data)

    @rule(first=places, count=counts, fast=st.booleans())
    def trim(self, first: int, count: int, fast: bool) -> None:
        offset, length = self.span(first, count, 0, 0)
        device = self.device
        if not (fast and device.try_trim(offset, length)):
            run_inline(device.trim(offset, length))
        device.commit()
        self.node.trim(offset, length)

    @rule(first=places, count=counts, before=parts, after=parts, allocate=st.booleans())
    def zero(self, first: int, count: int, before: int, after: int, allocate: bool) -> None:
        offset, length = self.span(first, count, before, after)
        run_inline(self.device.zero(offset, length, allocate=allocate))
        self.node.zero(offset, length, allocate=allocate)

    @rule()
    def flush(self) -> None:
        run_inline(self.device.flush())

    @rule()
    def checkpoint(self) -> None:
        run_inline(self.device.durability.checkpoint())

    @rule()
    def turn_over(self) -> None:
        """All that was trimmed may be used again."""
        run_inline(self.device.heads.finish_punching())
        self.flush()
        self.write(0, 1, 0, 0, fast=True)  # so that there is something to seal
        self.checkpoint()

    @rule()
    def work_in_background(self) -> None:
        _ = self.device  # opened: that is when its head is to be swept
        self.background.run()
        self.unswept = False

    @precondition(lambda self: len(self.frozen) < 3)
    @rule()
    def snapshot(self) -> None:
        name = f"s{self.fill}-{len(self.frozen)}-{os.urandom(4).hex()}"
        snapshot = run_inline(self.pool.create_snapshot(self.volume, name)).id
        self.frozen[SnapshotId(snapshot)] = self.node.copy()
        self.forgotten = False  # of another head

    @precondition(lambda self: self.frozen)
    @rule(choice=st.integers(0, 5))
    def delete_snapshot(self, choice: int) -> None:
        snapshot = list(self.frozen)[choice % len(self.frozen)]
        run_inline(self.pool.delete_snapshot(snapshot))
        del self.frozen[snapshot]

    @rule()
    def rotate(self) -> None:
        if self.device.durability.cells is not None:
            head = self.device.durability.head.id
            with mock.patch.object(cells, "ROTATION_CELLS", cells.MAX_CELLS - 1):
                run_inline(self.pool.registry.rotate(self.volume))
            if self.device.durability.head.id != head:  # there was something in it
                self.forgotten = False

    @rule(looks=st.sampled_from((0, 1, 2, 2)), steps=st.sampled_from((0, 1, 2, 3, 20)))
    def settle(self, looks: int, steps: int) -> None:
        """A head that is due gives way to another one."""
        head = self.head
        for _ in range(looks):
            run_inline(self.settler.look())
        for _ in range(steps):
            run_inline(self.settler.step())
        if self.head != head:
            self.forgotten = False

    @property
    def head(self) -> LayerId:
        with self.pool.registry.catalogue() as catalogue:
            return catalogue.volume(self.volume).head

    @rule(first=places)
    def scatter(self, first: int) -> None:
        """Blocks that lie in another order than they have, in what is frozen then."""
        for block in (first + 4, first + 2, first + 3, first):
            self.write(block % BLOCKS, 1, 0, 0, fast=True)
        if len(self.frozen) < 3:
            self.snapshot()

    @rule()
    def close(self) -> None:
        run_inline(self.pool.registry.close_idle_volume(self.volume))
        self.forgotten |= self.unswept

    @rule(strays=st.integers(0, 3))
    def be_killed(self, strays: int) -> None:
        """And leave data in cells that nothing names, as a write under way does."""
        durability = self.device.durability
        if durability.cells is not None:
            head = durability.head
            for _ in range(strays):
                cell = durability.cells.take(1)
                os.pwrite(head.descriptors[0], b"!" * BLOCK_SIZE, cell * BLOCK_SIZE)
        die(self.pool)
        self.start()
        self.forgotten |= self.unswept
        self.unswept = True

    @rule()
    def compare(self) -> None:
        found = bytearray(SIZE)
        run_inline(self.device.read(0, memoryview(found)))
        assert found == self.node.content
        for snapshot, node in self.frozen.items():
            reader = run_inline(self.pool.registry.use_snapshot(snapshot)).snapshot
            run_inline(reader.read(0, memoryview(found)))
            self.pool.registry.leave_snapshot(snapshot)
            assert found == node.content
            run_inline(self.pool.registry.close_idle_snapshot(snapshot))

    @invariant()
    def check_finds_nothing(self) -> None:
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems

    @rule()
    def nothing_else_takes_space(self) -> None:
        """When all is punched and swept, the head has data in named cells alone."""
        self.work_in_background()
        run_inline(self.device.heads.finish_punching())
        self.checkpoint()
        durability = self.device.durability
        if durability.cells is None or self.forgotten:
            return
        head = durability.head
        with self.pool.index.reading() as txn:
            named = {cell for _, row in ROWS.rows_of(txn, head.id) for cell in row.values()}
        for low, high in head.data_ranges(0, head.length_bytes()):
            assert set(range(low // BLOCK_SIZE, -(-high // BLOCK_SIZE))) <= named


PackedMachine.TestCase.settings = settings(
    max_examples=amount(20),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestPackedHeads = PackedMachine.TestCase
