"""How long the requests of one export took, by operation, since it was first used.

The counts are cumulative, in few buckets, for whoever collects them at intervals and subtracts:
each request that `ExportStatistics` counts as read, written, flushed or trimmed is in here once,
when its reply is made. A request that has failed is counted as well, if it had begun.

One array holds all of it, `OPERATIONS` times `NUMBERS` numbers: for each operation the requests by
duration (`BUCKETS`), then the sum of their nanoseconds, then one that is not used. The fast lane
adds to it what it serves (_fastlane_durations.h).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import groupby
from operator import itemgetter
from typing import Final

from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.transmission import Request

NUMBERS: Final = 24
BUCKETS: Final = 22
_SUM: Final = BUCKETS
_FIRST_BITS: Final = 14

BOUNDS_NS: Final = tuple(1 << bits for bits in range(_FIRST_BITS, _FIRST_BITS + BUCKETS - 1))
"""Where the buckets end, in nanoseconds: 16.4 us, twice as much each, up to 17.2 s. The last bucket
has what took longer."""


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


class Durations:
    """See the module's docstring."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * OPERATIONS * NUMBERS))

    def add(self, operation: int, nanoseconds: int, requests: int = 1) -> None:
        """Enter that so many requests took so long, each."""
        counts, first = self.counts, operation * NUMBERS
        bucket = nanoseconds.bit_length() - _FIRST_BITS
        if bucket < 0:
            bucket = 0
        elif bucket >= BUCKETS:
            bucket = BUCKETS - 1
        counts[first + bucket] += requests
        counts[first + _SUM] += nanoseconds * requests

    def add_requests(self, requests: Sequence[Request], nanoseconds: int) -> None:
        """Enter requests that were answered together."""
        for command, some in groupby(requests, _COMMAND):
            operation = _OF_COMMAND.get(command)
            if operation is not None:
                self.add(operation, nanoseconds, len(list(some)))

    def merge(self, other: Durations) -> None:
        """Add what another one has."""
        self.counts = array("Q", [a + b for a, b in zip(self.counts, other.counts, strict=True)])

    def buckets(self, operation: Operation) -> list[int]:
        """Return the number of requests in each bucket, not summed up."""
        first = operation * NUMBERS
        return self.counts[first : first + BUCKETS].tolist()

    def seconds(self, operation: Operation) -> float:
        """Return how long all requests took together."""
        return self.counts[operation * NUMBERS + _SUM] / 1e9


def requests_by_operation(requests: Sequence[Request]) -> list[int]:
    """Count requests by operation."""
    found = [0] * OPERATIONS
    for request in requests:
        operation = _OF_COMMAND.get(request[1])
        if operation is not None:
            found[operation] += 1
    return found
