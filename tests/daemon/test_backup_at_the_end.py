"""A backup that begins while the daemon stops."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import trio

from bockd.daemon.backups import Backups
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.pool import LocalPool
from bockd.errors import DeviceError, UnavailableError
from bockd.model import MIB
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Background
from tests.nbd.server.serving import in_trio

VOLUMES = 6
"""To freeze them takes longer than the frontends take to close."""


@in_trio
async def test_a_backup_that_begins_at_the_end_keeps_no_lock(tmp_path: Path) -> None:
    """Reclaim would wait for it, and the daemon for reclaim."""
    runner = StepRunner()
    refused = []
    async with trio.open_nursery() as background:
        pool = LocalPool.open(
            tmp_path / "pool", lambda steps: background.start_soon(runner.run, steps)
        )
        for number in range(VOLUMES):
            await runner.run(pool.create_volume(f"v{number}", 64 * MIB))
        lock = FileLock.acquire(
            pool.registry.store.layout.backup_lock, shared=False, held_message=""
        )
        backups = Backups(pool, pool.registry, runner)

        async def begin() -> None:
            try:
                await backups.begin()
            except UnavailableError as error:
                refused.append(str(error))

        async with trio.open_nursery() as frontends:
            frontends.start_soon(backups.run)
            frontends.start_soon(begin)
            while not pool.registry.maintenance_lock.held:
                await trio.sleep(0)
            frontends.cancel_scope.cancel()
        assert not pool.registry.maintenance_lock.held
        assert len(refused) == 1
        await runner.run(pool.close_all())
    lock.release()
    pool.release()


@in_trio
async def test_an_index_that_cannot_be_read_ends_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What backups have left is looked for in the nursery of the frontends."""

    def fail() -> NoReturn:
        raise DeviceError("reading the index: Input/output error")

    pool = LocalPool.open(tmp_path / "pool", Background().spawn)
    try:
        monkeypatch.setattr(pool.index, "reading", fail)
        with trio.move_on_after(0.1) as scope:
            await Backups(pool, pool.registry, StepRunner()).run()
        assert scope.cancelled_caught
        assert "were not looked for" in caplog.text
    finally:
        monkeypatch.undo()
        pool.release()
