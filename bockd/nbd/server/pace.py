"""How long a connection may poll its socket, and when it has to let the others run.

Polling saves the wake-up that costs most at low queue depth. Alone, a connection polls for under
0.1 ms before it parks; while others are at work it lets the loop turn between a few attempts, so
nobody waits longer than a turn. A connection whose polls keep failing stops polling, so that an
idle or slow client costs nothing.

A connection that has been alone for long may even wait for the end of a sync without the loop, if
the loop has no task to run. A client that comes meanwhile ends that wait, but pays for the way
back.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from bockd.nbd.server.limits import SHARED_POLL_TRIES, TURN_NS

_SHARED_NS = 2 * TURN_NS
"""Another connection's work this long ago means that we share the loop."""
_DESERTED_NS = 1_000_000_000
"""Another connection's work this long ago means that it is not likely to come just now."""
_BUSY_NS = 10_000_000
"""Tasks that were to run this long ago may be there again without showing: not those that the loop
has taken from its queue already, which is every other time."""
_PROMPT_NS = 300_000
"""A client that speaks again this soon after we parked is worth polling for."""


class Pace:
    """Shared by the connections of a server: who was at work last."""

    def __init__(self) -> None:
        self._last: object | None = None
        self._others: dict[object, int] = {}
        """Those who have worked before `_last`, and until when at the latest."""
        self._changed_ns = 0
        """When the last of them has."""
        self._busy_ns = -_BUSY_NS
        self.batches = 0
        """How many have been served."""

    def works(self, who: object, now: int) -> None:
        """Record that `who` has just served a batch."""
        self.batches += 1
        if self._last is not who:
            self._others.pop(who, None)
            if self._last is not None:
                self._others[self._last] = self._changed_ns = now
            else:
                self._changed_ns = max(self._others.values(), default=0)
            self._last = who

    def leaves(self, who: object) -> None:
        """Record that `who` works no more: the others need not reckon with it."""
        if self._last is who:
            self._last = None
        self._others.pop(who, None)
        self._changed_ns = max(self._others.values(), default=0)

    def busy(self, now: int) -> None:
        """Record that the loop had something else to do than to serve connections."""
        self._busy_ns = now

    def alone(self, now: int) -> bool:
        """Return whether only one connection has worked of late."""
        return now - self._changed_ns > _SHARED_NS

    def deserted(self, who: object, now: int) -> bool:
        """Return whether only `who` has worked for a long time."""
        return (
            self._last is who
            and now - self._changed_ns > _DESERTED_NS
            and now - self._busy_ns > _BUSY_NS
        )


class Polling:
    """One connection's polling."""

    __slots__ = ("_clock", "_full", "_pace", "_parked_ns", "_tries", "_turn_ns")

    def __init__(self, pace: Pace, tries: int, clock: Callable[[], int] = perf_counter_ns) -> None:
        self._pace = pace
        self._clock = clock
        self._full = tries
        self._tries = tries
        self._turn_ns = self._clock()
        self._parked_ns = 0

    def worked(self, now: int) -> bool:
        """Record that a batch was served. Return whether the loop must turn before the next one."""
        self._pace.works(self, now)
        return now - self._turn_ns > TURN_NS

    def left_ns(self) -> int:
        """Return how long until the loop must turn, in nanoseconds."""
        return self._turn_ns + TURN_NS - self._clock()

    def due(self) -> bool:
        """Return whether the loop must turn, though nothing was served."""
        return self._clock() - self._turn_ns > TURN_NS

    def turned(self) -> None:
        """Record that the loop has turned."""
        self._turn_ns = self._clock()

    def undisturbed(self) -> int:
        """Return the number of attempts to receive that may be made without letting others run in
        between. 0 when others are at work."""
        return self._tries if self._pace.alone(self._clock()) else 0

    @property
    def tries(self) -> int:
        """How many attempts to receive are worth it. 0 if it does not poll any more."""
        return self._tries

    def alone(self) -> bool:
        """Return whether no other connection has worked of late."""
        return self._pace.alone(self._clock())

    def may_block(self, *, busy: bool) -> bool:
        """Return whether the connection may wait without the loop: no other one has worked for a
        long time, and the loop has not been `busy` with something else of late. To a client that
        comes meanwhile it costs as much as a request or two."""
        now = self._clock()
        if busy:
            self._pace.busy(now)
        return self._pace.deserted(self, now)

    def ended(self) -> None:
        """Record that the connection is closed."""
        self._pace.leaves(self)

    def plan(self) -> tuple[int, int]:
        """Return the number of polling rounds, and of attempts in each. The loop turns between
        rounds."""
        if not self._tries:
            return 0, 0
        if self._pace.alone(self._clock()):
            return 1, self._tries
        return max(1, self._tries // SHARED_POLL_TRIES), SHARED_POLL_TRIES

    def found(self) -> None:
        """Record that polling has received something."""
        self._tries = self._full

    def parks(self) -> None:
        """Record that polling was in vain and the connection parks. It polls half as often next
        time."""
        self._tries //= 2
        self._parked_ns = self._clock()

    def woke(self) -> None:
        """Record that the parked connection has something to receive."""
        now = self._clock()
        self._turn_ns = now
        if now - self._parked_ns < _PROMPT_NS:
            self._tries = self._full
