"""Numbers about a trace: what was asked for, how large, where, and how long it took.

All of it is exact. Memory: 8 bytes for each request (latencies), and a bit for each 4 KiB block in
the pieces of 128 MiB that were touched; not for those that one request covers.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bockd.trace.records import FLAG_NAMES, FUA, Kind, Record

BLOCK_BYTES: Final = 4096
REGION_BYTES: Final = 1 << 20
"""Requests are counted for each of these, for what is said of hot places."""
STREAMS: Final = 32
"""A request is sequential if it begins where one of the last 32 of its kind ended: so several
readers side by side are seen as such."""
HOT_SHARES: Final = (1, 10, 50)
"""Percent of the touched regions, the busiest first."""
FRACTIONS: Final = (0.5, 0.9, 0.99, 0.999)
_PIECE_BLOCKS: Final = 32768
_WHOLE: Final = (1 << _PIECE_BLOCKS) - 1
_PLACED: Final = (Kind.READ, Kind.WRITE, Kind.TRIM, Kind.ZERO)
_DATA: Final = (Kind.READ, Kind.WRITE)


def percentile(ordered: Sequence[int], fraction: float) -> int:
    """Return the smallest value that at least this fraction of all values do not exceed (nearest
    rank); 0 when there is none."""
    if not ordered:
        return 0
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


class Blocks:
    """A set of blocks of 4 KiB."""

    def __init__(self) -> None:
        self._pieces: dict[int, int] = {}
        """Bits of `_PIECE_BLOCKS` blocks each."""

    def add(self, offset: int, length: int) -> None:
        """Add the blocks that a range of bytes touches."""
        block, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        while block < end:
            piece, at = divmod(block, _PIECE_BLOCKS)
            count = min(end - block, _PIECE_BLOCKS - at)
            if count == _PIECE_BLOCKS:
                self._pieces[piece] = _WHOLE
            else:
                self._pieces[piece] = self._pieces.get(piece, 0) | ((1 << count) - 1) << at
            block += count

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self._pieces.values())


@dataclass(frozen=True, slots=True)
class KindSummary:
    """Of the requests of one kind."""

    kind: str
    requests: int
    bytes: int
    fua: int
    sequential: int
    """Of the requests."""
    sizes: dict[int, int]
    """Requests by length, in bytes."""
    latency_us: dict[str, float]
    """Percentiles; empty when the trace tells none."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a whole trace. Sizes in bytes."""

    requests: int
    seconds: float
    """From the first request to the last."""
    end_bytes: int
    """Where the request ends that reaches farthest."""
    read_set_bytes: int
    """Blocks of 4 KiB that were read; `write_set_bytes` and `working_set_bytes` alike: written, and
    one of both."""
    write_set_bytes: int
    working_set_bytes: int
    hot: dict[int, float]
    """Of the regions of 1 MiB that reads and writes touched, the busiest percent, and which share
    of the reads and writes (0 to 1) begins there."""
    flags: dict[str, int]
    kinds: tuple[KindSummary, ...]
    lost: int = 0
    complete: bool = True


class _Kind:
    """What is counted of one kind."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.fua = self.sequential = 0
        self.sizes: Counter[int] = Counter()
        self.latencies = array("Q")
        self.ends: deque[int] = deque(maxlen=STREAMS)

    def add(self, record: Record) -> None:
        self.requests += 1
        self.bytes += record.length
        self.fua += record.flags & FUA
        self.sizes[record.length] += 1
        if record.latency_ns:
            self.latencies.append(record.latency_ns)
        if record.kind in _PLACED:
            self._follow(record)

    def _follow(self, record: Record) -> None:
        end = record.offset + record.length
        try:
            self.ends.remove(record.offset)
            self.sequential += 1
        except ValueError:
            pass
        self.ends.append(end)

    def summary(self, kind: Kind) -> KindSummary:
        ordered = sorted(self.latencies)
        shown = {f"p{100 * one:g}": percentile(ordered, one) / 1000 for one in FRACTIONS}
        return KindSummary(
            kind.name.lower(),
            self.requests,
            self.bytes,
            self.fua,
            self.sequential,
            dict(sorted(self.sizes.items())),
            shown if ordered else {},
        )


class Summarizing:
    """Takes records in the order of arrival."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Kind] = {}
        self._first_ns: int | None = None
        self._last_ns = 0
        self._end_bytes = 0
        self._read, self._written = Blocks(), Blocks()
        self._any = Blocks()
        self._regions: Counter[int] = Counter()
        self._flags: Counter[int] = Counter()

    def add(self, record: Record) -> None:
        """Count one request."""
        kind = record.kind
        self._kinds.setdefault(kind, _Kind()).add(record)
        if self._first_ns is None:
            self._first_ns = record.time_ns
        self._last_ns = max(self._last_ns, record.time_ns)
        self._end_bytes = max(self._end_bytes, record.offset + record.length)
        if record.flags:
            self._flags.update(bit for bit in FLAG_NAMES if record.flags & bit)
        if kind in _DATA and record.length:
            (self._read if kind is Kind.READ else self._written).add(record.offset, record.length)
            self._any.add(record.offset, record.length)
            self._regions[record.offset // REGION_BYTES] += 1

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records, and count them."""
        for record in records:
            self.add(record)
            yield record

    def summary(self, *, lost: int = 0, complete: bool = True) -> Summary:
        """Return the numbers of all that was counted."""
        first = self._first_ns or 0
        return Summary(
            sum(one.requests for one in self._kinds.values()),
            max(0, self._last_ns - first) / 1e9,
            self._end_bytes,
            len(self._read) * BLOCK_BYTES,
            len(self._written) * BLOCK_BYTES,
            len(self._any) * BLOCK_BYTES,
            hot_shares(self._regions),
            {FLAG_NAMES[bit]: count for bit, count in sorted(self._flags.items())},
            tuple(self._kinds[kind].summary(kind) for kind in sorted(self._kinds)),
            lost,
            complete,
        )


def hot_shares(regions: Counter[int]) -> dict[int, float]:
    """Return for each of `HOT_SHARES` which share of all requests the busiest regions have."""
    counts = [count for _, count in regions.most_common()]
    total = sum(counts)
    if not total:
        return {}
    return {
        percent: sum(counts[: math.ceil(len(counts) * percent / 100)]) / total
        for percent in HOT_SHARES
    }


def size_classes(sizes: dict[int, int]) -> list[tuple[int, int]]:
    """Return how many requests have at most so many bytes and more than the class before, for the
    powers of two from 512 on that occur."""
    classes: Counter[int] = Counter()
    bounds = [512 << power for power in range(55)]
    for size, count in sizes.items():
        classes[bounds[bisect_left(bounds, size)]] += count
    return sorted(classes.items())
