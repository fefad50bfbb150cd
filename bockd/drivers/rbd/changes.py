"""Where two snapshots differ, by objects of 4 MiB: implements `Pool.changes`.

The object maps of an image's snaps tell it. Where the two are snaps of different images, since the
volume was reverted in between, everything may differ.
"""

from __future__ import annotations

from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.lost import damaged_if_missing
from bockd.drivers.rbd.records import snapshot_record
from bockd.drivers.rbd.session import Session
from bockd.model import SnapshotId
from bockd.pool.reports import Changes


def find_changes(
    session: Session, older: SnapshotId, newer: SnapshotId, offset: int, limit: int
) -> Changes:
    """See `Pool.changes`. Blocks."""
    with session.index.reading() as txn:
        before, after = snapshot_record(txn, older), snapshot_record(txn, newer)
    size = after.size_bytes
    if before.image != after.image:
        return Changes(((offset, size - offset),) if offset < size else (), size)
    changed = bytearray(-(-size // OBJECT_BYTES))

    def note(at: int, length: int, _exists: bool) -> None:
        first, stop = at // OBJECT_BYTES, -(-(at + length) // OBJECT_BYTES)
        changed[first:stop] = b"\1" * (stop - first)

    with (
        damaged_if_missing(session.index, after),
        session.images.use() as (_, ioctx),
        looking_at(ioctx, after.image, after.snap) as image,
        named(f"comparing snaps {before.snap} and {after.snap} of image {after.image}"),
    ):
        # From the beginning: what is asked of a part is not always all of it.
        image.diff_iterate(0, size, before.snap, note, True, True)
    return _ranges(changed, size, offset, limit)


def _ranges(changed: bytearray, size: int, offset: int, limit: int) -> Changes:
    found: list[tuple[int, int]] = []
    at = changed.find(1, offset // OBJECT_BYTES)
    while at >= 0:
        if len(found) == limit:
            return Changes(tuple(found), sum(found[-1]))
        stop = changed.find(0, at)
        stop = len(changed) if stop < 0 else stop
        begin, end = max(at * OBJECT_BYTES, offset), min(stop * OBJECT_BYTES, size)
        if begin < end:
            found.append((begin, end - begin))
        at = changed.find(1, stop)
    return Changes(tuple(found), size)
