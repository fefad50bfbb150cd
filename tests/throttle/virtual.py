"""Time that passes when a test says so."""

from __future__ import annotations

from bockd.throttle.bucket import NANO
from bockd.throttle.throttle import Throttle


class VirtualTime:
    """A clock, and the alarms that a throttle has set."""

    def __init__(self) -> None:
        self.now = 0
        self._alarms: dict[Throttle, int] = {}

    def __call__(self) -> int:
        return self.now

    @property
    def seconds(self) -> float:
        return self.now / NANO

    def wake_at(self, throttle: Throttle, at: int) -> None:
        """See Throttle."""
        self._alarms[throttle] = min(at, self._alarms.get(throttle, at))

    def throttle(self) -> Throttle:
        """Make a throttle that goes by this time."""
        return Throttle(self, self.wake_at)

    def pass_until(self, end: int) -> None:
        """Let time pass, and ring each alarm when it is due."""
        while self._alarms and min(self._alarms.values()) <= end:
            throttle, at = min(self._alarms.items(), key=lambda one: one[1])
            del self._alarms[throttle]
            assert at >= self.now - 1, "an alarm for the past"
            self.now = max(self.now, at)
            throttle.pump()
        self.now = max(self.now, end)
