"""The check of a pool in Ceph: what records name is there, and nothing else is.

A volume that is dirty at this very gateway has its log there (bockd.drivers.rbd.writebacks).

That data is what was written is Ceph's to check. What an operation has just made, or is about to
remove, is no problem: unnamed images count when they are older than an hour, and what is missing is
looked for again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.lost import Record, named_by
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    decode_snapshot,
    decode_volume,
    same_log,
)
from bockd.drivers.rbd.session import Session
from bockd.errors import BockdError, DamagedError, NotFoundError, UnavailableError
from bockd.index.keys import FIRST_KEY, LAST_KEY
from bockd.index.tables import Table
from bockd.model import NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES
from bockd.pool.reports import CheckReport

YOUNG_SECONDS = 3600.0
"""What is younger may be about to be named (bockd.drivers.rbd.making)."""

_TABLES: Final[tuple[tuple[NodeKind, Table, Callable[[bytes], Record]], ...]] = (
    (NodeKind.VOLUME, VOLUMES, decode_volume),
    (NodeKind.SNAPSHOT, SNAPSHOTS, decode_snapshot),
)


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


class Recorded(NamedTuple):
    """What the index says."""

    records: list[Record]
    unreadable: list[str]
    """A problem for each record that cannot be read."""


class Images(NamedTuple):
    """The images of the pool, by name."""

    found: dict[str, Found]
    torn: dict[str, float]
    """Those that are listed and not there, as a removal leaves them that was cut off, and since
    when. Infinity: nothing tells."""
    refused: dict[str, BockdError]
    """Those that Ceph refuses to look at."""


def check(session: Session, has_log: HasLog) -> CheckReport:
    """See `Pool.check`. Blocks."""
    with session.images.use() as (_, ioctx):
        images = _look_at_all(ioctx)
        # After the images: so the records know of each that is old enough.
        recorded = _recorded(session)
        problems = _missing(recorded, images)
        if problems:
            # Some may have been made, or removed, since.
            recorded = _recorded(session)
            for one in recorded.records:
                _look_again(ioctx, one.image, images)
            problems = _missing(recorded, images)
    problems += recorded.unreadable
    problems += _without_log(session, recorded.records, has_log)
    if not recorded.unreadable:  # else nobody knows what those name
        problems += _unnamed(recorded.records, images, time.time() - YOUNG_SECONDS)
    return CheckReport(
        clean=not problems,
        problems=tuple(problems),
        repaired=(),
        volumes=sum(isinstance(one, RbdVolumeRecord) for one in recorded.records),
        snapshots=sum(isinstance(one, RbdSnapshotRecord) for one in recorded.records),
        layers=len(images.found),
        leaves=0,
        stray_blocks=0,
        pending_reclaim=0,
    )


def _recorded(session: Session) -> Recorded:
    session.index.refresh()
    with session.index.reading() as txn:
        return examined(txn)


def examined(txn: Transaction) -> Recorded:
    """Read all records, and go on behind one that cannot be read."""
    found = Recorded([], [])
    for kind, table, decode in _TABLES:
        for key in txn.keys(table, FIRST_KEY, LAST_KEY):
            try:
                found.records.append(decode(txn.get(table, key) or b""))
            except DamagedError as error:
                found.unreadable.append(
                    f"{kind} {int.from_bytes(key)} cannot be used, and what it holds is not known: "
                    f"{error}. So images that nothing names are not looked for"
                )
    return found


def _look_at_all(ioctx: rados.Ioctx) -> Images:
    images = Images({}, {}, {})
    with named("listing the images"):
        ids = {str(one["name"]): str(one["id"]) for one in rbd.RBD().list2(ioctx)}
    for name, identity in ids.items():
        _look_again(ioctx, name, images)
        if name not in images.found and name not in images.refused:
            images.torn[name] = _removed_since(ioctx, identity)
    return images


def _look_again(ioctx: rados.Ioctx, name: str, images: Images) -> None:
    """Look at an image. Raises UnavailableError."""
    images.found.pop(name, None)
    images.refused.pop(name, None)
    try:
        if (found := _look(ioctx, name)) is not None:
            images.found[name] = found
    except UnavailableError:
        raise
    except BockdError as error:
        images.refused[name] = error


def _removed_since(ioctx: rados.Ioctx, identity: str) -> float:
    """Return when the removal of an image was begun. Infinity: it has ended since, or was never
    begun."""
    with named("looking for a removal that was cut off"):
        try:
            begun: datetime = rbd.RBD().trash_get(ioctx, identity)["deletion_time"]
        except rbd.ImageNotFound:
            return math.inf
    return begun.replace(tzinfo=UTC).timestamp()


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


def _missing(recorded: Recorded, images: Images) -> list[str]:
    """List what records name and is not there as they say."""
    return [
        _told(one, images.refused.get(one.image))
        for one in recorded.records
        if not _is_there(one, images.found.get(one.image))
    ]


def _told(record: Record, refused: BockdError | None = None) -> str:
    """Say what a record names and is not there, or why Ceph refuses to look."""
    if refused is not None:
        return f"{named_by(record)} cannot be looked at ({refused})"
    kind = "volume" if isinstance(record, RbdVolumeRecord) else "snapshot"
    return f"{named_by(record)} is missing or smaller than the {kind}; data is lost"


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
        again = missing(_recorded(session).records)
        for volume, one in seen.items():
            if volume in again and same_log(again[volume].dirty_at, one.dirty_at):
                yield (
                    f"volume {one.id} ({one.name}): what was answered and is not in the cluster is "
                    "in a write-back log that is missing here: is its disk mounted? Put the log "
                    "back; only if it is lost for good, give that up (bock volume discard-cache)"
                )


def _unnamed(records: list[Record], images: Images, before: float) -> Iterator[str]:
    """Yield what nothing needs, and is not younger than a moment."""
    found = images.found
    needed = {one.image for one in records}
    waiting = [*needed]
    while waiting:
        one = found.get(waiting.pop())
        if one is not None and one.parent is not None and one.parent not in needed:
            needed.add(one.parent)
            waiting.append(one.parent)
    snaps = {(one.image, one.snap) for one in records if isinstance(one, RbdSnapshotRecord)}
    # What such an image needs in turn is not known.
    is_known = needed.isdisjoint(images.refused)
    for name, image in found.items():
        if is_known and name not in needed and image.made_at < before:
            yield f"image {name} is no volume's or snapshot's; it only takes space"
        if name not in needed:
            continue
        for snap, (_, made_at) in image.snaps.items():
            if (name, snap) not in snaps and made_at < before:
                yield f"snap {snap} of image {name} is no snapshot; it only takes space"
    for name, error in images.refused.items():
        if name not in needed:
            yield f"image {name}, which is no volume's, cannot be looked at ({error})"
    for name, since in images.torn.items():
        if name not in needed and since < before:
            yield (
                f"image {name} was removed in part; what is left only takes space, until the sweep "
                "of a gateway removes it"
            )
