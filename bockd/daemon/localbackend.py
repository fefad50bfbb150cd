"""The local pool as the daemon runs it (daemon.backend): opening, reclaim, scrubbing, backups."""

from __future__ import annotations

import trio

from bockd.config import Settings
from bockd.daemon.backups import Backups
from bockd.daemon.retrying import Retrying
from bockd.daemon.scrubbing import Scrubbing
from bockd.drivers.local.access import Spawn
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import Pool
from bockd.model import GIB
from bockd.runtime.steprunner import StepRunner


def open_local_pool(settings: Settings, spawn: Spawn) -> Pool:
    """Open the pool in the data directory, creating it in a new or empty place. Blocks. Raises what
    `Registry.open` raises."""
    map_size_bytes = settings.pool.index_map_gib * GIB
    return Pool.open(settings.data_dir, spawn, map_size_bytes=map_size_bytes)


class LocalBackend:
    """Implements Backend."""

    def __init__(
        self, pool: Pool, settings: Settings, runner: StepRunner, retrying: Retrying
    ) -> None:
        self.pool = pool
        self.scrubbing = Scrubbing(pool.registry, settings.checksums)
        self.backups = Backups(pool, runner)
        self._runner = runner
        self._retrying = retrying
        self._reclaimer = Reclaimer(pool.registry)
        pool.registry.on_garbage = self.begin_background

    async def prepare(self) -> None:
        """Recover the volumes that were not closed."""
        await self._runner.run(self.pool.registry.recover_volumes())

    def begin_background(self) -> None:
        """Begin reclaim, which ends when nothing is left to reclaim."""
        self._retrying.start("reclaim", self._reclaim)

    async def _reclaim(self) -> None:
        await self._reclaimer.run()
        if self._reclaimer.put_off is not None:
            raise self._reclaimer.put_off

    async def run(self) -> None:
        """Scrub, and end backups whose makers are gone, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.scrubbing.run)
            nursery.start_soon(self.backups.run)

    async def close(self) -> None:
        """End reclaim after the batch under way, and close all volumes and snapshots."""
        self._reclaimer.stop()
        with trio.CancelScope(shield=True):
            await self._runner.run(self.pool.close_all())

    def waiting(self) -> tuple[str, ...]:
        """Return whether scrubbing was put off. What else waits is Retrying's."""
        put_off = self.scrubbing.put_off
        return () if put_off is None else (f"reading frozen layers: {put_off}",)
