"""What each volume and snapshot of a pool in Ceph takes, and what its deletion frees there.

Known are the objects that each snap and each image has of its own (`imagespace.py`), and how much a
clone shows of the images below. Not known is with whom it shares that: of a clone's parent nobody
can say which part only this clone shows. So nothing of it counts as the clone's own, and what its
deletion frees is at least what is said: a parent that nothing else needs goes with its last clone,
which `freed_bytes` has only where that is certain.

What Ceph frees, and when:

* A volume's image goes when it has no snaps any more: while there are snapshots of it, its
  deletion frees nothing.
* A snapshot's snap goes at once, unless clones hang on it: then Ceph keeps all of it, hidden, until
  the last of them is gone or flattened.
* An image whose volume is deleted goes with its last snapshot.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bockd.drivers.rbd.imagespace import HEAD, ImageSpace, look_at_space
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    decode_snapshot,
    decode_volume,
)
from bockd.drivers.rbd.session import MEASURING, Session
from bockd.model import NodeKind, VolumeId
from bockd.pool.lineage import Key, parents
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, sound_records
from bockd.pool.records import name_of
from bockd.pool.reports import FamilyUsage, NodeUsage, Space
from bockd.runtime.steps import blocking_apart

Record = RbdVolumeRecord | RbdSnapshotRecord


class Point(NamedTuple):
    """What a volume or snapshot is in the cluster: the head of an image, or one of its snaps."""

    image: str
    snap: str | None


async def measure_usage(
    session: Session, cloned: Mapping[VolumeId, VolumeId]
) -> tuple[FamilyUsage, ...]:
    """Measure all families: one image after the other, each in a thread. `cloned` says which
    volumes were made of which. Raises BockdError (UnavailableError)."""
    records = await blocking_apart(MEASURING, _records, session)
    spaces: dict[str, ImageSpace] = {}
    waiting = {one.image for one in records.values()}
    while waiting:
        name = waiting.pop()
        spaces[name] = found = await blocking_apart(MEASURING, look_at_space, session.images, name)
        if found.parent is not None and found.parent[0] not in spaces:
            waiting.add(found.parent[0])
    return await blocking_apart(MEASURING, usage_of, records, spaces, cloned)


def _records(session: Session) -> dict[Key, Record]:
    with session.index.reading() as txn:
        volumes = list(sound_records(txn, VOLUMES, decode_volume))
        snapshots = list(sound_records(txn, SNAPSHOTS, decode_snapshot))
    found: dict[Key, Record] = {(NodeKind.VOLUME, int(one.id)): one for one in volumes}
    return found | {(NodeKind.SNAPSHOT, int(one.id)): one for one in snapshots}


def usage_of(
    records: Mapping[Key, Record],
    spaces: Mapping[str, ImageSpace],
    cloned: Mapping[VolumeId, VolumeId],
) -> tuple[FamilyUsage, ...]:
    """Return the families of some volumes and snapshots, given what their images take."""
    made_of = parents(
        (one for one in records.values() if isinstance(one, RbdVolumeRecord)),
        (one for one in records.values() if isinstance(one, RbdSnapshotRecord)),
        cloned,
    )
    pool = Images(records, spaces)
    found = [
        _family_usage(pool, family, records, made_of)
        for family in _families(pool, records, made_of)
    ]
    return tuple(sorted(found, key=lambda one: one.nodes[0].id))


class Images:
    """The images of a pool, and what of them is named."""

    def __init__(self, records: Mapping[Key, Record], spaces: Mapping[str, ImageSpace]) -> None:
        self.spaces = spaces
        self.named: dict[str, set[str | None]] = defaultdict(set)
        """The points that records name, by image."""
        for record in records.values():
            point = point_of(record)
            self.named[point.image].add(point.snap)
        self.clones: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """The images that are clones of an image, each with the snap."""
        for space in spaces.values():
            if space.parent is not None:
                self.clones[space.parent[0]].append((space.name, space.parent[1]))
        self._soles: dict[str, Counter[str | None]] = {}
        """By image: see `ImageSpace.sole_bytes`."""

    def has_clones(self, point: Point) -> bool:
        """Return whether images hang on a snap."""
        return any(snap == point.snap for _, snap in self.clones[point.image])

    def space(self, point: Point) -> Space:
        """Return what a volume or snapshot shows: what nobody else shows, and the rest. A snap that
        clones hang on shares all of it with them, as far as anybody knows."""
        image = self.spaces[point.image]
        shown = image.own.get(point.snap, 0) + image.below.get(point.snap, 0)
        sole = 0 if self.has_clones(point) else self._sole(point.image)[point.snap]
        return Space(sole, shown - sole)

    def _sole(self, image: str) -> Counter[str | None]:
        if image not in self._soles:
            self._soles[image] = self.spaces[image].sole_bytes(self.named[image])
        return self._soles[image]

    def frees(self, points: Iterable[Point]) -> int:
        """Return what the deletion of some volumes and snapshots frees, at least."""
        gone: dict[str, set[str | None]] = defaultdict(set)
        for point in points:
            gone[point.image].add(point.snap)
        whole: set[str] = set()
        waiting = [(-self._depth(image), image) for image in gone]
        heapq.heapify(waiting)  # clones before what they are clones of
        freed = 0
        while waiting:
            _, name = heapq.heappop(waiting)
            image = self.spaces[name]
            kept = {snap for clone, snap in self.clones[name] if clone not in whole}
            if kept or not self.named[name] <= gone[name]:
                snaps = {snap for snap in gone[name] if snap is not None}
                freed += image.freed_bytes(snaps - kept)
                continue
            whole.add(name)
            freed += image.taken_bytes
            if image.parent is not None and image.parent[0] not in gone:
                parent = image.parent[0]
                gone[parent] = set()
                heapq.heappush(waiting, (-self._depth(parent), parent))
        return freed

    def _depth(self, name: str) -> int:
        depth = 0
        while (parent := self.spaces[name].parent) is not None:
            depth, name = depth + 1, parent[0]
        return depth


def point_of(record: Record) -> Point:
    """Return what a record names."""
    return Point(record.image, record.snap if isinstance(record, RbdSnapshotRecord) else HEAD)


def _families(
    pool: Images, records: Mapping[Key, Record], made_of: Mapping[Key, Key | None]
) -> Iterator[list[Key]]:
    """Yield the volumes and snapshots that may share data, or were made of each other."""
    near: dict[Key | str, set[Key | str]] = defaultdict(set)

    def join(one: Key | str, other: Key | str) -> None:
        near[one].add(other)
        near[other].add(one)

    for key, record in records.items():
        join(key, record.image)
        if (origin := made_of[key]) is not None:
            join(key, origin)
    for space in pool.spaces.values():
        if space.parent is not None:
            join(space.name, space.parent[0])
    met: set[Key | str] = set()
    for key in records:
        if key not in met:
            yield sorted(_reached(near, key, met), key=lambda one: one[1])


def _reached(
    near: Mapping[Key | str, set[Key | str]], first: Key, met: set[Key | str]
) -> Iterator[Key]:
    """Yield the nodes of one family, and note all that belongs to it."""
    waiting: list[Key | str] = [first]
    met.add(first)
    while waiting:
        one = waiting.pop()
        if not isinstance(one, str):
            yield one
        new = near[one] - met
        met |= new
        waiting.extend(new)


def _family_usage(
    pool: Images,
    family: list[Key],
    records: Mapping[Key, Record],
    made_of: Mapping[Key, Key | None],
) -> FamilyUsage:
    points = {key: point_of(records[key]) for key in family}
    below: dict[Key, list[Point]] = {key: [point] for key, point in points.items()}
    for key in reversed(family):  # what was made of another one has a greater id
        if (origin := made_of[key]) is not None:
            below[origin] += below[key]
    images = set(_with_ancestors(pool, {point.image for point in points.values()}))
    return FamilyUsage(
        total_bytes=sum(pool.spaces[image].taken_bytes for image in images),
        nodes=tuple(
            NodeUsage(
                kind=key[0],
                id=key[1],
                name=name_of(records[key]),
                size_bytes=records[key].size_bytes,
                made_of=made_of[key],
                space=pool.space(points[key]),
                with_below_bytes=pool.frees(below[key]),
                in_trash=records[key].trashed is not None,
                freed_bytes=pool.frees([points[key]]),
            )
            for key in family
        ),
        hidden_snaps=sum(pool.spaces[image].hidden_snaps for image in images),
    )


def _with_ancestors(pool: Images, images: Iterable[str]) -> Iterator[str]:
    for image in images:
        name: str | None = image
        while name is not None:
            yield name
            parent = pool.spaces[name].parent
            name = None if parent is None else parent[0]
