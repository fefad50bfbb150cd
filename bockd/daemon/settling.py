"""Settle scattered layers in the background of the daemon, at the rate at which it scrubs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from bockd.errors import BockdError
from bockd.runtime.steprunner import StepRunner

if TYPE_CHECKING:
    from bockd.drivers.local.maintenance.settling import Settler

log = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
"""From one look to the next. A layer is settled when it was frozen for so long, and for twice as
long at most. A snapshot that a backup makes for a moment costs nothing."""

BUSY_SECONDS = 0.2
"""Pause before asking again whether others have finished with frozen layers."""


class Settling:
    """Settles layers of one pool for the daemon."""

    def __init__(self, settler: Settler, rate_bytes: int) -> None:
        self._settler = settler
        self._rate_bytes = rate_bytes
        # One thread of its own: clients' reads never wait for it.
        self._runner = StepRunner(1)
        self.put_off: str | None = None
        """Why something was not settled at the last attempt; None when it went well."""

    async def run(self) -> None:
        """Settle what is due, until cancelled."""
        while True:
            try:
                await self._runner.run(self._settler.look())
                await self._settle()
                self._put_off(self._settler.put_off)
            except BockdError as error:
                self._put_off(str(error))
            except Exception:
                # It is nobody else's trouble: volumes are served.
                log.exception("settling layers failed")
                self.put_off = "an error of bockd's own; the log has it"
            await trio.sleep(LOOK_SECONDS)

    def _put_off(self, reason: str | None) -> None:
        if reason is not None and reason != self.put_off:
            log.warning("settling layers is put off: %s", reason)
        self.put_off = reason

    async def _settle(self) -> None:
        """Take steps until there is nothing to do. Raises BockdError."""
        while True:
            if self._settler.must_wait:
                await trio.sleep(BUSY_SECONDS)
                continue
            began = trio.current_time()
            batch = await self._runner.run(self._settler.step())
            if not batch.more:
                return
            busy = BUSY_SECONDS if batch.busy else 0
            await trio.sleep_until(began + busy + batch.work_bytes / self._rate_bytes)
