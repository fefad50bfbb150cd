"""Volumes and snapshots whose record is there, and whose image or snap is not.

Who asks for one is told that it is damaged. To him "not found" would mean that there is no such
volume, and nobody would learn that its data is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    snapshot_record,
    volume_record,
)
from bockd.errors import DamagedError, InUseError, NotFoundError
from bockd.pool.index import Index

Record = RbdVolumeRecord | RbdSnapshotRecord


def named_by(record: Record) -> str:
    """Return what a record is of, and what it names in the cluster, for a message."""
    if isinstance(record, RbdVolumeRecord):
        return f"volume {record.id} ({record.name}): its image {record.image}"
    return f"snapshot {record.id} ({record.name}): snap {record.snap} of image {record.image}"


@contextmanager
def damaged_if_missing(index: Index, record: Record) -> Iterator[None]:
    """Raise DamagedError if Ceph does not find in the `with` block what a record names;
    NotFoundError if the volume or snapshot has been deleted meanwhile; InUseError if it has another
    image now. Blocks."""
    try:
        yield
    except NotFoundError as error:
        index.refresh()
        with index.reading() as txn:
            now: Record = (
                volume_record(txn, record.id)
                if isinstance(record, RbdVolumeRecord)
                else snapshot_record(txn, record.id)
            )
        if now.image != record.image:
            raise InUseError(f"{named_by(record)} was just replaced; try again") from error
        raise DamagedError(f"{named_by(record)} is missing, and data is lost: {error}") from error
