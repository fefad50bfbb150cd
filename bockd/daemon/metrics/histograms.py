"""Durations of requests (`bockd.nbd.server.durations`) as Prometheus has histograms."""

from __future__ import annotations

from itertools import accumulate

from bockd.nbd.server.durations import BOUNDS_NS, Durations, Operation

FINE = 1
COARSE = 2
"""Every other bound is shown: where there is a histogram for each export."""

Buckets = list[tuple[str, float]]


def cumulative(durations: Durations, operation: Operation, grain: int) -> Buckets:
    """Return the buckets by their upper bound in seconds, each with the requests of all that are
    below it."""
    counts = list(accumulate(durations.between_bounds(operation)))
    shown = range(0, len(BOUNDS_NS), grain)
    bounds = [(str(BOUNDS_NS[place] / 1e9), float(counts[place])) for place in shown]
    return [*bounds, ("+Inf", float(counts[-1]))]
