"""What all cache files of one directory take together, and which leaf of them is the oldest.

A leaf is used when it gets a block, and when a read asks for it, which of a *warm* leaf none does:
the fast lane reads it without asking. So the oldest leaves are made *cool* (`BlockMap`) some time
before they are evicted. A read of a cool one asks, and makes it warm again, and the newest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from bockd.drivers.cache.blockmap import LEAF_BYTES
from bockd.model import KIB
from bockd.runtime.steps import Steps

MAX_LEAVES = 256 * KIB
"""Of all caches in the process: about 800 bytes of memory each. If all of them are full they hold
256 GiB."""

_CROWDED_SHARE = 16
"""Eviction begins when less than one in so many bytes is free, and ends when two are."""

_COOL_SHARE = 4
"""One in so many leaves is cool once three quarters of the space are taken."""


class Holder(Protocol):
    """Has leaves."""

    def cool(self, number: int) -> None:
        """Hide a leaf from the fast lane."""
        ...

    def evict(self, numbers: list[int]) -> Steps[None]:
        """Take leaves out of the cache, and give their space back."""
        ...


class Space:
    """For the owner thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.missed_reads = 0
        """Reads that went to what is below, since the directory was opened."""
        self.missed_bytes = 0
        self.on_crowded: Callable[[], None] = lambda: None
        """Called when leaves should be evicted; often."""
        self._warm: OrderedDict[tuple[Holder, int], None] = OrderedDict()
        self._cool: OrderedDict[tuple[Holder, int], None] = OrderedDict()

    def take(self, count_bytes: int) -> bool:
        """Take space, or nothing, if there is not enough of it."""
        taken = self.used_bytes + count_bytes <= self.limit_bytes
        if taken:
            self.used_bytes += count_bytes
        if not taken or self.crowded:
            self.on_crowded()
        return taken

    def count(self, count_bytes: int) -> None:
        """Count what is taken already."""
        self.used_bytes += count_bytes
        if self.crowded:
            self.on_crowded()

    def give_back(self, count_bytes: int) -> None:
        self.used_bytes -= count_bytes
        assert self.used_bytes >= 0

    @property
    def crowded(self) -> bool:
        """Whether leaves should be evicted."""
        return self._lacks(1)

    @property
    def roomy(self) -> bool:
        """Whether enough of them are evicted."""
        return not self._lacks(2)

    def _lacks(self, shares: int) -> bool:
        share = max(self.limit_bytes // _CROWDED_SHARE, LEAF_BYTES)
        leaves = len(self._warm) + len(self._cool)
        return (
            self.used_bytes > self.limit_bytes - shares * share
            or leaves > MAX_LEAVES - shares * (MAX_LEAVES // _CROWDED_SHARE)
        )

    def use(self, holder: Holder, number: int) -> None:
        """Make a leaf the newest. It is warm."""
        key = (holder, number)
        self._cool.pop(key, None)
        self._warm[key] = None
        self._warm.move_to_end(key)
        if 4 * self.used_bytes > 3 * self.limit_bytes:
            self._cool_some(2)

    def enter_cool(self, holder: Holder, number: int) -> None:
        """Note a leaf that is cool, and the newest of those."""
        self._cool[(holder, number)] = None

    def leave(self, holder: Holder, number: int) -> None:
        """Forget a leaf."""
        key = (holder, number)
        self._warm.pop(key, None)
        self._cool.pop(key, None)

    def oldest(self, count: int) -> list[tuple[Holder, int]]:
        """Return the oldest leaves, at most so many, and forget them: they are to be evicted."""
        self._cool_some(count)
        found: list[tuple[Holder, int]] = []
        while len(found) < count and (self._cool or self._warm):
            found.append((self._cool or self._warm).popitem(last=False)[0])
        return found

    def _cool_some(self, count: int) -> None:
        for _ in range(count):
            if not self._warm or _COOL_SHARE * len(self._cool) > len(self._warm) + len(self._cool):
                return
            (holder, number), _ = self._warm.popitem(last=False)
            holder.cool(number)
            self._cool[(holder, number)] = None
