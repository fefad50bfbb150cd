"""What one connection has in flight: how much, and which changes began before which moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class InFlight:
    """Counts background requests; remembers, in order, the engine changes among them."""

    def __init__(self) -> None:
        self.requests = 0
        self._next = 0
        self._changes: dict[int, None] = {}
        self._waiters: list[tuple[int, trio.Event]] = []
        self._landed: trio.Event | None = None

    def begin_change(self) -> int:
        """Register an engine operation that changes the volume or flushes it. Return its number.

        For a caller that hands the operation to a task: until the task's first step, others may ask
        which changes are under way.
        """
        number = self._next
        self._next += 1
        self._changes[number] = None
        return number

    def end_change(self, number: int) -> None:
        """Remove a change that is finished, or given up."""
        del self._changes[number]
        self._wake()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Register a change for the duration of a `with` block."""
        number = self.begin_change()
        try:
            yield
        finally:
            self.end_change(number)

    @property
    def changing(self) -> bool:
        """Whether a change is under way."""
        return bool(self._changes)

    def _oldest(self) -> int:
        return next(iter(self._changes), self._next)

    def _wake(self) -> None:
        oldest = self._oldest()
        for mark, event in self._waiters:
            if mark <= oldest:
                event.set()
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].is_set()]

    async def changes_finished(self) -> None:
        """Return when the changes that have begun by now are finished."""
        if self._changes:
            event = trio.Event()
            self._waiters.append((self._next, event))
            await event.wait()

    def done(self, requests: int = 1) -> None:
        """Count so many background requests less: they have been answered or given up."""
        self.requests -= requests
        if self._landed is not None:
            self._landed.set()
            self._landed = None

    async def wait_below(self, requests: int) -> None:
        """Wait until fewer than `requests` background requests are in flight."""
        while self.requests >= requests:
            if self._landed is None:
                self._landed = trio.Event()
            await self._landed.wait()
