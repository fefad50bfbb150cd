"""One byte budget for the whole daemon over large payloads: received, read, or queued as replies.

Each connection has one piece of `PIECE_BYTES` of its own beside the shared budget, so that clients
that stop half-way can slow others down but never stop them: what a connection cannot get from the
shared part it gets, one piece at a time, from its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from bockd.nbd.server.limits import PIECE_BYTES


class MemoryBudget:
    """The shared part. Those who wait are served in order, as far as the free memory allows."""

    def __init__(self, shared_bytes: int) -> None:
        self.free_bytes = shared_bytes
        """What is left; below zero after charges that could not wait."""
        self._waiters: deque[tuple[Callable[[], bool], trio.Event]] = deque()

    def take(self, length: int) -> bool:
        """Take `length` bytes if they are free. Return whether they were."""
        if length > self.free_bytes:
            return False
        self.free_bytes -= length
        return True

    def serve(self) -> None:
        """Grant memory to the waiters for whom there is enough. Call it whenever something was
        given back."""
        still_waiting: deque[tuple[Callable[[], bool], trio.Event]] = deque()
        for ready, event in self._waiters:
            if ready():
                event.set()
            else:
                still_waiting.append((ready, event))
        self._waiters = still_waiting

    async def wait(self, ready: Callable[[], bool], undo: Callable[[], None]) -> None:
        """Wait until `ready()` has returned True; `undo` gives back what a cancelled wait got."""
        event = trio.Event()
        self._waiters.append((ready, event))
        try:
            await event.wait()
        except trio.Cancelled:
            if event.is_set():
                undo()
            else:
                self._waiters.remove((ready, event))
            raise


class Account:
    """One connection's use of the budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._own_lent_bytes = 0
        self._charged_bytes = 0
        self._turn = trio.Lock()
        """One at a time waits in the budget, where each release asks all who wait."""

    async def acquire(self, length: int) -> None:
        """Wait until `length` bytes (at most `PIECE_BYTES`) may be used."""
        assert 0 < length <= PIECE_BYTES
        if not self._turn.locked() and self._grab(length):
            return
        async with self._turn:
            if not self._grab(length):
                await self._budget.wait(lambda: self._grab(length), lambda: self.release(length))

    def _grab(self, length: int) -> bool:
        if self._budget.take(length):
            return True
        if self._own_lent_bytes:
            return False
        self._own_lent_bytes = length
        return True

    def release(self, length: int) -> None:
        """Give back what `acquire` granted."""
        if length == self._own_lent_bytes:
            self._own_lent_bytes = 0
        else:
            self._budget.free_bytes += length
        self._budget.serve()

    def charge(self, length: int) -> None:
        """Charge `length` bytes for payloads that are in memory already. `repay` before the next
        ones."""
        self._budget.free_bytes -= length
        self._charged_bytes += length

    def discharge(self, length: int) -> None:
        """Give back what `charge` took."""
        self._budget.free_bytes += length
        self._charged_bytes -= length
        self._budget.serve()

    async def repay(self) -> None:
        """Wait while the budget is overdrawn and this connection has more than its own piece."""
        if not self._settled():
            await self._budget.wait(self._settled, lambda: None)

    def _settled(self) -> bool:
        return self._budget.free_bytes >= 0 or self._charged_bytes <= PIECE_BYTES
