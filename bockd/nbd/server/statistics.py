"""Counters and latencies of one export, cheap enough for the hot path.

A batch adds its counts once. How long its requests took, from parsed to queued, is entered once for
all of an operation (durations.py): they were answered together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bockd.control import VolumeStatistics
from bockd.nbd.protocol.transmission import Request
from bockd.nbd.server.durations import Durations
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.heat import Heat
from bockd.nbd.server.tracering import Ring

_COUNTERS = ("reads", "read_bytes", "writes", "written_bytes", "flushes", "trims", "errors")


class ExportStatistics:
    """What one export has served since its first connection."""

    __slots__ = (
        "_note",
        "durations",
        "errors",
        "flushes",
        "heat",
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

    def answered(self, requests: Sequence[Request], started: int, now: int) -> None:
        """Enter how long requests took that were answered together, in a recording, too, if there
        is one. Both times are as `perf_counter_ns` has them."""
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
        p50, p99, p999 = self.durations.percentiles(0.5, 0.99, 0.999)
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
