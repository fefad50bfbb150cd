"""What each volume and snapshot takes, and what returns when it is deleted, alone or with all that
was made of it.

A block counts for the nearest volume or snapshot of which all those were made that show it: it
returns when that one is deleted and all below it are. So the sums of all trees, and of what is
between them, are the pool's data (`occupancy.measure_shares`).
"""

from __future__ import annotations

from collections.abc import Mapping

from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.occupancy import checkpoint_all, families
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.space import Family, Tally, count_family
from bockd.model import MapId, NodeKind, VolumeId
from bockd.pool.lineage import NOTHING, Key, Tree, parents
from bockd.pool.records import SnapshotRecord, VolumeRecord, name_of
from bockd.pool.reports import FamilyUsage, NodeUsage
from bockd.runtime.steps import blocking


async def measure_usage(
    registry: Registry, cloned: Mapping[VolumeId, VolumeId]
) -> tuple[FamilyUsage, ...]:
    """Measure all families. `cloned` says which volumes were made of which. Raises DamagedError."""
    await checkpoint_all(registry)
    return await blocking(_measure, registry, cloned)


def _measure(registry: Registry, cloned: Mapping[VolumeId, VolumeId]) -> tuple[FamilyUsage, ...]:
    with registry.catalogue() as catalogue:
        volumes, snapshots = list(catalogue.volumes()), list(catalogue.snapshots())
        made_of = parents(volumes, snapshots, cloned)
        nodes: dict[MapId, VolumeRecord | SnapshotRecord] = {one.map: one for one in volumes}
        nodes |= {one.map: one for one in snapshots}
        return tuple(
            _family_usage(catalogue, family, nodes, made_of)
            for _, family, _ in families(catalogue)
            if any(member in nodes for member, _ in family)
        )


def _family_usage(
    catalogue: Catalogue,
    family: Family,
    nodes: Mapping[MapId, VolumeRecord | SnapshotRecord],
    made_of: Mapping[Key, Key | None],
) -> FamilyUsage:
    shown = {_key(nodes[member]): member for member, _ in family if member in nodes}
    parent: dict[int, int] = {}
    for key, member in shown.items():
        origin = made_of[key]
        parent[member] = NOTHING if origin is None else shown.get(origin, NOTHING)
    tree = Tree(parent)
    tally = Tally({member: int(member) for member in shown.values()}, tree.meeting)
    count_family(catalogue, family, tally)
    with_below = {node: tally.class_bytes(node) for node in (NOTHING, *parent)}
    for node in tree.deepest_first():
        with_below[parent[node]] += with_below[node]
    return FamilyUsage(
        total_bytes=with_below[NOTHING],
        nodes=tuple(
            NodeUsage(
                kind=key[0],
                id=key[1],
                name=name_of(nodes[member]),
                size_bytes=nodes[member].size_bytes,
                made_of=made_of[key] if parent[member] else None,
                space=tally.space(member),
                with_below_bytes=with_below[member],
                in_trash=nodes[member].trashed is not None,
            )
            for key, member in sorted(shown.items(), key=lambda one: one[0][1])
        ),
    )


def _key(record: VolumeRecord | SnapshotRecord) -> Key:
    kind = NodeKind.VOLUME if isinstance(record, VolumeRecord) else NodeKind.SNAPSHOT
    return kind, int(record.id)
