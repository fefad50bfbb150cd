"""A volume in the trash that has failed does not keep the pool from being backed up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from bockd.blockstorage.contract import TenantId, Volume
from bockd.blockstorage.trashcontract import TrashRules
from bockd.cli.backup import back_up
from bockd.cli.checking import check_pool
from bockd.daemon.backups import Backups
from bockd.drivers.local.backup import Backup, BackupReport
from bockd.drivers.local.format.locks import FileLock
from bockd.errors import VolumeFailedError
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store, first_byte, running, write_first_byte

BLOCK = bytes([6]) * 4096


def fail(store: Store, tenant: TenantId, *, in_trash: bool) -> Volume:
    """A volume with a snapshot, which has failed with something in its journal."""
    volume = store.volume(tenant, name="bad")
    write_first_byte(store, volume.id, 5)
    store.snapshot(tenant, volume)
    opened = run_inline(store.pool.registry.use_volume(volume.id))
    run_inline(opened.volume.write(0, memoryview(BLOCK)))
    opened.volume.durability.failure.declare("the disk is gone")
    store.background.run()
    store.pool.registry.leave_volume(volume.id)
    if in_trash:
        store.run(lambda s: s.delete_volume(tenant, volume.id))
    store.restart()
    return volume


@contextmanager
def held(store: Store) -> Iterator[None]:
    lock = FileLock.acquire(
        store.pool.registry.store.layout.backup_lock, shared=False, held_message="held"
    )
    try:
        yield
    finally:
        lock.release()


def online(store: Store, target: Path) -> BackupReport:
    """As a daemon and `bockd backup` make one together."""
    backups = Backups(store.pool, store.pool.registry, StepRunner())
    with held(store):
        frozen = trio.run(backups.begin)
        made = Backup(store.pool.registry.store, target, lambda _done, _total: None)
        made.begin(frozen.snapshots, frozen.left_out)
        made.copy()
        trio.run(backups.end, frozen.id)
        report = made.complete()
        made.end()
    return report


def offline(store: Store, target: Path) -> BackupReport:
    store.die()
    try:
        return back_up(store.root, target, lambda _done, _total: None)
    finally:
        store.start()


@pytest.mark.parametrize("back_up_pool", [online, offline])
def test_what_has_failed_in_the_trash_is_left_out(
    tmp_path: Path, back_up_pool: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are whole, in the trash and beside it; and it is not taken for whole."""
    assert callable(back_up_pool)
    target = tmp_path / "backup"
    with running(tmp_path / "pool") as store:
        store.trash = TrashRules(keep_seconds=3600)
        store.restart()
        tenant = store.tenant("acme")
        live, sound = store.volume(tenant), store.volume(tenant)
        for number, volume in enumerate((live, sound)):
            write_first_byte(store, volume.id, 7 + number)
        store.run(lambda s: s.delete_volume(tenant, sound.id))
        bad = fail(store, tenant, in_trash=True)
        assert back_up_pool(store, target).left_out == ("bad",)
        assert back_up_pool is offline or "bad, in the trash, is left out" in caplog.text
    assert check_pool(target, repair=False).clean
    with running(target) as copy:
        assert first_byte(copy, live.id) == 7
        for one in (sound, bad):
            copy.run(lambda s, one=one: s.trash.restore(tenant, one.id))  # type: ignore[misc]
        assert first_byte(copy, sound.id) == 8
        with pytest.raises(VolumeFailedError, match="a backup of the pool does not have what it"):
            first_byte(copy, bad.id)
        copy.run(lambda s: s.reopen_volume(tenant, bad.id))
        assert first_byte(copy, bad.id) == 5  # what its snapshot has


def test_what_has_failed_and_can_be_reopened_is_not_left_out(tmp_path: Path) -> None:
    with running(tmp_path / "pool") as store:
        tenant = store.tenant("acme")
        bad = fail(store, tenant, in_trash=False)
        with pytest.raises(VolumeFailedError, match=f"'bock volume reopen {bad.id}' accepts that"):
            online(store, tmp_path / "backup")
