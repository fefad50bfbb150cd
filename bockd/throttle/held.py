"""How many requests have waited for limits of I/O, and for how long: plain numbers, for metrics.

A request that passes at once is in none of them. Times are in nanoseconds of the gate's clock.
"""

from __future__ import annotations

_SECOND_NS = 1_000_000_000


class Held:
    """What has waited at one place, and waits there now."""

    __slots__ = ("_ended_ns", "_since_ns", "_total", "requests", "waiting")

    def __init__(self, total: Held | None = None) -> None:
        """What is counted here counts in `total`, too."""
        self._total = total
        self.requests = 0
        """That have waited, or wait."""
        self.waiting = 0
        """Of them, those that wait now."""
        self._ended_ns = 0
        """Of waits that are over."""
        self._since_ns = 0
        """The sum of the times at which the others began."""

    def begin(self, now: int) -> None:
        """Count a request that begins to wait."""
        self.requests += 1
        self.waiting += 1
        self._since_ns += now
        if self._total is not None:
            self._total.begin(now)

    def end(self, since: int, now: int) -> None:
        """Count the end of a wait that began at `since`."""
        self.waiting -= 1
        self._since_ns -= since
        self._ended_ns += now - since
        if self._total is not None:
            self._total.end(since, now)

    def seconds(self, now: int) -> float:
        """Return how long all have waited until now, together; those that still wait, too. As a
        rate it is how many waited on the average."""
        return (self._ended_ns + self.waiting * now - self._since_ns) / _SECOND_NS
