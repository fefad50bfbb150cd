"""What a pool in Ceph takes, and what it stands on. Known by objects of images, not by blocks.

An object counts as a whole. What a volume or snapshot has of its own are the objects of its image;
what it shares are those that it shows of the snaps below. Of an image, an object that several of
its points show counts once (`imagespace.py`).
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC
from enum import IntEnum
from typing import Any

from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.imagespace import HEAD, differing, look_at_space, size_of
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


class _Rank(IntEnum):
    """For whom data counts that several show: for the first of these."""

    VOLUMES = 0
    SNAPSHOTS = 1
    IMAGES = 2
    TRASH = 3


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
    taken: Counter[_Rank] = Counter()
    for name, points in _ranks(session, images).items():
        taken.update(look_at_space(session.images, name).bytes_by_rank(points))
    return Shares(
        taken[_Rank.VOLUMES], taken[_Rank.SNAPSHOTS], taken[_Rank.IMAGES], taken[_Rank.TRASH]
    )


def _ranks(session: Session, images: frozenset[SnapshotId]) -> dict[str, dict[str | None, _Rank]]:
    """For whom the heads and snaps of images count, by the images."""
    found: dict[str, dict[str | None, _Rank]] = defaultdict(dict)
    with session.index.reading() as txn:
        for volume in sound_records(txn, VOLUMES, decode_volume):
            rank = _Rank.VOLUMES if volume.trashed is None else _Rank.TRASH
            found[volume.image][HEAD] = rank
        for snapshot in sound_records(txn, SNAPSHOTS, decode_snapshot):
            rank = _Rank.IMAGES if snapshot.id in images else _Rank.SNAPSHOTS
            rank = rank if snapshot.trashed is None else _Rank.TRASH
            found[snapshot.image][snapshot.snap] = rank
    return found


def used_bytes(session: Session) -> int:
    """See `Pool.used_bytes`. Blocks."""
    found = shares(session, frozenset())
    return found.volumes_bytes + found.snapshots_bytes + found.trash_bytes


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
    return size_of(differing(image, size_bytes, None, parents=below))
