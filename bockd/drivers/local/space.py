"""Space: an exact walk over the maps of a family, and a quick look at the layers' files.

The walk counts blocks that one map or several show. It is a walk over a whole family whatever is
asked, so it measures all of the family's maps at once.
A *family* is all maps with the same root; only they can share blocks. A block of a layer is
exclusive to a map when no other live map of the family shows the same block of the same layer.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from heapq import merge
from operator import itemgetter

from bockd.drivers.local.format.catalogue import NO_MAP, Catalogue
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.leaf import (
    HOLE,
    LEAF_BLOCKS,
    LEAVES,
    Leaf,
    leaf_key,
    leaf_key_parts,
)
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.reports import Space

Family = Sequence[tuple[MapId, MapId]]
"""All maps of one family as (map, parent), parents first."""


def allocated_bytes(layout: Layout, catalogue: Catalogue, map_id: MapId) -> int:
    """Sum the disk space, in bytes, of all layers that a map may refer to, by one `stat` for each
    file.

    Without snapshots that is exactly what the volume stores. Otherwise it includes blocks of
    ancestors that were overwritten since: never less than what the map shows. (`tar --sparse` takes
    a file of no blocks for empty, so less would lose data.)
    """
    return sum(
        found.st_blocks * 512
        for member in catalogue.chain(map_id)
        for layer in catalogue.layers_of(member)
        for found in _files(layout, layer)
    )


def changed_at(layout: Layout, head: LayerId) -> float:
    """Return when a volume with this head last changed, in seconds since the epoch, or 0 when
    the head does not exist any more. Every write and trim sets the head's time (`Volume`), and a
    snapshot or revert makes a new head. What background work does to the other layers is no
    change."""
    return max((found.st_mtime for found in _files(layout, head)), default=0.0)


def _files(layout: Layout, layer: LayerId) -> Iterator[os.stat_result]:
    for number in itertools.count():
        try:
            yield os.stat(layout.layer_segment(layer, number))
        except FileNotFoundError:
            return


class Tally:
    """Counts the blocks that a family's live maps show, leaf by leaf.

    `live` says for each live map which class its blocks are counted for; a block that maps of
    several classes show counts for what `join` makes of them, in any order: by default the
    smallest.
    """

    def __init__(self, live: Mapping[MapId, int], join: Callable[[int, int], int] = min) -> None:
        self._rank = live
        self._join = join
        self._total: Counter[MapId] = Counter()
        self._alone: Counter[MapId] = Counter()
        self._of_class: Counter[int] = Counter()

    def add(self, shown: Mapping[MapId, bytes]) -> None:
        """Count one leaf: the payload that each map shows there."""
        showing: dict[bytes, list[MapId]] = {}
        for member, payload in shown.items():
            if member in self._rank:
                showing.setdefault(payload, []).append(member)
        if len(showing) == 1:
            ((payload, members),) = showing.items()
            self._add_same(payload, members)
        elif showing:
            self._add_different(showing)

    def _add_same(self, payload: bytes, members: Sequence[MapId]) -> None:
        blocks = LEAF_BLOCKS - Leaf.decode(payload).layers().count(HOLE)
        for member in members:
            self._total[member] += blocks
        if len(members) == 1:
            self._alone[members[0]] += blocks
        self._of_class[self._class_of(members)] += blocks

    def _add_different(self, showing: Mapping[bytes, Sequence[MapId]]) -> None:
        users: Counter[tuple[int, int]] = Counter()
        joined: dict[tuple[int, int], int] = {}
        placed: list[tuple[Sequence[MapId], list[tuple[int, int]]]] = []
        for payload, members in showing.items():
            layers = enumerate(Leaf.decode(payload).layers())
            places = [place for place in layers if place[1] != HOLE]
            placed.append((members, places))
            rank = self._class_of(members)
            for place in places:
                users[place] += len(members)
                joined[place] = self._join(rank, joined.get(place, rank))
        for members, places in placed:
            for member in members:
                self._total[member] += len(places)
            if len(members) == 1:
                self._alone[members[0]] += sum(users[place] == 1 for place in places)
        self._of_class.update(joined.values())

    def _class_of(self, members: Sequence[MapId]) -> int:
        return reduce(self._join, (self._rank[member] for member in members))

    def space(self, member: MapId) -> Space:
        """Return the space that one live map shows."""
        alone = self._alone[member]
        return Space(alone * BLOCK_SIZE, (self._total[member] - alone) * BLOCK_SIZE)

    def class_bytes(self, rank: int) -> int:
        """Return the bytes that are counted for one class."""
        return self._of_class[rank] * BLOCK_SIZE


def measure_space(catalogue: Catalogue, map_id: MapId) -> Space:
    """Measure the space of a live map, from what the index holds. Raises DamagedError."""
    family = family_of(catalogue, map_id)
    live = {member: 0 for member, _ in family if not catalogue.map(member).dead}
    tally = Tally(live)
    count_family(catalogue, family, tally, lambda shown: map_id in shown)
    return tally.space(map_id)


def count_family(
    catalogue: Catalogue,
    family: Family,
    tally: Tally,
    wanted: Callable[[Mapping[MapId, bytes]], bool] = bool,
) -> None:
    """Add all leaves of a family that are `wanted`. Raises DamagedError."""
    for stored in _leaves_by_number(catalogue, family):
        shown = _shown(family, stored)
        if wanted(shown):
            tally.add(shown)


def family_of(catalogue: Catalogue, map_id: MapId) -> Family:
    """Return the family of a map. Raises DamagedError."""
    found = []
    waiting = [(catalogue.chain(map_id)[-1], NO_MAP)]
    while waiting:
        member, parent = waiting.pop()
        found.append((member, parent))
        waiting.extend((child, member) for child in catalogue.children(member))
    return found


def _leaves_by_number(catalogue: Catalogue, family: Family) -> Iterator[dict[MapId, bytes]]:
    """For each leaf number that some map has: the payload in each map that has it."""
    by_number = itemgetter(0)
    stored = merge(*(_leaves_of(catalogue, member) for member, _ in family), key=by_number)
    for _, same in itertools.groupby(stored, key=by_number):
        yield {member: payload for _, member, payload in same}


def _leaves_of(catalogue: Catalogue, member: MapId) -> Iterator[tuple[int, MapId, bytes]]:
    first, end = leaf_key(member, 0), leaf_key(MapId(member + 1), 0)
    for key, payload in catalogue.txn.scan(LEAVES, first, end):
        yield leaf_key_parts(key)[1], member, payload


def _shown(family: Family, stored: Mapping[MapId, bytes]) -> dict[MapId, bytes]:
    """The payload that each map shows: its own or its nearest ancestor's."""
    shown: dict[MapId, bytes] = {}
    for member, parent in family:
        payload = stored.get(member) or shown.get(parent)
        if payload is not None:
            shown[member] = payload
    return shown
