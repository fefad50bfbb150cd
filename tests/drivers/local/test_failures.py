"""Failures of the index and of volumes: what they leave, whatever order things come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.pool import LocalPool
from bockd.errors import DamagedError, NoSpaceError, ReadOnlyFileSystemError, VolumeFailedError
from bockd.index import ballast
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.named import snapshot_named
from tests.drivers.local.process import die


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def reading_after_death(root: Path, bench: Bench, snapshot: str, block: int) -> tuple[bytes, bytes]:
    """What the volume and a snapshot hold in a block once the process has died; a pool in order."""
    die(bench.pool)
    bench.background = Background()
    bench.pool = LocalPool.open(root, bench.background.spawn)
    found = snapshot_named(bench.pool, snapshot)
    return bench.block(bench.volume, block), bench.block(found, block)


@pytest.mark.parametrize("committed", [False, True])
def test_a_commit_that_reports_failure_is_looked_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """LMDB may fail a commit whose last write was done: the volume goes on with what the index
    says, be it the new head or the old one, and nothing written afterwards is lost."""
    bench.write(0, b"a", 4)
    commit = LmdbIndex.update

    def fail(index: LmdbIndex, change: Callable[[Any], Any]) -> Any:
        monkeypatch.setattr(LmdbIndex, "update", commit)
        if committed:
            commit(index, change)
        raise DamagedError("the index cannot be used: mdb_txn_commit: Input/output error")

    monkeypatch.setattr(LmdbIndex, "update", fail)
    if committed:
        bench.snapshot("s")
    else:
        with pytest.raises(DamagedError):
            bench.snapshot("s")
        bench.snapshot("s")
    bench.write(1, b"b")
    bench.reclaim()
    bench.write(2, b"c")
    assert reading_after_death(tmp_path, bench, "s", 1) == (b"b", b"a")
    assert bench.block(bench.volume, 2) == b"c"
    bench.reclaim()


def test_a_volume_is_refused_when_nobody_knows_what_a_commit_has_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"a")

    def fail(*_: object) -> Any:
        raise DamagedError("the index cannot be used")

    with monkeypatch.context() as broken:
        broken.setattr(LmdbIndex, "update", fail)
        broken.setattr(LmdbIndex, "reading", fail)
        with pytest.raises(DamagedError):
            run_inline(bench.device().durability.checkpoint())
        with pytest.raises(DamagedError):
            run_inline(
                bench.device().durability.quiesced_commit(
                    lambda _txn, record: (record, None), lambda _record, _result: None
                )
            )
    with pytest.raises(VolumeFailedError):
        bench.write(0, b"b")


def test_a_volume_that_failed_before_its_first_change_acknowledges_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush has nothing to sync and a trim of less than a block nothing to do. They are refused
    all the same, like everything after a failure (design, D3)."""

    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    device = run_inline(bench.pool.registry.use_volume(bench.volume)).volume
    with monkeypatch.context() as broken:

        def fail(*_: object) -> Any:
            broken.setattr(LmdbIndex, "reading", fail)  # nobody can look up what it has done
            raise NoSpaceError("full")

        broken.setattr(LmdbIndex, "update", fail)
        with pytest.raises(NoSpaceError):
            run_inline(device.write(0, memoryview(b"a" * BLOCK_SIZE)))
    for operation in (
        device.flush,
        lambda: device.trim(1, 1),
        lambda: device.zero(1, 1, allocate=True),
    ):
        with pytest.raises(VolumeFailedError, match="bock volume reopen"):
            run_inline(operation())


def declare_failed(bench: Bench, reason: str) -> None:
    bench.pool.registry.volumes[bench.volume].volume.durability.failure.declare(reason)


def failed_record(bench: Bench) -> str | None:
    with bench.pool.registry.catalogue() as catalogue:
        return catalogue.volume(bench.volume).failed


def test_a_failure_that_is_recorded_late_does_not_undo_a_reopening(bench: Bench) -> None:
    bench.write(0, b"a")
    declare_failed(bench, "the disk is broken")
    run_inline(bench.pool.reopen_volume(bench.volume))
    bench.background.run()
    assert failed_record(bench) is None
    bench.write(0, b"b")
    assert bench.block(bench.volume, 0) == b"b"


def test_a_failure_is_recorded_before_the_volume_is_closed(bench: Bench) -> None:
    bench.write(0, b"a")
    declare_failed(bench, "the disk is broken")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    assert failed_record(bench) == "the disk is broken"
    bench.background.run()
    run_inline(bench.pool.reopen_volume(bench.volume))
    assert failed_record(bench) is None


def test_the_ballast_is_taken_back_when_trims_have_made_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"a", SIZE // BLOCK_SIZE)
    given = bench.pool.registry.store.ballast
    given.release()

    def trim(first: int) -> None:
        run_inline(bench.device().trim(first * BLOCK_SIZE, 8 * BLOCK_SIZE))
        bench.background.run()

    with monkeypatch.context() as tight:
        tight.setattr(ballast, "ROOM_BYTES", 1 << 60)
        trim(0)
    assert given.given
    trim(8)
    assert not given.given
    assert bench.pool.registry.store.layout.ballast.stat().st_size == ballast.BALLAST_BYTES


def test_what_a_failed_volume_refuses_does_not_keep_it_from_being_reopened(bench: Bench) -> None:
    """Writes and trims that were refused have left the gate."""
    bench.write(0, b"a")
    declare_failed(bench, "the disk is broken")
    for refused in (
        bench.device().trim(0, BLOCK_SIZE),
        bench.device().write(0, memoryview(bytes(BLOCK_SIZE))),
    ):
        with pytest.raises(VolumeFailedError):
            run_inline(refused)
    while bench.pool.registry.volumes[bench.volume].users:
        bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.reopen_volume(bench.volume))
    bench.write(0, b"b")
    assert bench.block(bench.volume, 0) == b"b"


def test_a_failure_is_recorded_as_soon_as_the_index_can_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that failed a sync fails the record of that, too; a death must not undo it."""
    bench.write(0, b"a")

    def fail(*_: object) -> Any:
        raise DamagedError("the index cannot be used")

    with monkeypatch.context() as broken:
        broken.setattr(LmdbIndex, "update", fail)
        declare_failed(bench, "the disk is broken")
        bench.background.run()
        with pytest.raises(VolumeFailedError):
            bench.write(0, b"b")
        bench.background.run()
    assert failed_record(bench) is None
    with pytest.raises(VolumeFailedError):
        bench.write(0, b"b")
    bench.background.run()
    assert failed_record(bench) == "the disk is broken"


def test_a_failure_is_recorded_after_the_volume_was_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"a")

    def fail(*_: object) -> Any:
        raise DamagedError("the index cannot be used")

    with monkeypatch.context() as broken:
        broken.setattr(LmdbIndex, "update", fail)
        declare_failed(bench, "the disk is broken")
        run_inline(bench.pool.registry.close_idle_volume(bench.volume))
        bench.background.run()
    assert failed_record(bench) is None
    with pytest.raises(VolumeFailedError):
        bench.device()
    bench.background.run()
    assert failed_record(bench) == "the disk is broken"


def test_the_ballast_is_taken_back_when_others_have_made_room(bench: Bench) -> None:
    """Without a trim or a deletion: the next checkpoint looks."""
    bench.write(0, b"a")
    bench.pool.registry.store.ballast.release()
    run_inline(bench.device().durability.checkpoint())
    assert not bench.pool.registry.store.ballast.given
    assert bench.pool.registry.store.layout.ballast.stat().st_size == ballast.BALLAST_BYTES


def test_what_cannot_be_closed_stays_open_and_is_closed_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index takes nothing: an idle volume can be read as before, and written when it does."""
    bench.write(0, b"a")

    def fail(*_: object) -> Any:
        raise NoSpaceError("full")

    with monkeypatch.context() as full:
        full.setattr(LmdbIndex, "update", fail)
        with pytest.raises(NoSpaceError):
            run_inline(bench.pool.registry.close_idle_volume(bench.volume))
        assert bench.block(bench.volume, 0) == b"a"
    bench.write(1, b"b")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    assert not bench.pool.registry.volumes
    assert bench.block(bench.volume, 0) == b"a"
    assert bench.block(bench.volume, 1) == b"b"


def test_a_volume_that_failed_on_a_read_only_file_system_can_be_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"a")

    def fail(*_: object) -> Any:
        raise ReadOnlyFileSystemError("changing the index")

    with monkeypatch.context() as full:
        full.setattr(LmdbIndex, "update", fail)
        declare_failed(bench, "read-only file system")
        bench.background.run()
        with pytest.raises(ReadOnlyFileSystemError):
            run_inline(bench.pool.registry.close_idle_volume(bench.volume))
        assert bench.block(bench.volume, 0) == b"a"
        with pytest.raises(VolumeFailedError):
            bench.write(0, b"b")
        bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.reopen_volume(bench.volume))
    assert bench.block(bench.volume, 0) == b"a"


def test_a_volume_that_is_only_read_changes_nothing_on_disk(bench: Bench) -> None:
    bench.write(0, b"a")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    layout = bench.pool.registry.store.layout
    before = layout.index_data.read_bytes(), layout.journal_segments()
    assert bench.block(bench.volume, 0) == b"a"
    reader = run_inline(bench.pool.registry.use_volume(bench.volume)).volume
    run_inline(reader.flush())
    bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    assert (layout.index_data.read_bytes(), layout.journal_segments()) == before


def test_a_first_change_that_fails_leaves_the_volume_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the commit was done or not: it is looked up."""
    bench.write(0, b"a")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    commit = LmdbIndex.update
    for committed in (False, True):

        def fail(index: LmdbIndex, change: Callable[[Any], Any], done: bool = committed) -> Any:
            monkeypatch.setattr(LmdbIndex, "update", commit)
            if done:
                commit(index, change)
            raise NoSpaceError("full")

        monkeypatch.setattr(LmdbIndex, "update", fail)
        if not committed:
            with pytest.raises(NoSpaceError):
                bench.write(0, b"b")
            assert bench.block(bench.volume, 0) == b"a"
            assert not bench.pool.registry.store.layout.journal_segments()
        else:
            bench.write(0, b"b")
    bench.reclaim()
    die(bench.pool)
    bench.background = Background()
    bench.pool = LocalPool.open(bench.pool.registry.store.layout.root, bench.background.spawn)
    assert bench.block(bench.volume, 0) == b"b"


def test_a_sync_that_fails_in_any_way_is_final(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was to cover counts as covered already, so that a later flush would cover nothing."""
    device = bench.device()
    bench.write(0, b"a")

    def cannot() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(device.durability.head, "sync", cannot)
    for _ in range(2):
        with pytest.raises(VolumeFailedError, match="can't start new thread"):
            run_inline(device.flush())


def test_a_sync_that_nobody_heard_the_end_of_is_final(bench: Bench) -> None:
    """It may have failed since, and the next one would not report that."""
    device = bench.device()
    bench.write(0, b"a")
    steps = device.flush()
    steps.send(None)
    steps.close()
    assert device.durability.failed == "syncing the head layer was abandoned"
    assert not device.durability.flusher.turn.held
    with pytest.raises(VolumeFailedError, match="abandoned"):
        run_inline(device.flush())


def test_a_sync_that_could_not_be_tried_is_owed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.device()
    bench.write(0, b"a")
    head, synced = device.durability.head, list[bool]()

    def cannot() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(head, "syncing", cannot)
        with pytest.raises(MemoryError):
            run_inline(device.flush())
    sync = head.sync
    monkeypatch.setattr(head, "sync", lambda: synced.append(sync() is None))
    run_inline(device.flush())
    assert synced == [True]
