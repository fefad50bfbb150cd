"""How long the requests of one export took, by operation, since it was first used.

Each request that `ExportStatistics` counts as read, written, flushed or trimmed is in here once,
when its reply is made. A request that has failed is counted as well, if it had begun.

One array holds all of it, `OPERATIONS` times `NUMBERS` numbers: for each operation the requests by
duration, in `BUCKETS` buckets, then the sum of their nanoseconds. There are eight buckets to each
doubling, so that a percentile is at most 12% off; those below two microseconds are of one size. The
fast lane adds to the array what it serves (_fastlane_durations.h).

The counts are cumulative. Whoever collects them at intervals subtracts what there was before; that
is how percentiles are of recent requests, too. It is told few of the buckets, those that end at
`BOUNDS_NS`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import groupby, pairwise
from operator import add, itemgetter
from typing import Final

from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.transmission import Request

BUCKETS: Final = 208
"""The last has what took longer than 34 s, too."""
NUMBERS: Final = BUCKETS + 1

_STEPS: Final = 8
"""Buckets to each doubling."""
_FIRST_NS: Final = 1 << 10
"""Where the first doubling begins."""
_FIRST_BITS: Final = _FIRST_NS.bit_length()
_STEP_BITS: Final = _FIRST_BITS - 4
"""What of a duration within the first doubling does not choose the bucket."""

BOUNDS_NS: Final = tuple(1 << bits for bits in range(14, 35))
"""Which ends of buckets collectors are told, in nanoseconds: 16.4 us, twice as much each, up to
17.2 s."""

_WINDOW_REQUESTS: Final = 50_000
"""Percentiles are of as many of the last requests, up to twice as many: 0.1% of them is still
50."""


class Operation(IntEnum):
    """What is told apart, in the order of the array."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    TRIM = 3
    """Trims and writes of zeroes."""


OPERATIONS: Final = len(Operation)

_OF_COMMAND: Final = {
    nbd.CMD_READ: Operation.READ,
    nbd.CMD_WRITE: Operation.WRITE,
    nbd.CMD_FLUSH: Operation.FLUSH,
    nbd.CMD_TRIM: Operation.TRIM,
    nbd.CMD_WRITE_ZEROES: Operation.TRIM,
}
"""Of other commands nothing is kept."""

_COMMAND: Final = itemgetter(1)


def bucket_of(nanoseconds: int) -> int:
    """Return the bucket of a duration."""
    doublings = (nanoseconds | _FIRST_NS).bit_length() - _FIRST_BITS
    bucket = doublings * _STEPS + (nanoseconds >> doublings + _STEP_BITS)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def bucket_microseconds(bucket: int) -> float:
    """Return the middle of a bucket in microseconds."""
    doublings = max(0, bucket // _STEPS - 1)
    step = bucket - doublings * _STEPS
    return (step + 0.5) * (1 << doublings + _STEP_BITS) / 1000


_TOLD: Final = tuple(pairwise((0, *map(bucket_of, BOUNDS_NS), BUCKETS)))
"""The buckets between two bounds each, and those before and after all bounds."""


class Durations:
    """See the module's docstring."""

    __slots__ = ("_earlier", "_later", "_recent", "counts")

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * OPERATIONS * NUMBERS))
        self._earlier = self._later = [0] * BUCKETS
        """All operations by duration, when the last but one window began, and the last."""
        self._recent = 0
        """Requests of the last window."""

    def add(self, operation: int, nanoseconds: int, requests: int = 1) -> None:
        """Enter that so many requests took so long, each."""
        counts, first = self.counts, operation * NUMBERS
        counts[first + bucket_of(nanoseconds)] += requests
        counts[first + BUCKETS] += nanoseconds * requests
        self.entered(requests)

    def entered(self, requests: int) -> None:
        """Note that the array has so many more; to be told of what the lane has entered there."""
        self._recent += requests
        if self._recent > _WINDOW_REQUESTS:
            self._earlier, self._later = self._later, self._all()
            self._recent = 0

    def _all(self) -> list[int]:
        """Return how many requests of any operation each bucket has."""
        starts = range(0, OPERATIONS * NUMBERS, NUMBERS)
        return [sum(some) for some in zip(*[self._of(first) for first in starts], strict=True)]

    def _of(self, first: int) -> array[int]:
        return self.counts[first : first + BUCKETS]

    def percentiles(self, *fractions: float) -> list[float]:
        """Return the microseconds below which each fraction of the recent requests lies; 0 when
        there are none."""
        counts = [now - before for now, before in zip(self._all(), self._earlier, strict=True)]
        total = sum(counts)
        return [_percentile(counts, total * fraction) for fraction in fractions]

    def add_requests(self, requests: Sequence[Request], nanoseconds: int) -> None:
        """Enter requests that were answered together."""
        for command, some in groupby(requests, _COMMAND):
            operation = _OF_COMMAND.get(command)
            if operation is not None:
                self.add(operation, nanoseconds, len(list(some)))

    def merge(self, other: Durations) -> None:
        """Add what another one has."""
        self.counts = array("Q", map(add, self.counts, other.counts))

    def between_bounds(self, operation: Operation) -> list[int]:
        """Return the number of requests up to the first of `BOUNDS_NS`, between two of them each,
        and from the last one on."""
        counts = self._of(operation * NUMBERS)
        return [sum(counts[first:end]) for first, end in _TOLD]

    def seconds(self, operation: Operation) -> float:
        """Return how long all requests took together."""
        return self.counts[operation * NUMBERS + BUCKETS] / 1e9


def _percentile(counts: list[int], rank: float) -> float:
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return bucket_microseconds(bucket)
    return 0.0


def requests_by_operation(requests: Sequence[Request]) -> list[int]:
    """Count requests by operation."""
    found = [0] * OPERATIONS
    for request in requests:
        operation = _OF_COMMAND.get(request[1])
        if operation is not None:
            found[operation] += 1
    return found
