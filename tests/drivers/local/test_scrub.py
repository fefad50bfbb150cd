"""Checksums of what snapshots hold: written once, kept right, and what they find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import checksums, queue
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.integrity import scrub
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance.merging import LayerMerger
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.runs import find_runs
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import Bench, gather_layers
from tests.drivers.local.bitflip import flip_bit
from tests.drivers.local.process import die


class ScrubBench(Bench):
    """A bench whose frozen layers are read and verified when a test says so."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.scrubber = Scrubber(self.pool.registry)

    def read_all(self) -> int:
        """The first reading to its end; the number of blocks read."""
        blocks = 0
        while (batch := run_inline(self.scrubber.read_on())).more:
            blocks += batch.read_bytes // BLOCK_SIZE
        return blocks

    def verify_all(self) -> int:
        """A whole pass; the number of damaged blocks."""
        run_inline(self.scrubber.begin_pass())
        while run_inline(self.scrubber.verify_on()).more:
            pass
        with self.pool.index.reading() as txn:
            status = scrub_status(txn)
        assert not status.under_way
        return len(status.damaged)

    def reclaim_damaged(self) -> None:
        """`reclaim`, where `check` is not content."""
        run_inline(self.reclaimer.run())
        self.background.run()

    def layer_of(self, node: VolumeId | SnapshotId, block: int) -> LayerId:
        device = self.reader(node)
        run_inline(device.loader.load(block, block + 1))
        layer = device.layers.slots[find_runs(device.map, block, block + 1)[0][2]]
        assert layer is not None
        return layer.id

    def reader(self, node: VolumeId | SnapshotId) -> Reader:
        if node == self.volume:
            opened = run_inline(self.pool.registry.use_volume(self.volume))
            self.pool.registry.leave_volume(self.volume)
            return opened.volume
        snapshot = run_inline(self.pool.registry.use_snapshot(SnapshotId(node)))
        self.pool.registry.leave_snapshot(SnapshotId(node))
        return snapshot.snapshot

    def flip(self, layer: LayerId, block: int) -> None:
        """Flip a bit on the disk; a second time flips it back."""
        flip_bit(self.pool.registry.store.layout.layer_segment(layer, 0), block * BLOCK_SIZE + 1000)

    def assert_unreadable(self, node: VolumeId | SnapshotId, block: int) -> None:
        device, buffer = self.reader(node), memoryview(bytearray(BLOCK_SIZE))
        run_inline(device.loader.load(block, block + 1))
        with pytest.raises(DamagedError):
            device.try_read(block * BLOCK_SIZE, buffer)
        with pytest.raises(DamagedError):
            run_inline(device.read(block * BLOCK_SIZE, buffer))
        with pytest.raises(DamagedError):
            run_inline(device.read((block - 1) * BLOCK_SIZE, memoryview(bytearray(3 * BLOCK_SIZE))))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ScrubBench]:
    bench = ScrubBench(tmp_path)
    yield bench
    die(bench.pool)


def test_what_is_frozen_is_read_once(bench: ScrubBench) -> None:
    bench.write(3, b"A", 5)
    bench.write(300, b"B")
    assert bench.read_all() == 0
    bench.snapshot("first")
    assert bench.read_all() == 6
    bench.write(3, b"C", 2)
    bench.snapshot("second")
    assert bench.read_all() == 2
    assert bench.read_all() == 0
    assert bench.verify_all() == 0
    report = check_open_pool(
        bench.pool.registry.store, live=frozenset(bench.pool.registry.volumes), repair=False
    )
    assert (report.clean, report.checksums) == (True, 8)


def test_a_flipped_bit_is_never_given_as_data(bench: ScrubBench) -> None:
    bench.write(8, b"A", 4)
    snapshot = bench.snapshot("kept")
    bench.read_all()
    layer = bench.layer_of(snapshot, 9)
    for node in (bench.volume, snapshot):
        assert bench.block(node, 9) == b"A"
    bench.flip(layer, 9)
    assert bench.verify_all() == 1
    with bench.pool.index.reading() as txn:
        [damaged] = scrub_status(txn).damaged
    assert (damaged.layer, damaged.offset_bytes) == (layer, 9 * BLOCK_SIZE)
    assert (damaged.volumes, damaged.snapshots) == (("v",), ("kept",))
    for node in (bench.volume, snapshot):
        bench.assert_unreadable(node, 9)
        assert bench.block(node, 10) == b"A"
    report = check_open_pool(
        bench.pool.registry.store, live=frozenset(bench.pool.registry.volumes), repair=False
    )
    assert report.damaged_blocks == 1
    assert not report.clean


def test_damage_is_remembered_by_who_opens_later(bench: ScrubBench) -> None:
    bench.write(8, b"A", 4)
    snapshot = bench.snapshot("kept")
    bench.read_all()
    bench.flip(bench.layer_of(snapshot, 9), 9)
    bench.verify_all()
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    run_inline(bench.pool.registry.close_idle_snapshot(snapshot))
    for node in (bench.volume, snapshot):
        bench.assert_unreadable(node, 9)


def test_an_overwritten_block_is_in_order_where_it_was_overwritten(bench: ScrubBench) -> None:
    bench.write(8, b"A", 4)
    snapshot = bench.snapshot("kept")
    bench.read_all()
    bench.flip(bench.layer_of(snapshot, 9), 9)
    bench.verify_all()
    device = bench.device()
    with pytest.raises(DamagedError):  # the rest of the block is not known
        run_inline(device.write(9 * BLOCK_SIZE + 512, memoryview(b"part")))
    bench.write(9, b"N")
    assert bench.block(bench.volume, 9) == b"N"
    bench.assert_unreadable(snapshot, 9)
    assert bench.verify_all() == 1
    bench.delete(snapshot)
    bench.reclaim()
    assert bench.verify_all() == 0


def test_what_is_put_right_is_read_again(bench: ScrubBench) -> None:
    bench.write(8, b"A", 4)
    snapshot = bench.snapshot("kept")
    bench.read_all()
    layer = bench.layer_of(snapshot, 9)
    bench.flip(layer, 9)
    assert bench.verify_all() == 1
    bench.write(20, b"X")  # the leaf has changes that the index does not have
    bench.flip(layer, 9)
    assert bench.verify_all() == 0
    for node in (bench.volume, snapshot):
        assert bench.block(node, 9) == b"A"


def test_a_read_from_the_disk_is_verified(bench: ScrubBench) -> None:
    """Before any pass has come there; its page, which is in memory then, is not served either."""
    bench.write(8, b"A", 4)
    snapshot = bench.snapshot("kept")
    bench.read_all()
    bench.flip(bench.layer_of(snapshot, 9), 9)
    assert bench.block(bench.volume, 10) == b"A"
    device = bench.reader(snapshot)
    with pytest.raises(DamagedError):
        run_inline(device.read(9 * BLOCK_SIZE + 700, memoryview(bytearray(10))))
    for node in (bench.volume, snapshot):
        bench.assert_unreadable(node, 9)
    with bench.pool.index.reading() as txn:
        assert len(checksums.all_damage(txn)) == 1


def test_checksums_and_damage_move_with_merged_blocks(
    bench: ScrubBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(200, b"F", 6)
    gather_layers(bench, 9, monkeypatch)
    kept = bench.snapshot("kept")
    monkeypatch.setattr(scrub, "BATCH_LEAVES", 1)
    for _ in range(6):  # not all are read before they move
        run_inline(bench.scrubber.read_on())
    victim = bench.layer_of(kept, 1)
    bench.flip(victim, 1)
    bench.verify_all()
    bench.assert_unreadable(kept, 1)
    bench.reclaim_damaged()
    assert bench.layer_of(kept, 2) != victim
    for node in (bench.volume, kept):
        bench.assert_unreadable(node, 1)
        assert bench.block(node, 2) == b"A"
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    run_inline(bench.pool.registry.close_idle_snapshot(kept))
    for node in (bench.volume, kept):
        bench.assert_unreadable(node, 1)
    bench.read_all()
    assert bench.verify_all() == 1
    with bench.pool.index.reading() as txn:
        known = sum(len(sums) for *_, sums in checksums.ROWS.rows_from(txn, LayerId(0), 0))
    assert known == 6 + 9 * 5


def test_half_merged_layer_may_have_the_checksum_of_a_hole_that_was_moved(
    bench: ScrubBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of zeros that is a hole, as a lost page or a sparse copy leaves it."""
    bench.write(200, b"F", 6)
    gather_layers(bench, 10, monkeypatch)
    bench.read_all()
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None
    source, target = merge.source.id, merge.target.id

    def hollow(txn: Transaction) -> int:
        sums = checksums.stored_sums(txn, source, 0)
        sums[min(sums)] = checksums.crc_of(memoryview(bytes(BLOCK_SIZE)))
        checksums.ROWS.put(txn, source, 0, sums)
        return min(sums)

    block = bench.pool.index.update(hollow)
    layer = Layer.of(bench.pool.registry.store.layout, merge.source, writable=True)
    layer.punch(block * BLOCK_SIZE, BLOCK_SIZE)
    layer.close()

    def problems() -> tuple[str, ...]:
        live = frozenset(bench.pool.registry.volumes)
        return check_open_pool(bench.pool.registry.store, live=live, repair=False).problems

    assert problems() == ()
    merger._copy(merge)
    merger._begin(merge)
    merger._redirect(merge)
    assert problems() == ()
    bench.pool.index.update(lambda txn: queue.end_merge(txn, source))
    assert problems() != ()
    bench.pool.index.update(lambda txn: queue.begin_settling(txn, source, target))
    assert problems() == ()
    bench.pool.index.update(lambda txn: queue.end_settling(txn, source))
    bench.pool.index.update(lambda txn: queue.begin_merge(txn, source, target))
    merge = merger.plan()
    assert merge is not None
    assert merge.source.id == source
    run_inline(merger.run(merge))
    assert problems() == ()


def test_what_moves_before_it_is_read_is_read_where_it_went(
    bench: ScrubBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(200, b"F", 6)
    gather_layers(bench, 10, monkeypatch)
    bench.read_all()
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None

    def unread(txn: Transaction) -> None:
        checksums.forget_some(txn, merge.source.id, 10)
        checksums.forget_reading(txn, merge.source.id)

    bench.pool.index.update(unread)
    run_inline(merger.run(merge))
    assert bench.read_all() == 5
    assert bench.verify_all() == 0


def test_a_block_given_up_while_it_is_read_gets_no_checksum(
    bench: ScrubBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"A", 8)
    gone = bench.snapshot("gone")
    bench.delete(gone)
    bench.reclaim()  # the frozen layer is at home with the volume now
    bench.write(0, b"B", 3)
    read = scrub._read_leaves

    def meanwhile(*args: Any) -> Any:
        found = read(*args)
        run_inline(bench.pool.registry.checkpoint(bench.volume))
        return found

    monkeypatch.setattr(scrub, "_read_leaves", meanwhile)
    run_inline(bench.scrubber.read_on())
    with bench.pool.index.reading() as txn:
        [(_, _, sums)] = checksums.ROWS.rows_from(txn, LayerId(0), 0)
    assert set(sums) == {3, 4, 5, 6, 7}
    bench.reclaim()
    assert bench.verify_all() == 0


def test_a_pass_goes_on_after_a_death(bench: ScrubBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "BATCH_LEAVES", 1)
    bench.write(0, b"A", 300)
    bench.snapshot("kept")
    run_inline(bench.scrubber.read_on())
    root = bench.pool.registry.store.layout.root
    die(bench.pool)
    bench.pool = type(bench.pool).open(root, bench.background.spawn)
    bench.scrubber = Scrubber(bench.pool.registry)
    assert bench.read_all() == 300 - 256
    run_inline(bench.scrubber.begin_pass())
    run_inline(bench.scrubber.verify_on())
    die(bench.pool)
    bench.pool = type(bench.pool).open(root, bench.background.spawn)
    bench.scrubber = Scrubber(bench.pool.registry)
    assert run_inline(bench.scrubber.verify_on()).read_bytes == (300 - 256) * BLOCK_SIZE
    with bench.pool.index.reading() as txn:
        status = scrub_status(txn)
    assert (status.verified_bytes, status.leaves_done) == (300 * BLOCK_SIZE, 2)
