"""Until when a volume is surely ours: what may be answered without asking the cluster.

A gateway that was shut out learns of it with the next request that it sends. What it serves from a
cache it sends nowhere. So it asks who owns the image's lock, on the volume's own connection, which
answers from the object that the lock is in: whoever takes the volume has to take the lock there
before it writes, and that is with a map of which the OSD then knows that we are shut out. An answer
that we have it therefore says that nobody else had written when the question was sent. It counts
for `LEASE_SECONDS` from then.

Nothing is asked while nothing is served: the first request after a pause goes to the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bockd.errors import BockdError
from bockd.runtime.steps import Signal, Spawn, blocking_apart, try_spawn

LEASE_SECONDS = 1.0
"""How old a read may be at most that is answered by a gateway that was shut out and still serves
its client: one that does not hear of the other gateways, but is not cut off from its clients."""

RENEW_SECONDS = 0.3
"""So long after a question that was answered the next one is sent, if anything is served."""


def since_boot() -> float:
    """Return a time that passes while the machine is suspended, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """Of one open volume. For the owner thread."""

    def __init__(
        self, confirm: Callable[[], bool], spawn: Spawn, clock: Callable[[], float] = since_boot
    ) -> None:
        """`confirm` asks whether the volume is ours. It blocks, in a thread; raises BockdError."""
        self._confirm = confirm
        self._spawn = spawn
        self._clock = clock
        self._until = self._renew_at = 0.0
        self._asking: Signal | None = None
        self._ended = False

    def held(self) -> bool:
        """Return whether the volume is surely ours."""
        now = self._clock()
        if now >= self._renew_at and self._asking is None and not self._ended:
            self._asking = Signal()
            if not try_spawn(self._spawn, self._renew(self._asking)):
                self._asking = None
        return now < self._until

    async def end(self) -> None:
        """Ask nothing any more, and return when nothing is asked."""
        self._ended = True
        self._until = 0.0
        if self._asking is not None:
            await self._asking

    async def _renew(self, asking: Signal) -> None:
        asked = self._clock()
        self._renew_at = asked + RENEW_SECONDS
        try:
            if await blocking_apart("lease", self._confirm) and not self._ended:
                self._until = asked + LEASE_SECONDS
        except BockdError:
            pass  # what is sent to the cluster next meets it
        finally:
            self._asking = None
            asking.fire()
