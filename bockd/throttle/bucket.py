"""A bucket of tokens: exact arithmetic, which knows no clock.

A token is an operation or a byte. A bucket gets `per_second` of them and holds at most `capacity`.
A request takes what it costs as soon as the bucket has that many. One that costs more than the
bucket holds waits until it is full, and leaves it in debt. So within any t seconds no more is
taken than `capacity` (or one such request) and `per_second` * t.

A limit is one bucket, or two (`buckets_of`). QEMU fills a bucket by what is done and lets it leak
(`util/throttle.c`): it lets the request pass with which it flows over, and has the next one wait.
The rates and the lengths of bursts are the same.

Times are in nanoseconds, and tokens are counted in thousand-millionths: integers, so that nothing
is lost to rounding in however many steps.
"""

from __future__ import annotations

from bockd.model import IoRate

NANO = 1_000_000_000

PARTS_OF_A_SECOND = 10
"""A bucket without a burst holds what comes in 1/10 s, as QEMU's does: a request that comes late
must not be a request less."""


class Bucket:
    """See the module's docstring. Times given to it never go back."""

    __slots__ = ("_at", "_capacity", "_nano", "_owed", "per_second")

    def __init__(self, per_second: int, capacity: int, now: int) -> None:
        """It is full at first."""
        self.per_second = per_second
        self._capacity = self._nano = capacity * NANO
        self._owed = 0
        self._at = now

    def fill(self, now: int) -> None:
        """Add what has come by now."""
        come = self.per_second * (now - self._at)
        self._nano = min(self._capacity, self._nano + come)
        self._owed = max(0, self._owed - come)
        self._at = now

    def has(self, cost: int) -> bool:
        """Return whether a request of this cost may take it, as of the last `fill`."""
        return self._nano >= min(cost * NANO, self._capacity)

    def take(self, cost: int) -> None:
        """Take tokens, whether they are there or not."""
        self._nano -= cost * NANO

    def spend(self, percent: int) -> None:
        """Take so much of what it can hold."""
        self._nano -= self._capacity * percent // 100

    def charge(self, cost: int) -> None:
        """Take tokens for a request that did not wait for them; those that are missing are owed."""
        before = min(0, self._nano)
        self.take(cost)
        self._owed += before - min(0, self._nano)

    def ready_at(self, cost: int) -> int:
        """Return when it will have enough for a request of this cost, if nobody takes any."""
        missing = min(cost * NANO, self._capacity) - self._nano
        return self._at + max(0, -(-missing // self.per_second))

    def solvent_at(self) -> int:
        """Return when nothing will be owed. The debt of a request that is larger than the bucket is
        none that anybody owes."""
        return self._at + -(-self._owed // self.per_second)

    def inherit(self, older: Bucket, now: int) -> None:
        """Begin with what another one has now, for which this one comes in place."""
        older.fill(now)
        self._nano = min(self._capacity, older._nano)
        self._owed = older._owed
        self._at = now


def buckets_of(rate: IoRate, now: int) -> list[Bucket]:
    """Return the buckets of a limit, of which a request must pass all: the first has the burst's
    size, a second one the burst's rate."""
    if rate.burst is None:
        return [Bucket(rate.per_second, _tenth(rate.per_second), now)]
    size = rate.burst * rate.burst_seconds
    if rate.burst_seconds == 1:
        return [Bucket(rate.per_second, size, now)]
    return [Bucket(rate.per_second, size, now), Bucket(rate.burst, _tenth(rate.burst), now)]


def _tenth(per_second: int) -> int:
    return max(1, per_second // PARTS_OF_A_SECOND)
