"""Blocks of an open volume become holes in its leaf cache: what zero and trim do to the map.

The blocks are divided into groups of leaves that are covered as a whole, of which nothing need be
in memory, and what is before and after these, whose leaves are needed.
"""

from __future__ import annotations

from typing import NamedTuple

from bockd.drivers.local.format.leaf import LEAF_SHIFT
from bockd.drivers.local.volume import leafcache
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.slots import HOLE_SLOT


class HolePlan(NamedTuple):
    """Blocks first..end-1 as groups that they cover, and what is before and after these."""

    first: int
    end: int
    groups_first: int
    """The first block of the groups. The last one of a device may be short."""
    groups_end: int
    groups: range

    def leaves_beside(self) -> set[int]:
        """Return the numbers of the leaves that the groups do not cover."""
        return {
            number
            for first, end in ((self.first, self.groups_first), (self.groups_end, self.end))
            if first < end
            for number in range(first >> LEAF_SHIFT, -(-end >> LEAF_SHIFT))
        }


class MadeHoles(NamedTuple):
    """What became holes."""

    first: int
    end: int
    """All changes are within these blocks, which are all holes now."""
    of_head: bool
    """Some of them may have been in the head."""
    cells: tuple[range, ...] = ()
    """Of a packed head: the cells of those of them that were in it, and whose leaves were in
    memory."""


def plan_holes(first: int, end: int, size: int) -> HolePlan:
    """Plan to make blocks first..end-1 of a device of `size` blocks holes."""
    blocks = leafcache.GROUP_LEAVES << LEAF_SHIFT
    start = -(-first // blocks)
    stop = -(-end // blocks) if end == size else end // blocks
    if start >= stop:
        return HolePlan(first, end, end, end, range(0))
    return HolePlan(first, end, start * blocks, min(end, stop * blocks), range(start, stop))


def lacks(cache: LeafCache, plan: HolePlan) -> bool:
    """Return whether a leaf that `make_holes` needs must be loaded."""
    first, end, groups_first, groups_end, _ = plan
    return (first < groups_first and cache.missing(first, groups_first) is not None) or (
        groups_end < end and cache.missing(groups_end, end) is not None
    )


def make_holes(cache: LeafCache, plan: HolePlan, head: int, sequence: int) -> MadeHoles | None:
    """Make blocks holes; `head` is the slot of the layer that is written to. The leaves that the
    plan's groups do not cover are in memory. Return None if all of it was known to be holes."""
    first, end, groups_first, groups_end, groups = plan
    made = _hole_groups(cache, groups, head, sequence) if groups else []
    if first < groups_first:
        made = _hole_leaves(cache, first, groups_first, head, sequence) + made
    if groups_end < end:
        made += _hole_leaves(cache, groups_end, end, head, sequence)
    if not made:
        return None
    if len(made) == 1 and made[0].end <= end:
        return made[0]
    of_head = any(part.of_head for part in made)
    cells = tuple(run for part in made for run in part.cells)
    return MadeHoles(made[0].first, min(end, made[-1].end), of_head, cells)


def _hole_groups(cache: LeafCache, groups: range, head: int, sequence: int) -> list[MadeHoles]:
    """Make whole groups holes, and return those that were not known to be."""
    blocks = leafcache.GROUP_LEAVES << LEAF_SHIFT
    return [
        MadeHoles(group * blocks, (group + 1) * blocks, True, cells)
        for group, cells in cache.hole_groups(groups, head, sequence).items()
    ]


def _hole_leaves(
    cache: LeafCache, first: int, end: int, head: int, sequence: int
) -> list[MadeHoles]:
    """Make blocks holes leaf by leaf, and return the parts of leaves that were not all holes."""
    made = []
    while first < end:
        number = first >> LEAF_SHIFT
        stop = min(end, (number + 1) << LEAF_SHIFT)
        if not cache.holds_only(first, stop, HOLE_SLOT):
            base = number << LEAF_SHIFT
            of_head = head in cache.leaf(number)[first - base : stop - base]
            cells = cache.cells_in(number, first - base, stop - base, head)
            made.append(MadeHoles(first, stop, of_head, cells))
            cache.assign(first, stop, HOLE_SLOT, sequence)
        first = stop
    return made
