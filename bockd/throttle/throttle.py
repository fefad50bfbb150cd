"""What holds the requests of one volume, or of one tenant, to its limits.

A request that finds too few tokens waits in a *flow*: that of its source (a volume of the tenant;
of a volume's own throttle there is one source) and direction, in the order in which they came. A
flow's first request waits for the first of its buckets that has not enough for it, in the order
from that of its direction to that of all. Nobody younger takes from that bucket meanwhile, so that
small requests do not starve a large one; but reads pass writes whose own limit is used up. Flows
are served in turn, a request each.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bockd.model import NO_IO_LIMITS, IoLimits
from bockd.throttle.bucket import Bucket, buckets_of

log = logging.getLogger(__name__)

Clock = Callable[[], int]
"""Nanoseconds that never go back."""

_Flow = tuple[object, bool]
"""A source, and whether it reads."""

_Queue = OrderedDict["Waiter", None]
"""Who waits, in order. Any of them leaves it in constant time: clients of one volume may have tens
of thousands, which all leave at once when a fence lets them pass."""

_WRITING, _READING = range(2)


class _Costed(NamedTuple):
    """A bucket, and what is taken from it."""

    bucket: Bucket
    counts_bytes: bool


class Waiter:
    """A request that waits."""

    __slots__ = ("flow", "granted", "length_bytes")

    def __init__(self, flow: _Flow, length_bytes: int, granted: Callable[[], None]) -> None:
        self.flow = flow
        self.length_bytes = length_bytes
        self.granted = granted


class Throttle:
    """See the module's docstring. All methods are for one thread; none waits."""

    def __init__(self, clock: Clock, wake_at: Callable[[Throttle, int], None]) -> None:
        """`wake_at` is told when `pump` is to be called; only the earliest time of those that are
        to come counts."""
        self.limits = NO_IO_LIMITS
        self.limited = False
        """Whether there is any limit."""
        self._clock = clock
        self._wake_at = wake_at
        self._named: dict[str, list[Bucket]] = {}
        self._ways: tuple[tuple[_Costed, ...], tuple[_Costed, ...]] = ((), ())
        """The buckets of a write, and of a read."""
        self._of_all: frozenset[Bucket] = frozenset()
        """Those that every request needs."""
        self._flows: dict[_Flow, _Queue] = {}
        """None is empty. The first one has waited longest for its turn."""
        self._awaited: set[Bucket] = set()
        """Those for which the first request of a flow waits."""

    def configure(self, limits: IoLimits) -> None:
        """Put other limits in place. What was saved up, or overdrawn, stays so."""
        if limits == self.limits:
            return
        now = self._clock()
        named = {name: buckets_of(rate, now) for name, rate in limits.rates().items()}
        for name, buckets in named.items():
            for new, old in zip(buckets, self._named.get(name, ()), strict=False):
                new.inherit(old, now)
        self.limits, self._named, self.limited = limits, named, bool(named)
        self._ways = self._way("write"), self._way("read")
        self._of_all = frozenset(one.bucket for one in self._costed(("iops", "bps")))
        self.pump()

    def _way(self, direction: str) -> tuple[_Costed, ...]:
        names = (f"{direction}_iops", f"{direction}_bps", "iops", "bps")
        return tuple(self._costed(names))

    def _costed(self, names: Iterable[str]) -> Iterable[_Costed]:
        for name in names:
            for bucket in self._named.get(name, ()):
                yield _Costed(bucket, name.endswith("bps"))

    # -- passing -----------------------------------------------------------------------------------

    def passes(self, source: object, reads: bool, length_bytes: int) -> bool:
        """Take what a request costs, and return True. False, with nothing taken, if it must
        `wait`."""
        way = self._ways[reads]
        if self._flows:
            if (source, reads) in self._flows:
                return False
            if any(one.bucket in self._awaited for one in way):
                return False
        now = self._clock()
        operations = self._operations(length_bytes)
        for bucket, counts_bytes in way:
            bucket.fill(now)
            cost = length_bytes if counts_bytes else operations
            if cost and not bucket.has(cost):
                return False
        self._take(way, length_bytes)
        return True

    def wait(
        self, source: object, reads: bool, length_bytes: int, granted: Callable[[], None]
    ) -> Waiter:
        """Have `granted` called when the request may pass: then it has paid. Not before this has
        returned."""
        waiter = Waiter((source, reads), length_bytes, granted)
        queue = self._flows.get(waiter.flow)
        if queue is not None:
            queue[waiter] = None
            return waiter
        self._flows[waiter.flow] = OrderedDict({waiter: None})
        self._fill()
        lacking = self._lacking(waiter)
        if lacking is None:  # it has come meanwhile
            self._wake_at(self, self._clock())
        else:
            self._look_out(*lacking)
        return waiter

    def drop(self, waiters: Iterable[Waiter]) -> None:
        """Forget requests that wait, or have waited."""
        for waiter in waiters:
            self._remove(waiter)
        self.pump()

    def force(self, waiter: Waiter) -> None:
        """Take what a waiting request costs, though it is not there: it passes now. The rest pays
        for it."""
        self._remove(waiter)
        self.charge(waiter.flow[1], waiter.length_bytes)

    def charge(self, reads: bool, length_bytes: int) -> None:
        """Have a request pay that does not wait: what is not there is owed."""
        self._fill()
        operations = self._operations(length_bytes)
        for bucket, counts_bytes in self._ways[reads]:
            bucket.charge(length_bytes if counts_bytes else operations)

    def solvent_at(self) -> int:
        """Return when nothing will be owed to any of the buckets, if nobody is forced any more."""
        self._fill()
        buckets = [bucket for named in self._named.values() for bucket in named]
        return max((bucket.solvent_at() for bucket in buckets), default=0)

    def pump(self) -> None:
        """Let pass who may, and ask to be called again for the others."""
        self._fill()
        passed: list[Waiter] = []
        while self._turn(passed):
            pass
        for waiter in passed:
            try:
                waiter.granted()
            except Exception:  # one client's trouble must not become another's
                log.exception("a request that may pass its limits was not served")

    def _turn(self, passed: list[Waiter]) -> bool:
        """Let the first request of each flow pass, if it may. Return whether any did."""
        self._awaited.clear()
        before = len(passed)
        for flow in list(self._flows):
            queue = self._flows[flow]
            waiter = next(iter(queue))
            lacking = self._lacking(waiter)
            if lacking is not None:
                self._look_out(*lacking)
                if lacking[0] in self._of_all:
                    break  # nobody passes
                continue
            self._take(self._ways[flow[1]], waiter.length_bytes)
            del queue[waiter]
            passed.append(waiter)
            del self._flows[flow]
            if queue:
                self._flows[flow] = queue  # behind all others
        return len(passed) > before

    def _lacking(self, waiter: Waiter) -> tuple[Bucket, int] | None:
        """The bucket for which a request has to wait, and what it costs there."""
        operations = self._operations(waiter.length_bytes)
        for bucket, counts_bytes in self._ways[waiter.flow[1]]:
            cost = waiter.length_bytes if counts_bytes else operations
            if cost and (bucket in self._awaited or not bucket.has(cost)):
                return bucket, cost
        return None

    def _look_out(self, bucket: Bucket, cost: int) -> None:
        """Have the first request of a flow looked at again when the bucket has enough for it. If an
        older one waits for the same bucket, that one is looked at."""
        if bucket not in self._awaited:
            self._awaited.add(bucket)
            self._wake_at(self, bucket.ready_at(cost))

    def _remove(self, waiter: Waiter) -> None:
        queue = self._flows.get(waiter.flow)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        if not queue:
            del self._flows[waiter.flow]

    # -- tokens ------------------------------------------------------------------------------------

    def _operations(self, length_bytes: int) -> int:
        size = self.limits.iops_size
        return 1 if size is None or length_bytes <= size else -(-length_bytes // size)

    def _fill(self) -> None:
        now = self._clock()
        for buckets in self._named.values():
            for bucket in buckets:
                bucket.fill(now)

    def _take(self, way: Iterable[_Costed], length_bytes: int) -> None:
        operations = self._operations(length_bytes)
        for bucket, counts_bytes in way:
            bucket.take(length_bytes if counts_bytes else operations)
