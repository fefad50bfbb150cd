"""What a whole pool takes: the space of each volume, and who has how much of it.

One walk over each family gives the space of all its maps (space), so asking for all
volumes at once costs as much as asking for one of each family.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping

from bockd.drivers.local.format.catalogue import (
    NO_MAP,
    Catalogue,
    LocalSnapshotRecord,
    LocalVolumeRecord,
)
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.space import (
    Family,
    Tally,
    allocated_bytes,
    changed_at,
    count_family,
    measure_space,
)
from bockd.errors import DamagedError
from bockd.model import MapId, NodeKind, SnapshotId, VolumeId
from bockd.pool.reports import Attributes, NodeSpace, Shares, Space, SpacePage
from bockd.runtime.steps import blocking

VOLUMES, SNAPSHOTS, IMAGES, TRASH = range(4)
"""Classes of maps. A block counts for the first one that shows it."""


async def measure_one(registry: Registry, kind: NodeKind, node: int) -> Space:
    """Measure the exact space of a volume or snapshot. A volume that has failed counts as it was at
    its last checkpoint."""
    await checkpoint_all(registry)

    def walk() -> Space:
        with registry.catalogue() as catalogue:
            if kind is NodeKind.VOLUME:
                return measure_space(catalogue, catalogue.volume(VolumeId(node)).map)
            return measure_space(catalogue, catalogue.snapshot(SnapshotId(node)).map)

    return await blocking(walk)


async def measure_all(registry: Registry, after: int, until: Callable[[], bool]) -> SpacePage:
    """Measure the exact space of all volumes, and of the snapshots that are in use. Goes family by
    family, from the first whose root is above `after`, until `until` returns true or all are done.
    Leaves out a family with a damaged map."""
    await checkpoint_all(registry)
    used = frozenset(registry.snapshots)
    return await blocking(_measure_page, registry, used, after, until)


async def measure_shares(registry: Registry, images: frozenset[SnapshotId]) -> Shares:
    """Measure who has how much of the pool. Raises DamagedError."""
    await checkpoint_all(registry)
    return await blocking(_measure_shares, registry, images)


async def checkpoint_all(registry: Registry) -> None:
    """Checkpoint all open volumes: what they wrote may have ended a sharing."""
    for volume in list(registry.volumes):
        await registry.try_checkpoint(volume)


def _measure_page(
    registry: Registry, used: frozenset[SnapshotId], after: int, until: Callable[[], bool]
) -> SpacePage:
    found: list[NodeSpace] = []
    with registry.catalogue() as catalogue:
        nodes: dict[MapId, tuple[NodeKind, int]] = {}
        for snapshot in catalogue.snapshots():
            if snapshot.id in used:
                nodes[snapshot.map] = (NodeKind.SNAPSHOT, snapshot.id)
        for volume in catalogue.volumes():
            nodes[volume.map] = (NodeKind.VOLUME, volume.id)
        for root, family, dead in families(catalogue):
            asked = [member for member, _ in family if member in nodes]
            if root <= after or not asked:
                continue
            try:
                tally = _tallied(catalogue, family, dict.fromkeys(_living(family, dead), VOLUMES))
            except DamagedError:
                continue
            found += [NodeSpace(*nodes[member], tally.space(member)) for member in asked]
            if until():
                return SpacePage(tuple(found), root)
    return SpacePage(tuple(found), None)


def _measure_shares(registry: Registry, images: frozenset[SnapshotId]) -> Shares:
    sums = [0, 0, 0, 0]
    with registry.catalogue() as catalogue:
        ranks = {one.map: VOLUMES if one.trashed is None else TRASH for one in catalogue.volumes()}
        for snapshot in catalogue.snapshots():
            rank = IMAGES if snapshot.id in images else SNAPSHOTS
            ranks[snapshot.map] = rank if snapshot.trashed is None else TRASH
        for _, family, dead in families(catalogue):
            living = {member: ranks.get(member, VOLUMES) for member in _living(family, dead)}
            tally = _tallied(catalogue, family, living)
            for rank in range(len(sums)):
                sums[rank] += tally.class_bytes(rank)
    return Shares(*sums)


def _living(family: Family, dead: frozenset[MapId]) -> Iterator[MapId]:
    return (member for member, _ in family if member not in dead)


def _tallied(catalogue: Catalogue, family: Family, living: Mapping[MapId, int]) -> Tally:
    tally = Tally(living)
    count_family(catalogue, family, tally)
    return tally


def families(catalogue: Catalogue) -> Iterator[tuple[MapId, Family, frozenset[MapId]]]:
    """Yield all families, ordered by the id of their root, each with those of its maps that nobody
    shows any more. Raises DamagedError."""
    children: dict[MapId, list[MapId]] = {}
    dead: set[MapId] = set()
    for record in catalogue.maps():
        children.setdefault(record.parent, []).append(record.id)
        if record.dead:
            dead.add(record.id)
    for root in sorted(children.get(NO_MAP, ())):
        family: list[tuple[MapId, MapId]] = []
        waiting = [(root, NO_MAP)]
        while waiting:
            member, parent = waiting.pop()
            family.append((member, parent))
            waiting.extend((child, member) for child in children.get(member, ()))
        yield root, family, frozenset(member for member, _ in family if member in dead)


def node_attributes(layout: Layout, catalogue: Catalogue, kind: NodeKind, node: int) -> Attributes:
    """Return what a file view shows of a volume or snapshot, from its layers' files. Blocks."""
    record: LocalVolumeRecord | LocalSnapshotRecord
    if kind is NodeKind.VOLUME:
        record = volume = catalogue.volume(VolumeId(node))
        modified_at = max(record.created_at, changed_at(layout, volume.head))
    else:
        record = catalogue.snapshot(SnapshotId(node))
        modified_at = record.created_at
    try:
        allocated = min(record.size_bytes, allocated_bytes(layout, catalogue, record.map))
    except DamagedError:
        # Opening it says what is wrong.
        allocated = record.size_bytes
    return Attributes(allocated, modified_at)


def pool_files_bytes(layout: Layout) -> int:
    """Sum what the pool's files take of the file system, in bytes (st_blocks). A file that is
    removed meanwhile counts as nothing. Raises OSError for a directory that cannot be read."""
    return sum(_tree_bytes(layout.root))


def _tree_bytes(directory: os.PathLike[str] | str) -> Iterator[int]:
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    yield from _tree_bytes(entry.path)
                yield found.st_blocks * 512
            except FileNotFoundError:
                continue
