"""What the writers of a directory's logs have under way below: a bound of bytes for all of them.

Invariants:
* A volume with nothing under way may always begin something, so none waits for another one whose
  part of the cluster hangs, and what one has under way it gives back however it ends.
* Beyond that, volumes get room in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable

from bockd.model import KIB, MIB
from bockd.runtime.steps import Signal
from bockd.runtime.waiting import Mutex

MAX_BYTES = 32 * MIB
"""Of data that is under way: as much as two volumes may have."""

SHARE_BYTES = 256 * KIB
"""What each volume may have under way whatever the others have."""


class Flight:
    """Of all logs of a directory. For the owner thread."""

    def __init__(self) -> None:
        self.bytes = 0
        """What is under way."""
        self._waiting: dict[Lane, None] = {}
        """In order of arrival."""

    def take(self, lane: Lane, wanted: int) -> int:
        """Take room for so many bytes, or for a part of that. 0: there is none now; the lane is
        woken to ask again."""
        is_next = next(iter(self._waiting), lane) is lane
        has_room = is_next and self.bytes + wanted <= MAX_BYTES
        if has_room or lane.bytes + wanted <= SHARE_BYTES:
            granted = wanted
        elif lane.bytes == 0:
            granted = min(wanted, SHARE_BYTES)
        else:
            self._waiting[lane] = None
            return 0
        self.bytes += granted
        return granted

    def leave(self, lane: Lane) -> None:
        """Wait no longer, and let the next one look."""
        self._waiting.pop(lane, None)
        self.wake_next()

    def wake_next(self) -> None:
        """Let the lane look whether there is room now that came first."""
        if self._waiting:
            next(iter(self._waiting)).wake()


class Lane:
    """Of one log. For the owner thread."""

    def __init__(self, flight: Flight) -> None:
        self.bytes = 0
        """What of it is under way."""
        self._flight = flight
        self._turn = Mutex()
        self._woken = Signal()

    async def take(self, wanted: int, is_given_up: Callable[[], bool]) -> int:
        """Wait for room for so many bytes. Return for how many there is, which are `give_back`'s
        then; 0: that was given up. Whoever gives it up calls `wake`."""
        async with self._turn:
            try:
                while not is_given_up():
                    self._woken = Signal()
                    if granted := self._flight.take(self, wanted):
                        self.bytes += granted
                        return granted
                    await self._woken
                return 0
            finally:
                self._flight.leave(self)

    def give_back(self, granted: int) -> None:
        """Give back what `take` has given."""
        self.bytes -= granted
        self._flight.bytes -= granted
        self.wake()
        self._flight.wake_next()

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._woken.fire()
