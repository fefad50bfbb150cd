"""Read frozen layers in the background of the daemon, at a bounded rate: first to write their
checksums, at intervals again to verify them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import trio

from bockd.config.sections import ChecksumSettings
from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import ScrubBatch, Scrubber
from bockd.drivers.local.registry import Registry
from bockd.errors import BockdError
from bockd.model import MIB
from bockd.pool.reports import ScrubStatus
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

SETTLE_SECONDS = 10.0
"""From a snapshot to its first reading: one that a backup makes for a moment is not worth it."""

BUSY_SECONDS = 0.2
"""Pause before asking again whether reclaim has finished."""

RETRY_SECONDS = 60.0
"""After an error, which may be a full disk."""

DAY_SECONDS = 24 * 3600


class Scrubbing:
    """Scrubs one pool for the daemon: by schedule, and on request."""

    def __init__(self, registry: Registry, settings: ChecksumSettings) -> None:
        self._registry = registry
        self._settings = settings
        self._scrubber = Scrubber(registry)
        # One thread of its own: clients' reads never wait for it.
        self._runner = StepRunner(1)
        self._asked = trio.Event()
        self._frozen = trio.Event()
        self._rate_bytes = settings.rate_mib * MIB
        self._restart = False
        self._wanted = False
        """Somebody has asked for a pass that is not finished."""
        self.put_off: str | None = None
        """Why the last batch failed; None when it went well."""

    def note_frozen(self) -> None:
        """Note that something was frozen: it may have no checksums yet."""
        self._frozen.set()

    def begin(self, rate_mib: int | None, *, restart: bool) -> None:
        """Finish the pass in progress, or begin one; with `restart`, begin one in any case.

        What has no checksums is read first. `rate_mib` is in MiB a second; None takes the
        configured rate.
        """
        self._rate_bytes = (rate_mib or self._settings.rate_mib) * MIB
        self._restart |= restart or not self._under_way()
        self._wanted = True
        self._asked.set()

    def status(self) -> ScrubStatus:
        """Return the status of the scrub."""
        with self._registry.store.index.reading() as txn:
            return replace(scrub_status(txn), running=self._wanted)

    def _under_way(self) -> bool:
        with self._registry.store.index.reading() as txn:
            latest = checksums.latest_pass(txn)
        return latest is not None and latest.finished_at is None

    async def run(self) -> None:
        """Run scrub batches when there is something to do, until cancelled."""
        while True:
            self._asked, self._frozen = trio.Event(), trio.Event()
            began = trio.current_time()
            try:
                batch = await self._work()
            except BockdError as error:
                if str(error) != self.put_off:
                    log.warning("reading frozen layers is put off: %s", error)
                await self._wait_after(str(error))
                continue
            except Exception:
                # It is nobody else's trouble: volumes are served.
                log.exception("reading frozen layers failed")
                await self._wait_after("an error of bockd's own; the log has it")
                continue
            self.put_off = None
            if batch.more:
                await trio.sleep_until(began + batch.read_bytes / self._rate_bytes)
            else:
                await self._rest()

    async def _wait_after(self, reason: str) -> None:
        self._wanted = False
        self.put_off = reason
        with trio.move_on_after(RETRY_SECONDS):
            await self._asked.wait()

    async def _rest(self) -> None:
        """Until somebody asks, or has frozen something some time ago, or a pass is due."""
        with trio.move_on_after(self._seconds_to_next()):
            async with trio.open_nursery() as either:
                for happened in (self._when_asked, self._when_settled):
                    either.start_soon(happened, either.cancel_scope)

    async def _when_asked(self, rest: trio.CancelScope) -> None:
        await self._asked.wait()
        rest.cancel()

    async def _when_settled(self, rest: trio.CancelScope) -> None:
        await self._frozen.wait()
        await trio.sleep(SETTLE_SECONDS)
        rest.cancel()

    def _seconds_to_next(self) -> float:
        """Until a pass is due by itself."""
        if not self._settings.enabled:
            return math.inf
        with self._registry.store.index.reading() as txn:
            latest = checksums.latest_pass(txn)
            nothing = not txn.count(CHECKSUMS)
        if nothing and latest is None:
            return math.inf
        if latest is None or latest.finished_at is None:
            return 0.0
        due = latest.finished_at + self._settings.interval_days * DAY_SECONDS
        return max(0.0, due - self._registry.clock())

    async def _work(self) -> ScrubBatch:
        """One batch of what is most urgent."""
        if not (self._settings.enabled or self._wanted):
            return ScrubBatch(more=False)
        if self._scrubber.must_wait:
            await trio.sleep(BUSY_SECONDS)
            return ScrubBatch(more=True)
        batch = await self._runner.run(self._scrubber.read_on())
        if batch.more:
            return batch
        if self._restart or (self._seconds_to_next() == 0 and not self._under_way()):
            self._restart = False
            await self._runner.run(self._scrubber.begin_pass())
        batch = await self._runner.run(self._scrubber.verify_on())
        if not batch.more and not self._restart:
            self._wanted = False
            self._rate_bytes = self._settings.rate_mib * MIB
        return batch
