"""Volumes that other gateways have: what an operation does about these before it begins.

A volume whose record names no gateway is open nowhere: a gateway writes nothing before its name is
there.
"""

from __future__ import annotations

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    snapshot_record,
    volume_record,
)
from bockd.drivers.rbd.session import Session
from bockd.drivers.rbd.taking import ImageGoneError
from bockd.errors import DirtyElsewhereError, InUseError
from bockd.model import CacheMode, SnapshotId, VolumeId
from bockd.pool.records import name_of
from bockd.runtime.steps import run_inline


def look_at_volume(session: Session, volume: VolumeId) -> RbdVolumeRecord:
    """Return the record of a volume as it is now. Blocks. Raises BockdError (NotFoundError,
    UnavailableError)."""
    session.index.refresh()
    with session.index.reading() as txn:
        return volume_record(txn, volume)


def look_at_snapshot(session: Session, snapshot: SnapshotId) -> RbdSnapshotRecord:
    """Return the record of a snapshot as it is now. Blocks. Raises BockdError (NotFoundError,
    UnavailableError)."""
    session.index.refresh()
    with session.index.reading() as txn:
        return snapshot_record(txn, snapshot)


def vacate(session: Session, volume: VolumeId) -> RbdVolumeRecord:
    """Return the record of a volume that no gateway has. It is not open here; it is taken from
    another gateway that has it, or had when it died, and is dirty at none. Blocks. Raises
    InUseError: clients use it there; DirtyElsewhereError; BockdError."""
    seen = look_at_volume(session, volume)
    if seen.holder is None and not seen.dirty_elsewhere(session.who.gateway):
        return seen
    lost = None
    try:
        taken = run_inline(session.taker.take(volume, Manner.POLITE))
    except ImageGoneError:
        # Nobody can have it.
        lost = seen.image
    else:
        run_inline(session.taker.give_back(taken))
    now = look_at_volume(session, volume)
    if now.holder is not None and now.image != lost:
        raise InUseError(f"gateway {now.holder} has just opened volume {volume} ({name_of(now)})")
    return now


def vacate_snapshot(session: Session, snapshot: SnapshotId) -> RbdSnapshotRecord:
    """Return the record of a snapshot that no gateway reads. It is not open here; others are asked
    to close it. Blocks. Raises InUseError: it is read there; BockdError."""
    seen = look_at_snapshot(session, snapshot)
    keeper = session.bus.ask(seen.snap, Manner.POLITE)
    if keeper is not None:
        raise InUseError(
            f"snapshot {snapshot} ({name_of(seen)}) is read by clients of gateway {keeper}; "
            "disconnect them first"
        )
    return seen


def reach(session: Session, volume: VolumeId) -> RbdVolumeRecord:
    """Return the record of a volume whose image can be changed at once: whoever has it answers. One
    that does not is shut out; librbd would wait for half a minute. Blocks. Raises
    DirtyElsewhereError: it would be, and has not written the volume back; BockdError."""
    seen = look_at_volume(session, volume)
    if (seen.holder, seen.run) != session.who:
        try:
            return vacate(session, volume)
        except DirtyElsewhereError:
            raise
        except InUseError:
            pass  # clients use it there, so it is there
    return seen


def reach_content(session: Session, volume: VolumeId) -> RbdVolumeRecord:
    """Return the record of a volume whose image has all that was answered of it by other gateways,
    and can be changed at once. (What this one has answered, the caller has written back.) Blocks.
    Raises InUseError: another gateway writes it back in its own time; BockdError."""
    seen = look_at_volume(session, volume)
    elsewhere = (seen.holder, seen.run) != session.who
    if elsewhere and (seen.cache is CacheMode.WRITE_BACK or seen.dirty_at is not None):
        try:
            return vacate(session, volume)
        except DirtyElsewhereError:
            raise
        except InUseError as error:
            raise InUseError(
                f"{error}, with a cache that is written back: ask that gateway for it, or "
                "disconnect them"
            ) from error
    return reach(session, volume)
