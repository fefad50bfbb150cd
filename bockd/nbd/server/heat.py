"""Which regions of an export its clients read and write: a sample, while somebody watches.

What a connection has received is looked at when it lies in the receive buffer anyway, and not more
often than each `LOOK_SECONDS`. What the compiled lane receives by itself within a turn is not seen,
and what other frontends do is not, either: the figures are shares, not counts. An export that
nobody watches has no `Heat`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from bockd.dashboardcontrol import HeatMap
from bockd.model import MIB
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.transmission import Request, RequestParser

MAX_REGIONS = 2048
"""A picture of 64 by 32; three figures of each go to a page once a second."""

LOOK_SECONDS = 0.01
"""Between two looks. One takes up to a millisecond, for thousands of requests at once."""

MAX_MARKS = 4 * MAX_REGIONS
"""Regions that are marked in one look: one request may trim the whole export, and so may others."""

HALF_LIFE_SECONDS = 20.0
"""After so long without requests a region is half as hot."""

CHANGES = frozenset({nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES})


def region_bytes_for(size_bytes: int) -> int:
    """Return the smallest size of regions, a power of two of at least 1 MiB, of which an export has
    at most `MAX_REGIONS`."""
    region = MIB
    while -(-size_bytes // region) > MAX_REGIONS:
        region *= 2
    return region


class Heat:
    """See the module's docstring. Everything is for the loop's thread."""

    def __init__(self, size_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size_bytes = size_bytes
        self._clock = clock
        self._region_bytes = region_bytes_for(size_bytes)
        nothing = bytes(8 * -(-size_bytes // self._region_bytes))
        self._reads, self._writes = array("d", nothing), array("d", nothing)
        self._touched = array("d", nothing)
        """When; 0: never."""
        self._parsers = {
            nbd.REQUEST_MAGIC: RequestParser(extended=False),
            nbd.EXTENDED_REQUEST_MAGIC: RequestParser(extended=True),
        }
        self._look_at = self._faded_at = clock()

    def look(self, received: memoryview, end: int) -> None:
        """Count the requests that are complete in received[:end]."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        parser = self._parsers.get(int.from_bytes(received[:4]))
        if parser is None:
            return
        requests, _ = parser.parse(received, 0, end)
        if parser.large is not None:
            requests.append(parser.large)
        left = MAX_MARKS
        for request in requests:
            left -= self._mark(request, left, now)
            if left <= 0:
                return

    def _mark(self, request: Request, most: int, now: float) -> int:
        _, command, _, offset, length, _ = request
        if command == nbd.CMD_READ:
            heat = self._reads
        elif command in CHANGES:
            heat = self._writes
        else:
            return 0
        last_byte = min(offset + length, self.size_bytes) - 1
        first, last = offset // self._region_bytes, last_byte // self._region_bytes
        regions = range(first, min(last + 1, first + most))
        for region in regions:
            heat[region] += 1
            self._touched[region] = now
        return len(regions)

    def report(self) -> HeatMap:
        """Return how hot each region is now."""
        now = self._clock()
        left = 0.5 ** ((now - self._faded_at) / HALF_LIFE_SECONDS)
        self._faded_at = now
        self._reads = array("d", [one * left for one in self._reads])
        self._writes = array("d", [one * left for one in self._writes])
        return HeatMap(
            size_bytes=self.size_bytes,
            region_bytes=self._region_bytes,
            reads=tuple(round(one, 2) for one in self._reads),
            writes=tuple(round(one, 2) for one in self._writes),
            ages=tuple(round(now - at) if at else None for at in self._touched),
        )
