"""What was made of what: volumes, their snapshots, and the volumes made of those, as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bockd.model import NodeKind, VolumeId
from bockd.pool.records import SnapshotRecord, VolumeRecord

Key = tuple[NodeKind, int]
"""A volume or a snapshot."""

NOTHING = 0
"""What everything comes from: a node of the tree that is no volume and no snapshot."""


def parents(
    volumes: Iterable[VolumeRecord],
    snapshots: Iterable[SnapshotRecord],
    cloned: Mapping[VolumeId, VolumeId],
) -> dict[Key, Key | None]:
    """Return for each volume and snapshot what it was made of; None when that is deleted, or
    nothing. `cloned` says of which volume one was made directly.

    What was made of another one has a greater id, so nothing is made of itself.
    """
    origins: dict[Key, list[Key]] = {}
    for volume in volumes:
        found: list[Key] = []
        if volume.from_snapshot is not None:
            found.append((NodeKind.SNAPSHOT, volume.from_snapshot))
        if volume.id in cloned:
            found.append((NodeKind.VOLUME, cloned[volume.id]))
        origins[NodeKind.VOLUME, volume.id] = found
    for snapshot in snapshots:
        origins[NodeKind.SNAPSHOT, snapshot.id] = [(NodeKind.VOLUME, snapshot.volume)]
    return {
        key: next((one for one in found if one in origins and one[1] < key[1]), None)
        for key, found in origins.items()
    }


class Tree:
    """The nodes of one family by number, each with the number of what it was made of, or
    NOTHING."""

    def __init__(self, parent: Mapping[int, int]) -> None:
        self._parent = parent
        self._depth = {NOTHING: 0}
        for node in parent:
            self._measure(node)

    def _measure(self, node: int) -> None:
        path = []
        while node not in self._depth:
            path.append(node)
            node = self._parent[node]
        depth = self._depth[node]
        for one in reversed(path):
            depth += 1
            self._depth[one] = depth

    def meeting(self, one: int, other: int) -> int:
        """Return the nearest node that both are, or were made of; NOTHING when there is none."""
        while one != other:
            if self._depth[one] >= self._depth[other]:
                one = self._parent[one]
            else:
                other = self._parent[other]
        return one

    def deepest_first(self) -> list[int]:
        """List all nodes, each before what it was made of."""
        return sorted(self._parent, key=lambda node: self._depth[node], reverse=True)
