"""Counters and latencies of one export, cheap enough for the hot path.

A batch adds its counts once. Its latency, from parsed to queued, is entered once for all of its
requests: they were answered together. Histograms have eight steps to each doubling (at most 12%
off), and the two most recent ones are read, so that percentiles are of recent requests. Those of
all requests since the beginning, by operation, are coarser (durations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bockd.control import VolumeStatistics
from bockd.nbd.protocol.transmission import Request
from bockd.nbd.server.durations import Durations
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.heat import Heat
from bockd.nbd.server.tracering import Ring

_STEPS_PER_DOUBLING = 8
_BUCKETS = 64 * _STEPS_PER_DOUBLING
_WINDOW_REQUESTS = 50_000
"""Requests after which the older of two histograms is forgotten: 0.1% of it is still 50 of them."""


def bucket_of(nanoseconds: int) -> int:
    """Return the histogram bucket of a duration."""
    exponent = nanoseconds.bit_length()
    if exponent <= 4:
        return nanoseconds
    return exponent * _STEPS_PER_DOUBLING + ((nanoseconds >> (exponent - 4)) & 7)


def bucket_microseconds(bucket: int) -> float:
    """Return the middle of a bucket in microseconds."""
    exponent, step = divmod(bucket, _STEPS_PER_DOUBLING)
    if exponent <= 4:
        return bucket / 1000
    return ((8 + step) + 0.5) * (1 << (exponent - 4)) / 1000


class Latencies:
    """A histogram over the last 50,000 to 100,000 requests."""

    __slots__ = ("_count", "_earlier", "_recent")

    def __init__(self) -> None:
        self._recent = [0] * _BUCKETS
        self._earlier = [0] * _BUCKETS
        self._count = 0

    def add(self, nanoseconds: int, requests: int) -> None:
        """Enter `requests` requests that took this long."""
        self._recent[bucket_of(nanoseconds)] += requests
        self._count += requests
        if self._count > _WINDOW_REQUESTS:
            self._earlier, self._recent = self._recent, [0] * _BUCKETS
            self._count = 0

    def percentiles(self, *fractions: float) -> list[float]:
        """Return the microseconds below which each fraction of the requests lies; 0 when there are
        none."""
        counts = [a + b for a, b in zip(self._earlier, self._recent, strict=True)]
        total = sum(counts)
        return [self._percentile(counts, total * fraction) for fraction in fractions]

    def _percentile(self, counts: list[int], rank: float) -> float:
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= rank:
                return bucket_microseconds(bucket)
        return 0.0


_COUNTERS = ("reads", "read_bytes", "writes", "written_bytes", "flushes", "trims", "errors")


class ExportStatistics:
    """What one export has served since its first connection."""

    __slots__ = (
        "_note",
        "durations",
        "errors",
        "flushes",
        "heat",
        "latencies",
        "read_bytes",
        "reads",
        "trace",
        "trims",
        "writes",
        "written_bytes",
    )

    def __init__(self, note: Callable[[str, Exception, int], None] | None = None) -> None:
        """`note` is told of failed operations: what they were, why and how many."""
        self._note = note
        self.reads = 0
        self.read_bytes = 0
        self.writes = 0
        self.written_bytes = 0
        self.flushes = 0
        self.trims = 0
        self.errors = 0
        self.latencies = Latencies()
        self.durations = Durations()
        self.heat: Heat | None = None
        """Looks at requests while somebody watches."""
        self.trace: Ring | None = None
        """Where requests are noted while somebody records them."""

    def merge(self, other: ExportStatistics) -> None:
        """Add the counters and durations of another export."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.durations.merge(other.durations)

    def by_operation(self) -> tuple[int, int, int, int]:
        """Return how many requests were counted, in the order of `Operation`."""
        return self.reads, self.writes, self.flushes, self.trims

    def took(self, operation: int, nanoseconds: int) -> None:
        """Enter how long one request took; `operation` as in `Operation`."""
        self.latencies.add(nanoseconds, 1)
        self.durations.add(operation, nanoseconds)

    def answered(self, requests: Sequence[Request], started: int, now: int) -> None:
        """Enter how long requests took that were answered together, in a recording, too, if there
        is one. Both times are as `perf_counter_ns` has them."""
        self.latencies.add(now - started, len(requests))
        self.durations.add_requests(requests, now - started)
        if self.trace is not None:
            self.trace.add(requests, started, now)

    def failed(self, operation: str, error: Exception, count: int = 1) -> None:
        """Count operations that failed in the device, and report them to the operator."""
        self.errors += count
        if self._note is not None:
            self._note(operation, error, count)

    def report(self, key: ExportKey, name: str, connections: int) -> VolumeStatistics:
        """Return the counters as the control interface gives them."""
        p50, p99, p999 = self.latencies.percentiles(0.5, 0.99, 0.999)
        return VolumeStatistics(
            id=key.id,
            name=name,
            kind=key.kind,
            connections=connections,
            reads=self.reads,
            read_bytes=self.read_bytes,
            writes=self.writes,
            written_bytes=self.written_bytes,
            flushes=self.flushes,
            trims=self.trims,
            errors=self.errors,
            latency_p50_us=p50,
            latency_p99_us=p99,
            latency_p999_us=p999,
        )
