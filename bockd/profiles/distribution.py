"""Latencies as a distribution: from a random number to a time."""

from __future__ import annotations

from bisect import bisect_right

from bockd.model import DeviceLatency

US_NS = 1_000


class Distribution:
    """The inverse of a distribution function. Between two points it is interpolated by ratio, since
    latencies differ by orders of magnitude; from 0 on linearly."""

    def __init__(self, latency: DeviceLatency) -> None:
        points = {"50": latency} if isinstance(latency, int) else latency
        ordered = sorted((float(percent) / 100, us * US_NS) for percent, us in points.items())
        self._fractions = [fraction for fraction, _ in ordered]
        self._values = [value for _, value in ordered]

    def at(self, fraction: float) -> int:
        """Return the nanoseconds that this fraction of all requests do not exceed; with a uniform
        random number from 0 to 1 it is a random latency."""
        fractions, values = self._fractions, self._values
        above = bisect_right(fractions, fraction)
        if not above:
            return values[0]
        if above == len(fractions):
            return values[-1]
        low, high = fractions[above - 1], fractions[above]
        part = (fraction - low) / (high - low)
        begin, end = values[above - 1], values[above]
        if not begin:
            return round(part * end)
        ratio: float = (end / begin) ** part
        return round(begin * ratio)

    @property
    def nothing(self) -> bool:
        """Whether all latencies are 0."""
        return not self._values[-1]
