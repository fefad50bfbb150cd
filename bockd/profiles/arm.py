"""A spinning disk's arm and platters: how long a request takes to get at its place, and to pass.

A seek over the part d of the whole stroke takes

    track + (full - track) * d ** p

which with p = 1/2 is the curve of Ruemmler and Wilkes for short seeks ("An introduction to disk
drive modeling", IEEE Computer 27(3), 1994). p is chosen so that the mean over all pairs of places
is the average of the data sheet: the mean of d ** p for two places at random is
2 / ((p + 1) (p + 2)).

A volume lies on the disk from the outermost track to the innermost, its offsets in order. Behind a
seek the place comes by within a revolution, at a random moment. A request that begins where the
last one ended needs neither: disks read ahead. One that is no farther than a track needs no seek.
"""

from __future__ import annotations

from math import sqrt
from random import Random

from bockd.model import SpinningDisk
from bockd.profiles.distribution import US_NS

_SECOND_NS = 1_000_000_000
_MINUTE_NS = 60 * _SECOND_NS

MIN_MEAN, MAX_MEAN = 1 / 6, 0.95
"""Of d ** p: for p from 2, a curve that no arm has, down to nearly 0."""


def mean_distance(disk: SpinningDisk) -> float:
    """Return what the mean of d ** p must be for the average seek time."""
    return (disk.average_seek_us - disk.track_seek_us) / (disk.full_seek_us - disk.track_seek_us)


class Arm:
    """Where the arm is, and how long it takes from there."""

    def __init__(self, disk: SpinningDisk, random: Random) -> None:
        self._track_ns = disk.track_seek_us * US_NS
        self._more_ns = (disk.full_seek_us - disk.track_seek_us) * US_NS
        # (p + 1) (p + 2) = 2 / mean
        self.power = (sqrt(1 + 8 / mean_distance(disk)) - 3) / 2
        self._revolution_ns = _MINUTE_NS // disk.rpm
        self._outer = disk.outer_bytes_per_second
        self._slower = disk.outer_bytes_per_second - disk.inner_bytes_per_second
        self._random = random
        self._at = 0

    def move(self, offset: int, length: int, size_bytes: int) -> int:
        """Serve a request of a volume of that size. Return how long that takes, in nanoseconds."""
        per_second = self._outer - self._slower * offset // size_bytes
        taken = length * _SECOND_NS // per_second
        if offset != self._at:
            distance = abs(offset - self._at)
            if distance * _SECOND_NS > per_second * self._revolution_ns:  # more than a track
                taken += self._track_ns + round(
                    self._more_ns * (distance / size_bytes) ** self.power
                )
            taken += round(self._random.random() * self._revolution_ns)
        self._at = offset + length
        return taken
