"""Latencies that were recorded, as those of a profile."""

from __future__ import annotations

from collections.abc import Sequence

from bockd.model import DeviceLatency
from bockd.profiles.distribution import US_NS
from bockd.trace.summary import percentile

PERCENTS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 99.99, 100)
"""What is kept of latencies that were recorded. Half as many points already give any percentile
between them within a few percent; those of the tail are what differs between devices."""


def latency_of(recorded_ns: Sequence[int]) -> DeviceLatency:
    """Return the percentiles of latencies that were recorded, of which there is at least one."""
    ordered = sorted(recorded_ns)
    found = {f"{percent:g}": percentile(ordered, percent / 100) for percent in PERCENTS}
    return {percent: round(ns / US_NS) for percent, ns in found.items()}
