"""The turn from one way of changes to the other (way.py)."""

from __future__ import annotations

from bockd.runtime.waiting import Mutex, Pulse


class Turning:
    """Holds the turn from one way to the other, and lets all who wait look again behind it."""

    def __init__(self, turn: Mutex, turned: Pulse) -> None:
        self._turn = turn
        self._turned = turned

    async def __aenter__(self) -> None:
        await self._turn.acquire()

    async def __aexit__(self, *_raised: object) -> None:
        self._turn.release()
        self._turned.fire()
