"""Waiting inside the engine: a mutex, a pulse, a gate and locks on block ranges, in steps.

All state is touched on the owner thread only, between two steps, so nothing here is atomic in the
processor's sense and nothing needs to be. Waiters are served in order of arrival.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from bockd.runtime.steps import Signal


class Mutex:
    """One holder at a time: `async with mutex`."""

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[Signal] = deque()
        self.passed = 0
        """How often one who waited has got it: who waits sees by it that the holder is another."""

    @property
    def held(self) -> bool:
        return self._held

    async def acquire(self) -> None:
        """Wait for the mutex. The previous holder hands it over, so it is never free in between."""
        if not self._held:
            self._held = True
            return
        turn = self.join()
        try:
            await turn
        except BaseException:
            self.withdraw(turn)
            raise

    def join(self) -> Signal:
        """Join those who wait for the mutex. Return what fires when it is the caller's; who does
        not wait for that any more calls `withdraw`."""
        turn = Signal()
        if self._held:
            self._queue.append(turn)
        else:
            self._held = True
            turn.fire()
        return turn

    def withdraw(self, turn: Signal) -> None:
        """Leave those who wait, or release the mutex, if it has become the caller's."""
        if turn.fired:
            self.release()
        else:
            self._queue.remove(turn)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_raised: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the mutex: hand it to the next waiter, if there is one."""
        assert self._held
        if self._queue:
            self.passed += 1
            self._queue.popleft().fire()
        else:
            self._held = False


class Pulse:
    """Wakes all who wait, as often as it fires, to look again at what they wait for."""

    def __init__(self) -> None:
        self._next = Signal()

    async def wait(self) -> None:
        """Wait until it fires the next time."""
        await self._next

    def fire(self) -> None:
        """Wake all who wait now."""
        passed, self._next = self._next, Signal()
        passed.fire()


class WriteGate:
    """Lets operations through until it is closed; closing waits for those inside.

    A snapshot closes its volume's gate for the moment in which the head changes.
    """

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._opened = Signal()
        self._empty = Signal()

    @property
    def inside(self) -> int:
        """Operations that entered and have not left."""
        return self._inside

    async def enter(self) -> None:
        """Wait until the gate is open, and enter. The caller calls `leave` in a `finally`."""
        while self.closed:
            await self._opened
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        if self._inside == 0 and self.closed:
            self._empty.fire()

    async def quiesce(self) -> None:
        """Close the gate, and wait until no operation is inside."""
        assert not self.closed
        self.closed = True
        self._opened = Signal()
        if self._inside:
            self._empty = Signal()
            await self._empty

    def open(self) -> None:
        """Open the gate again."""
        self.closed = False
        self._opened.fire()


@dataclass(eq=False)
class HeldRange:
    """Blocks first..end-1, held until `RangeLocks.release`."""

    first: int
    end: int
    released: Signal = field(default_factory=Signal)

    def overlaps(self, first: int, end: int) -> bool:
        return self.first < end and first < self.end


class RangeLocks:
    """Exclusive locks on block ranges, for operations that span steps.

    An operation that runs without a step in between needs none: it only asks `busy`. Ranges are
    few (threads at work), so a list is searched. A waiter that arrived earlier comes first, which
    keeps a large trim from starving behind small writes.
    """

    def __init__(self) -> None:
        self.held: list[HeldRange] = []

    def busy(self, first: int, end: int) -> bool:
        """Return whether an operation holds or waits for some of these blocks."""
        return any(held.overlaps(first, end) for held in self.held)

    async def acquire(self, first: int, end: int) -> HeldRange:
        """Wait for the blocks and hold them."""
        mine = HeldRange(first, end)
        earlier = [held for held in self.held if held.overlaps(first, end)]
        self.held.append(mine)
        try:
            for held in earlier:
                await held.released
        except BaseException:
            self.release(mine)
            raise
        return mine

    def release(self, held: HeldRange) -> None:
        self.held.remove(held)
        held.released.fire()
