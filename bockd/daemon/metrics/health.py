"""Whether clients can be served now.

The pool's disk or cluster is asked, because it may hang where nothing says so. One thread asks at a
time: of those that a dead disk holds there are no more, however many probes come. What it has
answered a moment ago counts for all.
"""

from __future__ import annotations

import logging
import os
from enum import StrEnum

import trio

from bockd.errors import BockdError
from bockd.pool.nodes import VOLUMES
from bockd.pool.pool import Pool

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
"""So long an answer counts."""

ANSWER_SECONDS = 5.0
"""Half of what Prometheus waits for a scrape, if nobody says otherwise."""

HELD_SECONDS = 12.0
"""So long the end of the daemon waits for an answer. A cluster's monitors give one within 10
seconds (`bockd.drivers.rbd.space.ROOM_SECONDS`); of a dead disk there is none, and its thread is
left alone."""


class Stage(StrEnum):
    """Where the daemon is in its life."""

    STARTING = "the daemon is starting"
    SERVING = "serving"
    STOPPING = "the daemon is stopping"


class Health:
    """For the owner thread. `run` is to run beside it."""

    def __init__(self, pool: Pool, room_of: str) -> None:
        """`room_of` says in words whose room `pool.room` is."""
        self.stage = Stage.STARTING
        self.room: os.statvfs_result | None = None
        """As it was when it was last asked; None: not known."""
        self._pool = pool
        self._room_of = room_of
        self._error: str | None = None
        self._looked_at = -FRESH_SECONDS
        self._wanted = trio.Event()
        self._answered = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Ask when somebody wants to know, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._ask()
            except BockdError as error:
                self.room, self._error = None, str(error)
            except Exception as error:
                log.exception("%s cannot be looked at", self._room_of)
                self.room, self._error = None, f"{self._room_of} cannot be looked at: {error!r}"
            self._looked_at = trio.current_time()
            self._wanted = trio.Event()
            self._answered.set()
            self._answered = trio.Event()

    async def _ask(self) -> None:
        """Ask once. Raises BockdError. It is finished when this is cancelled, too: when the daemon
        ends, nothing may be under way on a connection to a cluster."""
        with trio.move_on_after(HELD_SECONDS, shield=True) as patience:
            self.room = await trio.to_thread.run_sync(
                self._pool.room, abandon_on_cancel=True, limiter=self._limiter
            )
            self._error = None
        if patience.cancelled_caught:
            self.room, self._error = None, f"{self._room_of} does not answer"

    async def trouble(self) -> str | None:
        """Return why clients cannot be served, in words; None when they can."""
        if self.stage is not Stage.SERVING:
            return self.stage
        if trio.current_time() - self._looked_at >= FRESH_SECONDS and not await self._look():
            self.room = None
            return f"{self._room_of} does not answer within {ANSWER_SECONDS:g} seconds"
        if self._error is not None:
            return self._error
        if self.room is not None and self.room.f_flag & os.ST_RDONLY:
            return f"{self._room_of} is read-only: nothing can be written"
        try:
            with self._pool.nodes() as nodes:
                nodes.txn.count(VOLUMES)
        except BockdError as error:
            return str(error)
        return None

    async def _look(self) -> bool:
        """Ask, and return whether there was an answer in time."""
        answered = self._answered
        self._wanted.set()
        with trio.move_on_after(ANSWER_SECONDS):
            await answered.wait()
        return answered.is_set()
