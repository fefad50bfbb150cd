"""A backup of a pool in use whose volume got other heads since it was frozen for the backup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bockd.drivers.local.backup import Backup
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import cells, packedwrites
from bockd.model import BLOCK_SIZE, LayerId, SnapshotId, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.process import die


class Rotated(Bench):
    """A volume of 100 blocks "b" that is frozen for a backup, and was rotated since."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pool.registry.pack = lambda: True
        self.write(0, b"a", 60)
        self.snapshot("kept")
        self.write(0, b"b", 100)
        self.frozen = self.snapshot("backup-in-progress")
        for start in range(0, 300, 30):
            self.write(start, b"x", 30)
        run_inline(self.device().durability.checkpoint())
        self.write(5, b"y", 20)

    def at_home(self) -> set[LayerId]:
        """The layers at home in the volume's map."""
        with self.pool.registry.catalogue() as catalogue:
            return at_home(catalogue, self.volume)


def at_home(catalogue: Catalogue, volume: VolumeId) -> set[LayerId]:
    return set(catalogue.layers_of(catalogue.volume(volume).map))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rotated]:
    monkeypatch.setattr(cells, "MAX_CELLS", 150)
    monkeypatch.setattr(cells, "ROTATION_CELLS", 70)
    monkeypatch.setattr(packedwrites, "PIECE_CELLS", 32)
    bench = Rotated(tmp_path / "pool")
    yield bench
    die(bench.pool)


def back_up(bench: Rotated, target: Path) -> None:
    backup = Backup(bench.pool.registry.store, target, lambda _done, _total: None)
    backup.begin({bench.volume: bench.frozen})
    backup.copy()
    backup.complete()
    backup.end()


@contextmanager
def opened(root: Path) -> Iterator[LocalPool]:
    background = Background()
    pool = LocalPool.open(root, background.spawn)
    yield pool
    run_inline(pool.close_all())
    background.run()
    pool.release()


def read(pool: LocalPool, volume: VolumeId) -> bytes:
    """The first byte of each block."""
    content = bytearray(SIZE)
    device = run_inline(pool.registry.use_volume(volume)).volume
    run_inline(device.read(0, memoryview(content)))
    pool.registry.leave_volume(volume)
    return bytes(content[::BLOCK_SIZE])


def check(pool: LocalPool) -> None:
    live = frozenset(pool.registry.volumes)
    report = check_open_pool(pool.registry.store, live=live, repair=False)
    assert report.clean, report.problems
    assert (report.stray_blocks, report.hollow_blocks) == (0, 0)


def test_backup_of_a_rotated_volume_has_its_head_alone(bench: Rotated, tmp_path: Path) -> None:
    before = bench.at_home()
    assert len(before) > 2
    back_up(bench, tmp_path / "copy")
    assert bench.at_home() == before  # what is copied is left alone
    with opened(tmp_path / "copy") as copy, copy.registry.catalogue() as catalogue:
        head = catalogue.volume(bench.volume).head
        assert head in before
        assert at_home(catalogue, bench.volume) == {head}
        for layer in before - {head}:
            assert not copy.registry.store.layout.layer_segment(layer, 0).exists()
        check(copy)


def test_restored_volume_that_was_rotated_is_used_on(bench: Rotated, tmp_path: Path) -> None:
    back_up(bench, tmp_path / "copy")
    expected = bytearray(b"b" * 100).ljust(SIZE // BLOCK_SIZE, b"\0")
    volume = bench.volume
    with opened(tmp_path / "copy") as copy:
        assert read(copy, volume) == expected
        run_inline(Reclaimer(copy.registry).run())
        check(copy)
        with copy.index.reading() as txn:
            assert sum(1 for _ in Catalogue(txn).layers()) == 3
        device = run_inline(copy.registry.use_volume(volume)).volume
        run_inline(device.write(50 * BLOCK_SIZE, memoryview(b"n" * BLOCK_SIZE * 20)))
        copy.registry.leave_volume(volume)
        expected[50:70] = b"n" * 20
        SnapshotId(run_inline(copy.create_snapshot(volume, "later")).id)
        assert read(copy, volume) == expected
        check(copy)
    with opened(tmp_path / "copy") as copy:
        assert read(copy, volume) == expected
        check(copy)


def test_second_backup_of_a_rotated_volume_is_whole(bench: Rotated, tmp_path: Path) -> None:
    """Files of layers that an earlier one had, and that it has no more, go."""
    back_up(bench, tmp_path / "copy")
    bench.frozen = bench.snapshot("again")
    back_up(bench, tmp_path / "copy")
    with opened(tmp_path / "copy") as copy:
        assert read(copy, bench.volume) == read(bench.pool, bench.volume)
        check(copy)
