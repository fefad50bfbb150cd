"""The local pool as the daemon runs it (daemon.backend): opening, reclaim, scrubbing, settling,
backups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import trio

from bockd.config import Settings
from bockd.daemon.backups import Backups
from bockd.daemon.datadir import refuse_gateway
from bockd.daemon.retrying import Retrying
from bockd.daemon.scrubbing import Scrubbing
from bockd.daemon.settling import Settling
from bockd.drivers.local.figures import figures
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.newpool import check_start
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.usage import measure_usage
from bockd.model import GIB, MIB, VolumeId
from bockd.pool.figures import Figure
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn


class LocalBackend:
    """The `Backend` of the local pool; its class methods make it a `BackendKind`."""

    gateways = None
    cluster = None
    token_key = None

    def __init__(
        self, pool: LocalPool, settings: Settings, runner: StepRunner, retrying: Retrying
    ) -> None:
        self.room_of = f"the file system of {settings.data_dir}"
        self.pool = pool
        self.scrubbing = Scrubbing(pool.registry, settings.checksums)
        self._settler = Settler(pool.registry)
        self._settling = Settling(self._settler, settings.checksums.rate_mib * MIB)
        self.backups = Backups(pool, pool.registry, runner)
        self.usage = partial(measure_usage, pool.registry)
        self._runner = runner
        self._retrying = retrying
        self._reclaimer = Reclaimer(pool.registry)
        pool.registry.on_garbage = self.begin_background
        pool.registry.on_frozen = self._on_frozen

    @staticmethod
    def check_start(settings: Settings, *, is_default: bool) -> None:
        """See BackendKind, and `newpool.check_start` for what is raised; InvalidRequestError also
        for the data directory of a gateway to a pool in Ceph."""
        refuse_gateway(settings.data_dir)
        check_start(settings.data_dir, is_default=is_default)

    @classmethod
    async def open(
        cls, settings: Settings, spawn: Spawn, runner: StepRunner, retrying: Retrying
    ) -> Self:
        """See BackendKind. The pool is in the data directory."""
        map_size_bytes = settings.pool.index_map_gib * GIB

        def open_pool() -> LocalPool:
            return LocalPool.open(settings.data_dir, spawn, map_size_bytes=map_size_bytes)

        pool = await trio.to_thread.run_sync(open_pool)
        return cls(pool, settings, runner, retrying)

    async def prepare(self) -> None:
        """Recover the volumes that were not closed."""
        await self._runner.run(self.pool.registry.recover_volumes())

    def begin_background(self) -> None:
        """Begin reclaim, which ends when nothing is left to reclaim."""
        self._retrying.start("reclaim", self._reclaim)

    def _on_frozen(self) -> None:
        self.scrubbing.note_frozen()
        self._settler.note_frozen()

    async def _reclaim(self) -> None:
        await self._reclaimer.run()
        if self._reclaimer.put_off is not None:
            raise self._reclaimer.put_off

    async def run(self, written_bytes: Callable[[VolumeId], int]) -> None:
        """Scrub, settle, and end backups whose makers are gone, until cancelled."""
        self._settler.heads.written_bytes = written_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.scrubbing.run)
            nursery.start_soon(self._settling.run)
            nursery.start_soon(self.backups.run)

    def begin_end(self) -> None:
        """Do nothing: `close` ends what is under way."""

    async def close(self) -> None:
        """End reclaim after the batch under way, and close all volumes and snapshots."""
        self._reclaimer.stop()
        with trio.CancelScope(shield=True):
            await self._runner.run(self.pool.close_all())

    def release(self) -> None:
        """Give the pool up."""
        self.pool.release()

    def new_data(self) -> str:
        """Return in what pieces new data is written: what the file system prefers."""
        return str(self.pool.registry.store.write_pieces)

    def waiting(self) -> tuple[str, ...]:
        """Return why scrubbing and settling are put off, if they are. `Retrying` lists what else
        waits."""
        put_off = (
            ("reading frozen layers", self.scrubbing.put_off),
            ("settling layers", self._settling.put_off),
        )
        return tuple(f"{what}: {why}" for what, why in put_off if why is not None)

    def figures(self) -> list[Figure]:
        """Return what checkpoints, reclaim and scrubbing have done and found."""
        return figures(self.pool.registry)
