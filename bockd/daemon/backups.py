"""The daemon's part in a backup (drivers.local.backup): each volume is frozen by a snapshot, and
reclaim, merging and scrubbing wait until the copying process has ended.

That process is another one. It holds the pool's lock `backup` all the time, so its death is seen.
"""

from __future__ import annotations

import logging
import secrets

import trio

from bockd.blockstorage.adopting import find_unowned
from bockd.blockstorage.records import Ledger
from bockd.control import FrozenPool
from bockd.drivers.local.backuplog import read_backups
from bockd.drivers.local.format.locks import is_held
from bockd.drivers.local.registry import Registry
from bockd.errors import (
    BockdError,
    DamagedError,
    InUseError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    VolumeFailedError,
)
from bockd.pool.pool import Pool
from bockd.pool.records import name_of
from bockd.pool.reports import BackupRecord
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

PREFIX = "backup-in-progress-"
"""Of the names of snapshots that last as long as a backup, and belong to no tenant."""

POLL_SECONDS = 1.0
"""Between two looks whether who copies is still there. Nothing waits for it but space."""


class Backups:
    """At most one at a time. `run` ends what was begun."""

    def __init__(self, pool: Pool, registry: Registry, runner: StepRunner) -> None:
        self._pool = pool
        self._registry = registry
        self._runner = runner
        self._running: FrozenPool | None = None
        self._begun = trio.Event()
        self._turn = trio.Lock()
        self._over = False
        """Nobody ends backups any more: the daemon stops."""

    async def begin(self) -> FrozenPool:
        """See Control.begin_backup."""
        if not is_held(self._registry.store.layout.backup_lock):
            raise InvalidRequestError("who makes a backup holds the pool's lock for it")
        async with self._turn:
            if self._running is not None:
                raise InUseError("another backup of the pool ends this moment; try again")
            await self._runner.run(self._registry.maintenance_lock.acquire())
            try:
                await self._sweep()
                frozen = await self._freeze()
                self._refuse_at_the_end()
            except BockdError:
                self._registry.maintenance_lock.release()
                # What was frozen before a volume that cannot be would take space until the next
                # backup.
                await self._sweep()
                raise
            except BaseException:
                self._registry.maintenance_lock.release()
                raise
            self._running = frozen
            self._begun.set()
            return self._running

    async def end(self, backup: str) -> None:
        """See Control.end_backup."""
        async with self._turn:
            if self._running is None or self._running.id != backup:
                raise NotFoundError("the daemon does not know this backup; begin again")
            await self._finish()

    def made(self) -> tuple[BackupRecord, ...]:
        """See BackupControl."""
        return read_backups(self._registry.store.layout.root)

    async def run(self) -> None:
        """End backups whose makers are gone; until cancelled."""
        lock = self._registry.store.layout.backup_lock
        await self._sweep()
        try:
            while True:
                await self._begun.wait()
                await trio.sleep(POLL_SECONDS)
                async with self._turn:
                    if self._running is not None and not is_held(lock):
                        log.warning("a backup was given up by who made it")
                        await self._finish()
        finally:
            self._over = True
            if self._running is not None:
                self._running = None
                self._registry.maintenance_lock.release()

    async def _finish(self) -> None:
        self._running = None
        self._begun = trio.Event()
        self._registry.maintenance_lock.release()
        await self._sweep()

    async def _freeze(self) -> FrozenPool:
        """Take a snapshot of each volume. One in the trash that cannot be opened is left out:
        nobody could reopen it, and so it would keep the pool from being backed up at all."""
        with self._pool.nodes() as nodes:
            filling = {found.volume for found in Ledger(nodes.txn).imports()}
            volumes = [v for v in nodes.volumes() if v.id not in filling]
        frozen = FrozenPool(secrets.token_hex(16), {})
        for volume in volumes:
            self._refuse_at_the_end()
            try:
                taken = await self._runner.run(
                    self._pool.create_snapshot(volume.id, f"{PREFIX}{volume.id}")
                )
            except NotFoundError:
                continue  # deleted meanwhile
            except (VolumeFailedError, DamagedError) as error:
                if volume.trashed is None:
                    raise
                log.warning(
                    "%s, in the trash, is left out of the backup: %s", name_of(volume), error
                )
                frozen.left_out[volume.id] = str(error)
                continue
            frozen.snapshots[volume.id] = taken.id
        return frozen

    def _refuse_at_the_end(self) -> None:
        if self._over:
            raise UnavailableError("the daemon is stopping; make the backup without it")

    async def _sweep(self) -> None:
        """Delete the snapshots of a backup that has ended. What cannot be deleted now is found by
        the next backup, and by the next start."""
        try:
            with self._pool.index.reading() as txn:
                _, unowned = find_unowned(txn)
        except BockdError as error:
            log.warning("snapshots of backups that have ended were not looked for: %s", error)
            return
        for record in unowned:
            if record.name.startswith(PREFIX):
                try:
                    await self._runner.run(self._pool.delete_snapshot(record.id))
                except BockdError as error:
                    log.warning("snapshot %s was not deleted: %s", record.name, error)
