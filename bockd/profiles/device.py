"""The device that a profile makes of a volume: when each request is answered, and how.

It is asked once for each request, in the order in which they come (`plan`), and knows no clock: the
caller says what time it is. The pool's work is none of its business. What it says of a request is
the earliest moment of the answer, or an error, of which the request is not carried out.

A request that comes while the device is stuck begins when that is over; then it waits for the
tokens of the limits, in order, and for a place among those that are worked on; then it takes what
its latency and the arm take.

Everything random comes from generators that the seed starts, one for each purpose: the errors of a
profile do not change its latencies. What a request takes by itself follows from the requests before
it alone; how long it waits for others follows from when they came, too.
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from random import Random
from typing import NamedTuple

from bockd.model import DeviceOperation, DeviceProfile
from bockd.profiles.arm import Arm
from bockd.profiles.distribution import Distribution
from bockd.profiles.faults import Failing, Stalls
from bockd.throttle.bucket import Bucket, buckets_of

_MOVING = frozenset({DeviceOperation.READ, DeviceOperation.WRITE})


class Plan(NamedTuple):
    """What becomes of a request."""

    due_ns: int
    """When it may be answered, by the clock of the `now` that was given."""
    error: str | None
    """The name of an errno: the answer of a request that is not to be carried out."""
    device: ProfiledDevice | None
    """Who says so. When it is another one's turn nothing waits any more."""


class _Limit(NamedTuple):
    bucket: Bucket
    operations: frozenset[DeviceOperation]
    counts_bytes: bool


class ProfiledDevice:
    """See the module's docstring. All methods are for one thread; none waits."""

    def __init__(self, profile: DeviceProfile, now: int) -> None:
        self.profile = profile
        self.requests = 0
        """How many have been planned."""
        seed = profile.seed
        self._latency_random = Random(f"{seed}/latency")  # noqa: S311 - not a secret
        error_random = Random(f"{seed}/errors")  # noqa: S311
        arm_random = Random(f"{seed}/arm")  # noqa: S311
        self._latencies = {
            DeviceOperation.READ: Distribution(profile.read_us),
            DeviceOperation.WRITE: Distribution(profile.write_us),
            DeviceOperation.TRIM: Distribution(profile.trim_us),
            DeviceOperation.FLUSH: Distribution(profile.flush_us),
        }
        self._arm = None if profile.disk is None else Arm(profile.disk, arm_random)
        self._failing = [
            Failing(rule, number, seed, error_random) for number, rule in enumerate(profile.errors)
        ]
        self._stalls = Stalls(profile.stalls)
        self._limits = _limits(profile, now)
        self._iops_size = None if profile.limits is None else profile.limits.iops_size
        parallel = 1 if profile.disk is not None else profile.parallel
        self._free_at = [] if parallel is None else [now] * parallel
        heapify(self._free_at)

    def plan(
        self,
        operation: DeviceOperation,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        size_bytes: int,
        now: int,
    ) -> Plan:
        """Take a request that comes `now` to a volume of that size, and that the volume can do."""
        before, self.requests = self.requests, self.requests + 1
        fraction = self._latency_random.random()
        failing = next(
            (one for one in self._failing if one.hits(operation, offset, length, before)), None
        )
        taken = self._taken(operation, offset, length, fraction, fua, size_bytes, failing)
        start = self._passes_at(operation, length, self._stalls.until(before, now))
        if self._free_at:
            start = max(start, self._free_at[0])
            heapreplace(self._free_at, start + taken)
        return Plan(start + taken, None if failing is None else failing.rule.errno.value, self)

    def _taken(
        self,
        operation: DeviceOperation,
        offset: int,
        length: int,
        fraction: float,
        fua: bool,
        size_bytes: int,
        failing: Failing | None,
    ) -> int:
        """How long a request takes by itself, in nanoseconds."""
        if failing is not None and failing.latency is not None:
            return failing.latency.at(fraction)
        taken = self._latencies[operation].at(fraction)
        if fua:
            taken += self._latencies[DeviceOperation.FLUSH].at(fraction)
        if self._arm is not None and operation in _MOVING:
            taken += self._arm.move(offset, length, size_bytes)
        return taken

    def _passes_at(self, operation: DeviceOperation, length: int, start: int) -> int:
        """When there are tokens for a request that may begin at `start`. They are taken."""
        size = self._iops_size
        counted = 1 if size is None or length <= size else -(-length // size)
        passes = start
        for bucket, operations, counts_bytes in self._limits:
            if operation in operations:
                bucket.fill(start)
                moved = length if operation in _MOVING else 0
                bucket.take(moved if counts_bytes else counted)
                passes = max(passes, bucket.ready_at(0))
        return passes


def _limits(profile: DeviceProfile, now: int) -> list[_Limit]:
    """The buckets of a profile. A trim is a write, and a flush costs nothing, as in the limits of a
    volume (docs/limits.md)."""
    found = []
    for name, rate in ({} if profile.limits is None else profile.limits.rates()).items():
        operations = set(_MOVING)
        if name.startswith("read"):
            operations = {DeviceOperation.READ}
        elif name.startswith("write"):
            operations = {DeviceOperation.WRITE}
        if DeviceOperation.WRITE in operations:
            operations.add(DeviceOperation.TRIM)
        for bucket in buckets_of(rate, now):
            bucket.spend(100 - profile.credits_percent)
            found.append(_Limit(bucket, frozenset(operations), name.endswith("bps")))
    return found
