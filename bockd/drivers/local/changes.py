"""Where two snapshots differ, from their maps alone: implements `Pool.changes`.

A frozen layer never changes, so a block that both maps find in the same layer is the same. Any
other may differ. Both maps are read in one transaction, since merging moves blocks from layer to
layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter

from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.leaf import (
    HOLE,
    LEAF_BLOCKS,
    LEAVES,
    Leaf,
    leaf_key,
    leaf_key_parts,
)
from bockd.drivers.local.registry import Registry
from bockd.model import BLOCK_SIZE, MapId, SnapshotId
from bockd.pool.reports import Changes
from bockd.runtime.steps import blocking

LEAF_BYTES = LEAF_BLOCKS * BLOCK_SIZE

_BLANK = [HOLE] * LEAF_BLOCKS


async def find_changes(
    registry: Registry, older: SnapshotId, newer: SnapshotId, offset: int, limit: int
) -> Changes:
    """See `Pool.changes`."""
    return await blocking(_find, registry, older, newer, offset, limit)


def _find(
    registry: Registry, older: SnapshotId, newer: SnapshotId, offset: int, limit: int
) -> Changes:
    with registry.catalogue() as catalogue:
        before, after = catalogue.snapshot(older), catalogue.snapshot(newer)
        end = after.size_bytes
        found: list[tuple[int, int]] = []
        for begin, stop in _joined(_runs(catalogue, before.map, after.map, offset // LEAF_BYTES)):
            if len(found) == limit:
                return Changes(tuple(found), sum(found[-1]))
            begin, stop = max(begin, offset), min(stop, end)
            if begin < stop:
                found.append((begin, stop - begin))
        return Changes(tuple(found), end)


def _joined(runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join what meets; begin and end in bytes."""
    begin = end = 0
    for start, stop in runs:
        if start != end:
            if begin < end:
                yield begin, end
            begin = start
        end = stop
    if begin < end:
        yield begin, end


def _runs(
    catalogue: Catalogue, before: MapId, after: MapId, first: int
) -> Iterator[tuple[int, int]]:
    """Begin and end in bytes of what differs, from a leaf on, in order."""
    old, new = catalogue.chain(before), catalogue.chain(after)
    members = dict.fromkeys((*old, *new))
    stored = merge(*(_leaves(catalogue, one, first) for one in members), key=itemgetter(0))
    for number, same in itertools.groupby(stored, key=itemgetter(0)):
        payloads = {member: payload for _, member, payload in same}
        was, now = _shown(old, payloads), _shown(new, payloads)
        if was != now:
            yield from _differences(number * LEAF_BYTES, _layers(was), _layers(now))


def _leaves(catalogue: Catalogue, member: MapId, first: int) -> Iterator[tuple[int, MapId, bytes]]:
    end = leaf_key(MapId(member + 1), 0)
    for key, payload in catalogue.txn.scan(LEAVES, leaf_key(member, first), end):
        yield leaf_key_parts(key)[1], member, payload


def _shown(chain: Sequence[MapId], payloads: dict[MapId, bytes]) -> bytes | None:
    """The payload that the first map of a chain shows: its own or its nearest ancestor's."""
    return next((payloads[member] for member in chain if member in payloads), None)


def _layers(payload: bytes | None) -> Sequence[int]:
    return _BLANK if payload is None else Leaf.decode(payload).layers()


def _differences(base: int, was: Sequence[int], now: Sequence[int]) -> Iterator[tuple[int, int]]:
    for number, (one, other) in enumerate(zip(was, now, strict=True)):
        if one != other:
            yield base + number * BLOCK_SIZE, base + (number + 1) * BLOCK_SIZE
