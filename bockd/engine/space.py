"""Space: an exact walk over the maps of a family, and a quick look at the layers' files.

The walk counts blocks that one map or several show.
A *family* is all maps with the same root; only they can share blocks. A block of a layer is
exclusive to a map when no other live map of the family shows the same block of the same layer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from bockd.control import Space
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.store.catalogue import NO_MAP, Catalogue
from bockd.store.index import Table
from bockd.store.layout import Layout
from bockd.store.leaf import (
    HOLE,
    LEAF_BLOCKS,
    LEAF_BYTES,
    Leaf,
    leaf_key,
    leaf_key_parts,
)

_WINDOW_LEAVES = 4096
"""Leaves of all maps held in memory at once."""


def allocated_bytes(layout: Layout, catalogue: Catalogue, map_id: MapId) -> int:
    """The disk space of all layers that a map may refer to, by one `stat` for each file.

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
    """When a volume with this head last changed, in seconds since the epoch; 0 when the head is
    gone. Every write and trim leaves its time there (`Volume`); a snapshot or revert makes a new
    head. What is done to the other layers behind the scenes is no change."""
    return max((found.st_mtime for found in _files(layout, head)), default=0.0)


def _files(layout: Layout, layer: LayerId) -> Iterator[os.stat_result]:
    for number in itertools.count():
        try:
            yield os.stat(layout.layer_segment(layer, number))
        except FileNotFoundError:
            return


def measure_space(catalogue: Catalogue, map_id: MapId) -> Space:
    """The space of a live map, from what the index holds. DamagedError."""
    order = list(_family(catalogue, map_id))
    live = {member for member, _ in order if not catalogue.map(member).dead}
    size = catalogue.map(map_id).size_bytes
    total = exclusive = 0
    for first in range(0, -(-size // LEAF_BYTES), _WINDOW_LEAVES):
        for stored in _leaves_by_number(catalogue, order, first):
            shown = _shown(order, stored)
            mine = shown.get(map_id)
            if mine is None:
                continue
            others = {leaf for member, leaf in shown.items() if member != map_id and member in live}
            blocks, alone = _count(mine, others)
            total += blocks
            exclusive += alone
    return Space(exclusive * BLOCK_SIZE, (total - exclusive) * BLOCK_SIZE)


def _family(catalogue: Catalogue, map_id: MapId) -> Iterator[tuple[MapId, MapId]]:
    """All maps of the family as (map, parent), parents first."""
    root = catalogue.chain(map_id)[-1]
    waiting = [(root, NO_MAP)]
    while waiting:
        member, parent = waiting.pop()
        yield member, parent
        waiting.extend((child, member) for child in catalogue.children(member))


def _leaves_by_number(
    catalogue: Catalogue, order: list[tuple[MapId, MapId]], first: int
) -> Iterator[dict[MapId, bytes]]:
    """For each leaf number that some map has: the payload in each map that has it."""
    found: dict[int, dict[MapId, bytes]] = {}
    for member, _ in order:
        for key, payload in catalogue.txn.scan(
            Table.LEAVES, leaf_key(member, first), leaf_key(member, first + _WINDOW_LEAVES)
        ):
            found.setdefault(leaf_key_parts(key)[1], {})[member] = payload
    yield from found.values()


def _shown(order: list[tuple[MapId, MapId]], stored: dict[MapId, bytes]) -> dict[MapId, bytes]:
    """The payload that each map shows: its own or its nearest ancestor's."""
    shown: dict[MapId, bytes] = {}
    for member, parent in order:
        payload = stored.get(member) or shown.get(parent)
        if payload is not None:
            shown[member] = payload
    return shown


def _count(mine: bytes, others: set[bytes]) -> tuple[int, int]:
    """(blocks that are stored, those of them that no other leaf has in the same layer)."""
    entries = Leaf.decode(mine).layers()
    blocks = LEAF_BLOCKS - entries.count(HOLE)
    if not others:
        return blocks, blocks
    if mine in others:
        return blocks, 0
    decoded = [Leaf.decode(other).layers() for other in others]
    alone = sum(
        entries[i] != HOLE and all(other[i] != entries[i] for other in decoded)
        for i in range(LEAF_BLOCKS)
    )
    return blocks, alone
