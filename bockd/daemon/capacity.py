"""The space that the pool has: measured on request, and watched while the daemon runs.

Volumes are thin, so more space may be promised than there is, and other programs may fill the file
system as well. The daemon therefore looks at the file system at intervals, and logs each threshold
that is passed, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import trio

from bockd.blockstorage.records import Ledger
from bockd.control import PoolInfo
from bockd.daemon.walking import count_nodes, walk
from bockd.errors import BockdError, DamagedError
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool
from bockd.pool.reports import Shares
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
"""Between two looks: a disk that fills at 1 GiB/s gains 20 GiB meanwhile."""

SLACK_PERCENT = 2
"""A threshold is armed again when the file system is so far below it, so that one who hovers
around it is told once."""


class Threshold:
    """Tells when one of some rising thresholds is passed, once for each."""

    def __init__(self, percents: Sequence[int]) -> None:
        self._percents = percents
        self._passed = 0
        """How many of them have been told."""

    def passed(self, percent: float) -> int | None:
        """Return the highest threshold that `percent` has passed since the last call that returned
        one; None when no further one is passed."""
        while self._passed and percent < self._percents[self._passed - 1] - SLACK_PERCENT:
            self._passed -= 1
        reached = sum(percent >= one for one in self._percents)
        if reached <= self._passed:
            return None
        self._passed = reached
        return self._percents[reached - 1]


class Capacity:
    """The space of one pool."""

    def __init__(
        self,
        pool: Pool,
        runner: StepRunner,
        directory: Path,
        room_of: str,
        warn_percent: tuple[int, ...],
    ) -> None:
        """`room_of` says in words whose room `pool.room` is."""
        self._pool = pool
        self._runner = runner
        self._directory = directory
        self._room_of = room_of
        self._warn_percent = warn_percent
        self._space = Threshold(warn_percent)
        self._files = Threshold(warn_percent)

    async def run(self) -> None:
        """Look at the file system at intervals, until cancelled."""
        told: str | None = None
        while self._warn_percent:
            try:
                self.warn(await trio.to_thread.run_sync(self._pool.room))
                told = None
            except BockdError as error:
                if told != str(error):
                    log.warning("the room of %s is not known: %s", self._room_of, error)
                told = str(error)
            await trio.sleep(LOOK_SECONDS)

    def warn(self, found: os.statvfs_result) -> None:
        """Log a threshold that has been passed since the last look."""
        free = found.f_bavail * found.f_frsize
        percent = filled_percent(found)
        if self._space.passed(percent) is not None:
            log.warning(
                "%s is %d %% full, %d MiB are free: when it is full, writes "
                "fail with 'no space left on device'; delete snapshots or volumes, empty the "
                "trash, or make it larger ('bock pool show' says who has how much)",
                self._room_of,
                percent,
                free >> 20,
            )
        percent = filled_files_percent(found)
        if self._files.passed(percent) is not None:
            log.warning(
                "%s has used %d %% of its files (inodes), %d are free: without "
                "one no volume or snapshot can be made",
                self._room_of,
                percent,
                found.f_favail,
            )

    async def measure(self) -> PoolInfo:
        """Measure the pool's space, as `bock pool show` shows it. Raises BockdError."""
        with self._pool.nodes() as nodes:
            ledger = Ledger(nodes.txn)
            filling = {found.volume for found in ledger.imports()}
            images = frozenset(found.snapshot for found in ledger.images())
        counts = await count_nodes(self._pool)
        sizes = await walk(
            self._pool,
            Nodes.volumes,
            lambda _, page: [(one.id, one.size_bytes) for one in page],
        )
        volumes = [size for volume, size in sizes if volume not in filling]
        frozen = await walk(self._pool, Nodes.snapshots, lambda _, page: [one.id for one in page])
        snapshots = sum(one not in images for one in frozen)
        shares: Shares | None
        try:
            shares = await self._runner.run(self._pool.shares(images))
        except DamagedError as error:
            log.warning("what the pool's data belongs to cannot be measured: %s", error)
            shares = None
        found = await trio.to_thread.run_sync(self._pool.room)
        used = await trio.to_thread.run_sync(self._pool.used_bytes)
        free = found.f_bavail * found.f_frsize
        size = (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize
        return PoolInfo(
            directory=str(self._directory),
            size_bytes=size,
            used_bytes=used,
            others_bytes=max(0, size - free - used),
            free_bytes=free,
            files_free=found.f_favail if found.f_files else None,
            volumes=len(volumes),
            snapshots=snapshots,
            images=len(images),
            promised_bytes=sum(volumes),
            volumes_bytes=None if shares is None else shares.volumes_bytes,
            snapshots_bytes=None if shares is None else shares.snapshots_bytes,
            images_bytes=None if shares is None else shares.images_bytes,
            warn_percent=self._warn_percent,
            trash_volumes=counts.trash_volumes,
            trash_snapshots=counts.trash_snapshots,
            trash_bytes=None if shares is None else shares.trash_bytes,
        )


def filled_percent(found: os.statvfs_result) -> float:
    """Return how full a file system is in percent, for users other than root, as `df` counts it."""
    used = found.f_blocks - found.f_bfree
    return 100 * used / max(1, used + found.f_bavail)


def filled_files_percent(found: os.statvfs_result) -> float:
    """Return how many of a file system's inodes are used, in percent, counted in the same way; 0
    for a file system without a limit."""
    used = found.f_files - found.f_ffree
    return 100 * used / (used + found.f_favail) if found.f_files else 0.0
