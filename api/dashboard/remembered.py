"""An answer that costs a walk over the pool, shared by all who ask for it within some time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

IDLE_PART = 10
"""However many pages are open, such a question is under way for a tenth of the time at most."""


class Remembered(Generic[T]):
    """Asks at most once at a time, and again when the answer is `seconds` old."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[T]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._turn = trio.Lock()
        self._answer: T | None = None
        self._good_until = 0.0
        self._forgotten = 0
        """How often."""

    async def get(self) -> T:
        """Return the answer. What asking raises is raised here."""
        async with self._turn:
            if self._answer is None or self._clock() >= self._good_until:
                began, forgotten = self._clock(), self._forgotten
                self._answer = await self._ask()
                ended = self._clock()
                if forgotten == self._forgotten:  # else it may lack what has changed meanwhile
                    self._good_until = ended + max(self._seconds, IDLE_PART * (ended - began))
            return self._answer

    def forget(self) -> None:
        """Have whoever calls from now on get what is asked after this: something has changed."""
        self._good_until = 0.0
        self._forgotten += 1
