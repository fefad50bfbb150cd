"""The check of a pool in Ceph: what records name is there, and nothing else is.

A volume that is dirty at this very gateway has its log there (bockd.drivers.rbd.writebacks).

That data is what was written is Ceph's to check. What an operation has just made, or is about to
remove, is no problem: unnamed images count when they are older than an hour, and what is missing is
looked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import NamedTuple

from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    same_log,
    snapshot_records,
    volume_records,
)
from bockd.drivers.rbd.session import Session
from bockd.errors import NotFoundError
from bockd.model import VolumeId
from bockd.pool.reports import CheckReport

YOUNG_SECONDS = 3600.0
"""What is younger may be about to be named (bockd.drivers.rbd.making)."""

Record = RbdVolumeRecord | RbdSnapshotRecord


class Found(NamedTuple):
    """An image as it is in the cluster."""

    size_bytes: int
    made_at: float
    parent: str | None
    """The image that it is a clone of."""
    snaps: dict[str, tuple[int, float]]
    """Size of each, and when it was made."""


HasLog = Callable[[str, str], bool]
"""Whether there is a log here, by the name of its image and its id. Blocks."""


def no_logs(_image: str, _log: str) -> bool:
    """Find none: the configuration names no directory of logs."""
    return False


def check(session: Session, has_log: HasLog) -> CheckReport:
    """See `Pool.check`. Blocks."""
    with session.images.use() as (_, ioctx):
        found = {name: image for name in _list(ioctx) if (image := _look(ioctx, name)) is not None}
        # After the images: so the records know of each that is old enough.
        records = _records(session)
        problems = [_missing(one) for one in records if not _is_there(one, found.get(one.image))]
        if problems:
            # Some may have been made, or removed, since.
            records = _records(session)
            for one in records:
                found[one.image] = _look(ioctx, one.image) or Found(-1, 0.0, None, {})
            problems = [_missing(one) for one in records if not _is_there(one, found[one.image])]
    problems += _without_log(session, records, has_log)
    problems += _unnamed(records, found, time.time() - YOUNG_SECONDS)
    return CheckReport(
        clean=not problems,
        problems=tuple(problems),
        repaired=(),
        volumes=sum(isinstance(one, RbdVolumeRecord) for one in records),
        snapshots=sum(isinstance(one, RbdSnapshotRecord) for one in records),
        layers=len(found),
        leaves=0,
        stray_blocks=0,
        pending_reclaim=0,
    )


def _list(ioctx: rados.Ioctx) -> list[str]:
    with named("listing the images"):
        names: list[str] = rbd.RBD().list(ioctx)
        return names


def _records(session: Session) -> list[Record]:
    session.index.refresh()
    with session.index.reading() as txn:
        return [*volume_records(txn), *snapshot_records(txn)]


def _look(ioctx: rados.Ioctx, name: str) -> Found | None:
    """Look at an image. None: it is not there."""
    try:
        with looking_at(ioctx, name) as image:
            try:
                parent = image.get_parent_image_spec()["image_name"]
            except rbd.ImageNotFound:
                parent = None
            return Found(
                image.size(),
                image.create_timestamp().replace(tzinfo=UTC).timestamp(),
                parent,
                {
                    one["name"]: _snap(image, one)
                    for one in image.list_snaps()
                    # A snap that was removed, and has clones, stays hidden under another name.
                    if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER
                },
            )
    except NotFoundError:
        return None


def _snap(image: rbd.Image, one: dict[str, int]) -> tuple[int, float]:
    made_at = image.get_snap_timestamp(one["id"]).replace(tzinfo=UTC).timestamp()
    return one["size"], made_at


def _is_there(record: Record, found: Found | None) -> bool:
    """Return whether what a record names is in the cluster, and as large. (An image is larger if
    its volume could not be extended after all.)"""
    if found is None:
        return False
    if isinstance(record, RbdVolumeRecord):
        return found.size_bytes >= record.size_bytes
    size_bytes, _ = found.snaps.get(record.snap, (-1, 0.0))
    return size_bytes >= record.size_bytes


def _missing(record: Record) -> str:
    if isinstance(record, RbdVolumeRecord):
        return (
            f"volume {record.id} ({record.name}): its image {record.image} is missing or smaller "
            "than the volume; data is lost"
        )
    return (
        f"snapshot {record.id} ({record.name}): snap {record.snap} of image {record.image} is "
        "missing or smaller than the snapshot; data is lost"
    )


def _without_log(session: Session, records: list[Record], has_log: HasLog) -> Iterator[str]:
    """Yield the volumes that are dirty here, in logs that are not here."""

    def missing(found: list[Record]) -> dict[VolumeId, RbdVolumeRecord]:
        return {
            one.id: one
            for one in found
            if isinstance(one, RbdVolumeRecord)
            and one.dirty_at is not None
            and one.dirty_at.gateway == session.who.gateway
            and not has_log(one.image, one.dirty_at.log)
        }

    # One that was written back since has no log, and its record says so by now.
    if seen := missing(records):
        again = missing(_records(session))
        for volume, one in seen.items():
            if volume in again and same_log(again[volume].dirty_at, one.dirty_at):
                yield (
                    f"volume {one.id} ({one.name}): what was answered and is not in the cluster is "
                    "in a write-back log that is missing here; restore it, or give that up with "
                    f"'bock volume discard-cache {one.id}'"
                )


def _unnamed(records: list[Record], found: dict[str, Found], before: float) -> Iterator[str]:
    """Yield what nothing needs, and is not younger than a moment."""
    needed = {one.image for one in records}
    waiting = [*needed]
    while waiting:
        one = found.get(waiting.pop())
        if one is not None and one.parent is not None and one.parent not in needed:
            needed.add(one.parent)
            waiting.append(one.parent)
    snaps = {(one.image, one.snap) for one in records if isinstance(one, RbdSnapshotRecord)}
    for name, image in found.items():
        if name not in needed and image.made_at < before:
            yield f"image {name} is no volume's or snapshot's; it only takes space"
        if name not in needed:
            continue
        for snap, (_, made_at) in image.snaps.items():
            if (name, snap) not in snaps and made_at < before:
                yield f"snap {snap} of image {name} is no snapshot; it only takes space"
