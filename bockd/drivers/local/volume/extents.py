"""Where an open device holds data: a walk along its map, as far as that is in memory.

A walk stops where a leaf must be loaded first, and goes on from there. It looks at each leaf once,
and no further than the extents need that were asked for. What it has passed is as old as the
moment when it did: newer than all that was acknowledged before the walk began.
"""

from __future__ import annotations

import re

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_BYTES
from bockd.drivers.local.volume.leafcache import LeafCache, SlotLeaf
from bockd.drivers.local.volume.slots import HOLE_SLOT
from bockd.model import BLOCK_SIZE, Extent

WALK_STEPS = 4096
"""How far one walk goes: about 1 ms, which is a turn of the event loop."""

_ALIKE_TO_A_STEP = 4
"""Leaves in a row that are the same, or groups that are known to be: 1 TiB of them in one walk."""

_MIXED_STEPS = 6
"""Of a leaf that has to be looked into."""

_EXTENT_STEPS = 2
"""Of an extent, and of its part of the reply."""

_LOAD_STEPS = 128
"""Of a group that has to be loaded, beside the thread's work."""

_SAME = re.compile(rb"\0+|[^\0]+")


class ExtentWalk:
    """Describes the bytes from `offset` on as alternating extents: at most `limit`, and not beyond
    `length` bytes. For the owner thread."""

    def __init__(self, cache: LeafCache, offset: int, length: int, limit: int) -> None:
        self.extents: list[Extent] = []
        """What was found, once `go_on` has returned None: at least one."""
        self._cache = cache
        self._group_leaves = len(cache.leaves_of(0))
        self._group_bytes = self._group_leaves * LEAF_BYTES
        self._limit = limit
        self._stop = offset + length
        self._steps = WALK_STEPS
        # The extent that the walk is in: where it begins, and what it is if that is known.
        self._begin = self._at = offset
        self._hole: bool | None = None

    def go_on(self) -> int | None:
        """Walk on. Return the number of the leaf that must be loaded before the next call, or None
        at the end."""
        cache, group_bytes = self._cache, self._group_bytes
        since = self._at
        while self._at < self._stop and self._steps > 0:
            self._steps -= 1
            number = self._at // LEAF_BYTES
            group = cache.group_of(number)
            holes = cache.kind(group)
            if holes is not None:
                more = self._pass_known(group, holes=holes)
            elif (leaf := cache.find(number)) is None:
                self._steps -= _LOAD_STEPS
                return number
            elif cache.is_shared(leaf):
                more = self._pass_alike(number, hole=leaf[0] == HOLE_SLOT)
            else:
                more = self._pass_mixed(number * LEAF_BYTES, leaf)
                if self._hole:  # blocks of a leaf that is not shared are assigned in place
                    since = self._at
            if not more:
                return None
            if not self._at % group_bytes and max(since, self._begin) <= group * group_bytes:
                cache.note_kind(group, holes=self._hole is True)
        assert self._hole is not None
        self._end(self._at)
        return None

    def _pass_known(self, group: int, *, holes: bool) -> bool:
        """Pass a group of which it is known what it is, and those behind it that are the same."""
        first, end = group, -(-self._stop // self._group_bytes)
        end = min(end, first + 1 + self._steps * _ALIKE_TO_A_STEP)
        while group < end and self._cache.kind(group) is holes:
            group += 1
        self._steps -= (group - first) // _ALIKE_TO_A_STEP
        return self._pass(group * self._group_bytes, hole=holes)

    def _pass_alike(self, number: int, *, hole: bool) -> bool:
        """Pass a uniform leaf, and those of its group behind it that are the same."""
        leaves, first = self._cache.leaves, number
        leaf = leaves.get(number)
        number += 1
        while number % self._group_leaves and leaves.get(number) is leaf:
            number += 1
        self._steps -= (number - first) // _ALIKE_TO_A_STEP
        return self._pass(number * LEAF_BYTES, hole=hole)

    def _pass_mixed(self, base: int, leaf: SlotLeaf) -> bool:
        """Pass a leaf that begins at byte `base`."""
        self._steps -= _MIXED_STEPS
        held = _held(leaf)
        first, end = (self._at - base) // BLOCK_SIZE, -(-(self._stop - base) // BLOCK_SIZE)
        for run in _SAME.finditer(held, first, end):
            if not self._pass(base + run.end() * BLOCK_SIZE, hole=not held[run.start()]):
                return False
        return True

    def _pass(self, end: int, *, hole: bool) -> bool:
        """Pass the bytes up to `end`. Return False, having passed none, if they would belong to an
        extent too many."""
        if hole is not self._hole:
            if self._hole is not None:
                self._end(self._at)
                if len(self.extents) == self._limit:
                    return False
            self._hole = hole
        self._at = min(end, self._stop)
        return True

    def _end(self, end: int) -> None:
        """End the extent that the walk is in."""
        assert self._hole is not None
        self._steps -= _EXTENT_STEPS
        self.extents.append(Extent(self._begin, end - self._begin, self._hole))
        self._begin = end


def _held(leaf: SlotLeaf) -> bytes:
    """Return a byte for each block of a leaf, zero if it is a hole."""
    slots = leaf.tobytes()
    low, high = slots[::2], slots[1::2]
    if high.count(0) == LEAF_BLOCKS:
        return low
    either = int.from_bytes(low, "little") | int.from_bytes(high, "little")
    return either.to_bytes(LEAF_BLOCKS, "little")
