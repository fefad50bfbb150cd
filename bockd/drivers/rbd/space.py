"""What a pool in Ceph takes, and what it stands on. Known by objects of images, not by blocks.

An object counts as a whole. What a volume or snapshot has of its own are the objects of its image;
what it shares are those that it shows of the snaps below.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any

from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.lost import damaged_if_missing
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    decode_snapshot,
    decode_volume,
    snapshot_record,
    volume_record,
)
from bockd.drivers.rbd.session import MEASURING, Session
from bockd.errors import ClusterUnavailableError, DamagedError, NotFoundError
from bockd.model import BLOCK_SIZE, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes, sound_records
from bockd.pool.reports import Attributes, NodeSpace, Shares, Space, SpacePage
from bockd.runtime.steps import blocking_apart

log = logging.getLogger(__name__)

ROOM_SECONDS = 10
"""How long the monitors may take to say how much room there is."""

Record = RbdVolumeRecord | RbdSnapshotRecord


def record_of(txn: Transaction, kind: NodeKind, node: int) -> Record:
    """Return the record of a volume or snapshot. Raises NotFoundError, DamagedError."""
    if kind is NodeKind.VOLUME:
        return volume_record(txn, VolumeId(node))
    return snapshot_record(txn, SnapshotId(node))


def measure(session: Session, kind: NodeKind, node: int) -> Space:
    """See `Pool.measure`. Blocks."""
    with session.index.reading() as txn:
        record = record_of(txn, kind, node)
    snap = record.snap if isinstance(record, RbdSnapshotRecord) else None
    with (
        damaged_if_missing(session.index, record),
        session.images.use() as (_, ioctx),
        looking_at(ioctx, record.image, snap) as image,
    ):
        shown = _shown_bytes(image, record.size_bytes, below=True)
        own = _shown_bytes(image, record.size_bytes, below=False)
    return Space(own, shown - own)


async def measure_all(nodes: OpenNodes, after: int, until: Callable[[], bool]) -> SpacePage:
    """See `Pool.measure_all`: one volume or snapshot at a time, by id."""
    session = nodes.session
    with session.index.reading() as txn:
        sound = sound_records(txn, VOLUMES, decode_volume)
        found = [(NodeKind.VOLUME, int(one.id)) for one in sound]
    found += [(NodeKind.SNAPSHOT, int(one)) for one in nodes.snapshots]
    spaces: list[NodeSpace] = []
    for kind, node in sorted(found, key=lambda one: one[1]):
        if node <= after:
            continue
        try:
            space = await blocking_apart(MEASURING, measure, session, kind, node)
        except (NotFoundError, DamagedError) as error:
            # It has been deleted since, or it lacks its image, which a check tells.
            log.debug("measuring %s %s: %s", kind, node, error)
            continue
        spaces.append(NodeSpace(kind, node, space))
        if until():
            return SpacePage(tuple(spaces), node)
    return SpacePage(tuple(spaces), None)


def shares(session: Session, images: frozenset[SnapshotId]) -> Shares:
    """See `Pool.shares`. What volumes are made of counts for the snapshots or images. Blocks."""
    with session.index.reading() as txn:
        heads = {one.image for one in sound_records(txn, VOLUMES, decode_volume)}
        frozen_ones = sound_records(txn, SNAPSHOTS, decode_snapshot)
        snaps = {(one.image, one.snap): one.id in images for one in frozen_ones}
    volumes = frozen = shared = 0
    for name in heads | {image for image, _ in snaps}:
        for snap, taken in _taken_bytes(session, name, has_head=name in heads):
            if snap is None:
                volumes += taken
            elif snaps.get((name, snap), False):
                shared += taken
            else:
                frozen += taken
    return Shares(volumes, frozen, shared)


def used_bytes(session: Session) -> int:
    """See `Pool.used_bytes`. Blocks."""
    found = shares(session, frozenset())
    return found.volumes_bytes + found.snapshots_bytes


def attributes(session: Session, nodes: Nodes, kind: NodeKind, node: int) -> Attributes:
    """See `Pool.attributes`. Blocks."""
    record = record_of(nodes.txn, kind, node)
    snap = record.snap if isinstance(record, RbdSnapshotRecord) else None
    try:
        with session.images.use() as (_, ioctx), looking_at(ioctx, record.image, snap) as image:
            shown = _shown_bytes(image, record.size_bytes, below=True)
            changed = 0.0 if snap else image.modify_timestamp().replace(tzinfo=UTC).timestamp()
    except NotFoundError:  # deleted since the transaction of `nodes` began
        return Attributes(0, record.created_at)
    return Attributes(shown, max(record.created_at, changed))


def room(session: Session) -> os.statvfs_result:
    """See `Pool.room`: what fits into the Ceph pool, whose replicas count once, without a limit of
    files. Blocks. Raises UnavailableError, also while Ceph has no manager to know it."""
    order = json.dumps({"prefix": "df", "detail": "detail", "format": "json"})
    with named("asking for the room of the Ceph pool"):
        status, reply, reason = session.cluster.mon_command(order, b"", timeout=ROOM_SECONDS)
    if status < 0:
        raise ClusterUnavailableError(
            f"asking for the room of the Ceph pool: {os.strerror(-status)} {reason}"
        )
    for pool in json.loads(reply)["pools"]:
        stats = pool["stats"]
        # A full one has no room; one that is not known yet holds nothing, either.
        if pool["name"] == session.settings.pool and (stats["max_avail"] or stats["stored"]):
            return _room(stats)
    raise ClusterUnavailableError(
        f"Ceph does not say how much room its pool {session.settings.pool!r} has: 'ceph -s' shows "
        "whether it has an active manager"
    )


def _room(stats: dict[str, Any]) -> os.statvfs_result:
    stored, free = int(stats["stored"]), int(stats["max_avail"])
    if quota := int(stats.get("quota_bytes", 0)):
        free = max(0, min(free, quota - stored))
    blocks, unused = (stored + free) // BLOCK_SIZE, free // BLOCK_SIZE
    return os.statvfs_result((BLOCK_SIZE, BLOCK_SIZE, blocks, unused, unused, 0, 0, 0, 0, 255))


def _shown_bytes(image: rbd.Image, size_bytes: int, *, below: bool) -> int:
    """Sum the objects of an image that exist; with `below`, in its parents, too."""
    return sum(length for _, length in _objects(image, size_bytes, None, below=below))


def _objects(
    image: rbd.Image, size_bytes: int, since: str | None, *, below: bool
) -> list[tuple[int, int]]:
    """List the objects of an image that exist, or that differ from an earlier snap of it: offset
    and length of each."""
    found: dict[int, int] = {}

    def note(offset: int, length: int, exists: bool) -> None:
        if exists or since is not None:
            for start in range(offset, offset + length, OBJECT_BYTES):
                found[start] = min(OBJECT_BYTES, offset + length - start)

    image.diff_iterate(0, size_bytes, since, note, below, True)
    return list(found.items())


def _taken_bytes(
    session: Session, name: str, *, has_head: bool
) -> Iterator[tuple[str | None, int]]:
    """Yield what an image takes for each of its snaps, and for its head (None): an object counts
    for the last that shows it. Without a head, for what came after its last snap, there is
    nothing."""
    try:
        with session.images.use() as (_, ioctx):
            yield from _taken_in(ioctx, name, has_head=has_head)
    except NotFoundError:  # deleted since; or it is missing, which a check tells
        return


def _taken_in(ioctx: rados.Ioctx, name: str, *, has_head: bool) -> Iterator[tuple[str | None, int]]:
    with looking_at(ioctx, name) as image:
        snaps = [one["name"] for one in sorted(image.list_snaps(), key=lambda one: one["id"])]
    points: list[str | None] = [*snaps, None] if has_head else list(snaps)
    for point, later in zip(points, [*points[1:], ""], strict=True):
        with looking_at(ioctx, name, point) as image:
            shown = dict(_objects(image, image.size(), None, below=False))
        if later != "":
            with looking_at(ioctx, name, later) as image:
                changed = {start for start, _ in _objects(image, image.size(), point, below=False)}
            shown = {start: length for start, length in shown.items() if start in changed}
        yield point, sum(shown.values())
