"""Operations of one volume interleaved at random, with slow I/O, a tiny map cache, frequent
checkpoints, snapshots, and deaths of the process in the middle.

Checked for every sector: a read sees no value that was surely overwritten before it began; after
a death everything acknowledged is there; a snapshot holds what was acknowledged before it was asked
for and nothing that began after it was done.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import leafcache, room
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, MIB, Extent, SnapshotId, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.amounts import amount
from tests.drivers.local.named import snapshot_named
from tests.drivers.local.process import die
from tests.drivers.local.schedule import History, Scheduler, Span

SIZE = 3 * MIB
HOT = 6 * BLOCK_SIZE
SEEDS = range(amount(10))
OPERATIONS = 60
SECTOR = History.SECTOR


class Run:
    """One random history of one volume, over several lives of the process."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.history = History(SIZE)
        self.snapshots: list[tuple[SnapshotId, int, int]] = []
        self.values = 0
        self.clock = 0
        pool = LocalPool.open(root, Background().spawn)
        self.volume = VolumeId(run_inline(pool.create_volume("v", SIZE)).id)
        pool.release()

    def live(self) -> None:
        """One life: operations begin at random, and it ends in a death or cleanly."""
        scheduler = Scheduler(self.random, now=self.clock)
        self.scheduler = scheduler
        self.pool = LocalPool.open(self.root, scheduler.spawn)
        device = run_inline(self.pool.registry.use_volume(self.volume)).volume
        self.compare(device)
        for _ in range(OPERATIONS):
            self.begin(device)
            scheduler.run(self.random.randrange(12))
        if self.random.random() < 0.5:
            scheduler.run()
            self.compare(device)
        self.clock = scheduler.now + 1
        assert scheduler.errors == []
        scheduler.die()
        die(self.pool)

    def begin(self, device: Volume) -> None:
        kind = self.random.choices(
            ("write", "fast", "read", "status", "trim", "zero", "flush", "checkpoint", "snapshot"),
            (8, 8, 6, 6, 4, 3, 2, 1, 0.6),
        )[0]
        getattr(self, kind)(device)

    def span(self, alignment: int, most: int) -> tuple[int, int]:
        """Half of all operations meet in one small place."""
        room = HOT if self.random.random() < 0.5 else SIZE
        length = self.random.randrange(1, min(room, most) // alignment + 1) * alignment
        return self.random.randrange((room - length) // alignment + 1) * alignment, length

    def data(self, length: int) -> bytes:
        self.values += 1
        return self.values.to_bytes(8, "big") * (length // 8)

    def ending(self, spans: list[Span]) -> None:
        for span in spans:
            span.end = self.scheduler.now

    def write(self, device: Volume) -> None:
        offset, length = self.span(SECTOR, self.random.choice((SECTOR, 8192, 300_000)))
        data = self.data(length)
        spans = self.history.begin(offset, data, self.scheduler.now)
        steps = device.write(offset, memoryview(data))
        self.scheduler.start(steps, lambda: self.ending(spans))

    def fast(self, device: Volume) -> None:
        offset, length = self.span(self.random.choice((SECTOR, BLOCK_SIZE)), 3 * BLOCK_SIZE)
        data = self.data(length)
        self.scheduler.now += 1
        if device.try_write(offset, memoryview(data)):
            spans = self.history.begin(offset, data, self.scheduler.now)
            device.commit()
            self.scheduler.now += 1
            self.ending(spans)

    def trim(self, device: Volume) -> None:
        offset, length = self.span(BLOCK_SIZE, 400_000)
        if self.random.random() < 0.3:  # whole leaves, which are whole groups here
            offset, length = self.random.randrange(3) * MIB, MIB
        if self.random.random() < 0.5:
            self.scheduler.now += 1
            if device.try_trim(offset, length):
                spans = self.history.begin(offset, bytes(length), self.scheduler.now)
                device.commit()
                self.scheduler.now += 1
                self.ending(spans)
                return
        spans = self.history.begin(offset, bytes(length), self.scheduler.now)
        self.scheduler.start(device.trim(offset, length), lambda: self.ending(spans))

    def zero(self, device: Volume) -> None:
        offset, length = self.span(SECTOR, 100_000)
        spans = self.history.begin(offset, bytes(length), self.scheduler.now)
        steps = device.zero(offset, length, allocate=self.random.random() < 0.3)
        self.scheduler.start(steps, lambda: self.ending(spans))

    def read(self, device: Volume) -> None:
        offset, length = self.span(SECTOR, 40_000)
        buffer = bytearray(length)
        began = self.scheduler.now
        self.scheduler.now += 1
        if device.try_read(offset, memoryview(buffer)):
            assert (
                self.history.violations(bytes(buffer), began, self.scheduler.now + 1, offset) == []
            )
            return

        def check() -> None:
            assert self.history.violations(bytes(buffer), began, self.scheduler.now, offset) == []

        self.scheduler.start(device.read(offset, memoryview(buffer)), check)

    def status(self, device: Volume) -> None:
        """What is said to be a hole could be read as zeros."""
        offset, length = self.span(SECTOR, SIZE)
        limit = self.random.choice((1, 2, 100))
        found: list[Extent] = []
        began = self.scheduler.now
        self.scheduler.now += 1

        def check() -> None:
            assert found[0].offset_bytes == offset
            assert 1 <= len(found) <= limit
            now, at = self.scheduler.now + 1, offset
            for extent in found:
                assert extent.offset_bytes == at
                at += extent.length_bytes
                if extent.hole:
                    zeros = bytes(extent.length_bytes)
                    assert self.history.violations(zeros, began, now, extent.offset_bytes) == []
            assert offset < at <= offset + length

        async def ask() -> None:
            found.extend(await device.extents(offset, length, limit))

        at_once = device.try_extents(offset, length, limit)
        if at_once is not None:
            found.extend(at_once)
            check()
        else:
            self.scheduler.start(ask(), check)

    def flush(self, device: Volume) -> None:
        self.scheduler.start(device.flush(), lambda: None)

    def checkpoint(self, device: Volume) -> None:
        self.scheduler.start(device.durability.checkpoint(), lambda: None)

    def snapshot(self, device: Volume) -> None:
        name, began = f"snapshot {self.values}", self.scheduler.now
        self.values += 1
        pool = self.pool

        def remember() -> None:
            ref = snapshot_named(pool, name)
            self.snapshots.append((ref, began, self.scheduler.now))

        self.scheduler.start(pool.create_snapshot(self.volume, name), remember)

    def content(self, reader: Reader) -> bytes:
        found = bytearray(SIZE)
        run_inline(reader.read(0, memoryview(found)))
        return bytes(found)

    def compare(self, device: Volume) -> None:
        now = self.scheduler.now
        assert self.history.violations(self.content(device), now, now + 1) == []

    def finish(self) -> None:
        """Everything is where it belongs, and the pool is whole."""
        background = Background()
        pool = LocalPool.open(self.root, background.spawn)
        run_inline(pool.registry.recover_volumes())
        for snapshot, began, ended in self.snapshots:
            reader = run_inline(pool.registry.use_snapshot(snapshot)).snapshot
            assert self.history.violations(self.content(reader), began, ended) == []
        report = check_open_pool(pool.registry.store, live=frozenset(), repair=True)
        assert report.clean, report.problems
        assert report.hollow_blocks == 0
        assert report.stray_blocks == 0
        device = run_inline(pool.registry.use_volume(self.volume)).volume
        self.compare(device)
        die(pool)


@pytest.mark.parametrize("seed", SEEDS)
def test_interleaved_operations(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 500)
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", 1)
    monkeypatch.setattr(room, "CHECKPOINT_DIRTY_LEAVES", 2)
    run = Run(tmp_path, seed)
    for _ in range(3):
        run.live()
    run.finish()
