"""Closing volumes and snapshots that nobody uses any more.

Tools like qemu-img connect several times in a row, the first change after an opening costs an index
commit, and closing costs another: so closing waits a little. But each that is open costs
descriptors: when there are many, the ones that were left first do not wait.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from bockd.daemon.retrying import Retrying
from bockd.descriptors import IDLE_SHARE, portion
from bockd.errors import BockdError
from bockd.nbd.server.exports import ExportKey
from bockd.pool.pool import Pool

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 10.0
"""How long closing waits."""

MAX_IDLE: Final = 256
"""So many wait, whatever the process's limit of descriptors."""


class IdleExports:
    """The volumes and snapshots that are open and unused. `run` must be started once."""

    def __init__(self, pool: Pool, retrying: Retrying) -> None:
        self._pool = pool
        self._retrying = retrying
        self._limit = portion(IDLE_SHARE, MAX_IDLE)
        self._left_at: dict[ExportKey, float] = {}
        """Oldest first, in trio's time."""
        self._some = trio.Event()

    def add(self, key: ExportKey) -> None:
        """Note that a client has left. If nobody else uses the volume or snapshot, it is closed
        after `IDLE_SECONDS`, or sooner when too many wait."""
        self._left_at.pop(key, None)
        self._left_at[key] = trio.current_time()
        if len(self._left_at) > self._limit:
            self._close(next(iter(self._left_at)))
        self._some.set()

    async def run(self) -> None:
        """Close what has been unused for long enough; never ends."""
        while True:
            if not self._left_at:
                self._some = trio.Event()
                await self._some.wait()
            key, left_at = next(iter(self._left_at.items()))
            await trio.sleep_until(left_at + IDLE_SECONDS)
            if self._left_at.get(key) == left_at:
                self._close(key)

    def _close(self, key: ExportKey) -> None:
        del self._left_at[key]
        self._retrying.start(f"closing {key.kind} {key.id}", lambda: self._close_idle(key))

    async def _close_idle(self, key: ExportKey) -> None:
        """Close what nobody uses. Raises BockdError when it is open still."""
        try:
            await self._pool.close_idle(key.kind, key.id)
        except BockdError as error:
            if self._pool.is_open(key.kind, key.id):
                raise
            # Nothing is lost: what the index did not take is still in the journal.
            log.error("closing %s %s: %s", key.kind, key.id, error)  # noqa: TRY400
