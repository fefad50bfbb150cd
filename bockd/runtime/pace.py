"""Long work of the loop's own, cut into pieces: clients must not wait for a scrape, or a list."""

from __future__ import annotations

import time

import trio

PIECE_SECONDS = 0.001
"""As long as a connection's turn (`bockd.nbd.server.limits.TURN_NS`)."""


class Pace:
    """Lets the loop turn when a piece has taken its time."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + PIECE_SECONDS

    async def step(self) -> None:
        """Call this between two small parts of the work."""
        if time.perf_counter() > self._until:
            await trio.lowlevel.checkpoint()
            self._until = time.perf_counter() + PIECE_SECONDS
