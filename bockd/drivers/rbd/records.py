"""Records of a pool in Ceph: which image or snap a volume or snapshot is, and who has it open.

They are the JSON objects of VOLUMES and SNAPSHOTS (bockd.pool.nodes), with these fields more. Who
has a volume is said for people, and to see who of several was the last; what keeps two gateways
from writing is the image's lock.

One thing is safety: a volume that is *dirty* at a gateway has writes there that were answered and
are not in its image (`dirty_at`; docs/write-back.md). No other gateway may open it. The record of
such a volume names its image by another key, `dirty_image`, so a bockd that knows nothing of this
finds the record damaged: it can neither open the volume nor store the record without the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from bockd.errors import (
    DamagedError,
    DirtyElsewhereError,
    InUseError,
    NotFoundError,
    VolumeTakenError,
)
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key, key_id
from bockd.index.tables import Table
from bockd.model import CacheMode, NodeKind, SnapshotId, VolumeId
from bockd.pool.caches import LogReach, Salvaged
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, decode_record
from bockd.pool.pool import WithVolume, nothing_more
from bockd.pool.records import SnapshotRecord, VolumeRecord, refuse_trashed

RBD = Table(b"rbd")
"""Entries: the next id of a volume or snapshot; and for each directory of write-back logs, by its
id, how many logs have been begun in it."""

_NEXT_NODE = b"next-node"
_LOGS_BEGUN = b"logs-begun/"


class Identity(NamedTuple):
    """Of a gateway."""

    gateway: str
    """Its name, which it keeps."""
    run: str
    """Its life from this start to its end: 16 hexadecimal digits."""


class DirtyAt(NamedTuple):
    """Where writes are that were answered, and that the image of a volume does not have."""

    gateway: str
    log: str
    """The id of the log there that has them."""
    since: float
    """When the first of them was about to be answered, in seconds since the epoch."""
    done: int = 0
    """Of `LogReach`, as it was some time ago."""
    synced: int = 0
    """The same."""
    directory: str = ""
    """The id of the directory there that has the log; empty if it was written down without."""
    unnotable: bool = False
    """The disk of the log did not take how much of it is below, so there may be more than its
    progress says: it must not be replayed in part."""

    @property
    def reach(self) -> LogReach:
        """How far the log has come, at least."""
        return LogReach(self.log, self.done, self.synced)


def same_log(one: DirtyAt | None, other: DirtyAt | None) -> bool:
    """Return whether a volume is dirty in one log, or in none, by both."""
    if one is None or other is None:
        return one is other
    return (one.gateway, one.log) == (other.gateway, other.log)


class Discarded(NamedTuple):
    """Somebody has given up what was dirty."""

    at: float
    gateway: str
    """Where it was dirty."""
    since: float
    """Of `DirtyAt`: what was written later, and never flushed to the image, is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdVolumeRecord(VolumeRecord):
    """VOLUMES/<id>."""

    image: str
    depth: int = 0
    """Snaps below it, one below another."""
    holder: str | None = None
    """The gateway that has it open, or had when it died. None: it was given back."""
    run: str | None = None
    """The holder's."""
    address: str | None = None
    """Of the holder's connection, by which Ceph names the owner of the image's lock."""
    epoch: int = 0
    """How many times a gateway has taken it, or it was given another image: whoever finds its own
    number has been the last."""
    cache: CacheMode = CacheMode.WRITE_THROUGH
    dirty_at: DirtyAt | None = None
    """None: the image has all that was answered."""
    discarded: Discarded | None = None
    """The last time that this was done."""
    salvaged: Salvaged | None = None
    """What became of the log then. None: it was not read."""

    def dirty_elsewhere(self, gateway: str) -> bool:
        """Return whether the volume is dirty at another gateway than this one."""
        return self.dirty_at is not None and self.dirty_at.gateway != gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdSnapshotRecord(SnapshotRecord):
    """SNAPSHOTS/<id>. It is a snap of an image, whichever volume that is or was."""

    image: str
    snap: str
    depth: int = 0
    """As a volume's: of the image."""


def volume_record(txn: Transaction, volume: VolumeId) -> RbdVolumeRecord:
    """Return the record of a volume. Raises NotFoundError, DamagedError."""
    payload = txn.get(VOLUMES, id_key(volume))
    if payload is None:
        raise NotFoundError(f"there is no volume {volume}")
    return decode_volume(payload)


def snapshot_record(txn: Transaction, snapshot: SnapshotId) -> RbdSnapshotRecord:
    """Return the record of a snapshot. Raises NotFoundError, DamagedError."""
    payload = txn.get(SNAPSHOTS, id_key(snapshot))
    if payload is None:
        raise NotFoundError(f"there is no snapshot {snapshot}")
    return decode_record(RbdSnapshotRecord, payload)


def put_record(txn: Transaction, record: RbdVolumeRecord | RbdSnapshotRecord) -> None:
    """Store a record in place of what is there under its id."""
    if isinstance(record, RbdSnapshotRecord):
        txn.put(SNAPSHOTS, id_key(record.id), msgspec.json.encode(record))
    else:
        txn.put(VOLUMES, id_key(record.id), encode_volume(record))


_IMAGE, _DIRTY_IMAGE = "image", "dirty_image"
_DIRTY_MARK = b'"dirty_image":'
"""In a text of JSON a quotation mark has a backslash, so this is a key."""


def encode_volume(record: RbdVolumeRecord) -> bytes:
    """Encode a record; see the module's docstring for one of a dirty volume."""
    if record.dirty_at is None:
        return msgspec.json.encode(record)
    fields = msgspec.to_builtins(record)
    fields[_DIRTY_IMAGE] = fields.pop(_IMAGE)
    return msgspec.json.encode(fields)


def decode_volume(payload: bytes) -> RbdVolumeRecord:
    """Decode a record. Raises DamagedError."""
    if _DIRTY_MARK not in payload:
        return decode_record(RbdVolumeRecord, payload)
    fields = decode_record(dict[str, object], payload)
    fields[_IMAGE] = fields.pop(_DIRTY_IMAGE, None)
    try:
        return msgspec.convert(fields, RbdVolumeRecord)
    except msgspec.ValidationError as error:
        raise DamagedError(f"a stored RbdVolumeRecord is malformed: {error}") from error


def decode_snapshot(payload: bytes) -> RbdSnapshotRecord:
    """Decode a record. Raises DamagedError."""
    return decode_record(RbdSnapshotRecord, payload)


def new_node(txn: Transaction) -> int:
    """Give an id to a volume or a snapshot. None is given twice."""
    payload = txn.get(RBD, _NEXT_NODE)
    node = 1 if payload is None else key_id(payload)
    txn.put(RBD, _NEXT_NODE, id_key(node + 1))
    return node


def _count_log(txn: Transaction, directory: str) -> None:
    """Count a log that is begun in a directory."""
    key = _LOGS_BEGUN + directory.encode()
    payload = txn.get(RBD, key)
    txn.put(RBD, key, id_key(1 if payload is None else key_id(payload) + 1))


def volume_records(txn: Transaction) -> Iterator[RbdVolumeRecord]:
    """Yield all volumes by id. Raises DamagedError."""
    for _, payload in txn.scan(VOLUMES, FIRST_KEY, LAST_KEY):
        yield decode_volume(payload)


def snapshot_records(txn: Transaction) -> Iterator[RbdSnapshotRecord]:
    """Yield all snapshots by id. Raises DamagedError."""
    for _, payload in txn.scan(SNAPSHOTS, FIRST_KEY, LAST_KEY):
        yield decode_snapshot(payload)


def unchanged(txn: Transaction, seen: RbdVolumeRecord) -> RbdVolumeRecord:
    """Return the record of a volume if it is of the image, size and gateway that were seen, and
    nobody has had the volume since. Raises InUseError, NotFoundError."""
    now = volume_record(txn, seen.id)
    if _state(now) != _state(seen):
        raise InUseError(
            f"another gateway has just changed or opened volume {seen.id} ({seen.name}); try again"
        )
    return now


def _state(record: RbdVolumeRecord) -> tuple[object, ...]:
    return record.image, record.size_bytes, record.epoch, record.holder


def dirty_elsewhere(record: RbdVolumeRecord) -> DirtyElsewhereError:
    """Build the error that says where a volume is dirty, and what to do about it."""
    at = record.dirty_at
    assert at is not None
    return DirtyElsewhereError(
        f"gateway {at.gateway} has answered writes to volume {record.id} ({record.name}) that are "
        f"not in the cluster yet, since {_date(at.since)}: it writes them back while it runs, so "
        "start it, or try again when it has done so. Only if it is lost for good, they are to be "
        "given up (bock volume discard-cache)"
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _taken_record(txn: Transaction, volume: VolumeId, epoch: int) -> RbdVolumeRecord:
    """Return the record of a volume that this gateway has since an epoch. Raises
    VolumeTakenError."""
    try:
        now = volume_record(txn, volume)
    except NotFoundError as error:
        raise VolumeTakenError(f"volume {volume} is gone") from error
    if now.epoch != epoch:
        raise VolumeTakenError(f"another gateway has taken volume {volume}")
    return now


class Tenures:
    """Who has a volume, and where it is dirty, in the index. Everything here blocks."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def look(self, volume: VolumeId) -> RbdVolumeRecord:
        """Return the record as it is now. Raises BockdError (NotFoundError, UnavailableError)."""
        # A change of nothing commits nothing, and begins with what the others have committed.
        return self._index.update(lambda txn: volume_record(txn, volume))

    def begin(self, seen: RbdVolumeRecord, who: Identity, address: str) -> int | None:
        """Write down that a gateway has a volume by a connection, if the record still is of the
        epoch and image that were seen. Return the new epoch; None: another gateway was faster.
        Raises NotFoundError: it is in the trash, or gone; DirtyElsewhereError: whoever had it has
        made it dirty since; BockdError."""

        def change(txn: Transaction) -> int | None:
            now = volume_record(txn, seen.id)
            refuse_trashed(NodeKind.VOLUME, now)
            if (now.epoch, now.image) != (seen.epoch, seen.image):
                return None
            if now.dirty_elsewhere(who.gateway):
                raise dirty_elsewhere(now)
            epoch = now.epoch + 1
            put_record(
                txn,
                replace(now, holder=who.gateway, run=who.run, address=address, epoch=epoch),
            )
            return epoch

        return self._index.update(change)

    def end(self, volume: VolumeId, epoch: int) -> None:
        """Write down that nobody has a volume, unless somebody has taken it since that epoch, or it
        is gone. Raises BockdError."""

        def change(txn: Transaction) -> None:
            try:
                now = volume_record(txn, volume)
            except NotFoundError:
                return
            if now.epoch == epoch:
                put_record(txn, replace(now, holder=None, run=None, address=None))

        self._index.update(change)

    def mark_dirty(self, volume: VolumeId, epoch: int, dirty: DirtyAt, directory: str) -> None:
        """Write down that a volume is dirty, by the gateway that has it since that epoch, and count
        that among the logs of a directory: before the first write is answered that is not in the
        image. Raises VolumeTakenError: another gateway has the volume, or it is gone;
        BockdError."""
        self._mark(volume, epoch, dirty, lambda txn: _count_log(txn, directory))

    def logs_begun(self, directory: str) -> int:
        """Return how many logs have been begun in a directory, by its id, as this gateway knows it.
        Raises BockdError."""
        with self._index.reading() as txn:
            payload = txn.get(RBD, _LOGS_BEGUN + directory.encode())
        return 0 if payload is None else key_id(payload)

    def mark_reach(self, reached: Sequence[tuple[VolumeId, int, LogReach]]) -> None:
        """Write down how far logs have come, of volumes that this gateway has since their epochs;
        but not of what is not dirty in that log any more, or has a malformed record. Raises
        BockdError."""

        def change(txn: Transaction) -> None:
            for volume, epoch, log in reached:
                with suppress(NotFoundError, DamagedError):
                    now = volume_record(txn, volume)
                    at = now.dirty_at
                    if now.epoch == epoch and at is not None and at.log == log.log:
                        at = at._replace(done=log.done, synced=log.synced)
                        put_record(txn, replace(now, dirty_at=at))

        self._index.update(change)

    def mark_unnotable(self, volume: VolumeId, epoch: int) -> None:
        """Write down, of a volume that is dirty, that more may be in its image than its log says.
        Raises as `mark_dirty` does."""

        def change(txn: Transaction) -> None:
            now = _taken_record(txn, volume, epoch)
            if now.dirty_at is not None and not now.dirty_at.unnotable:
                put_record(txn, replace(now, dirty_at=now.dirty_at._replace(unnotable=True)))

        self._index.update(change)

    def mark_clean(self, volume: VolumeId, epoch: int) -> None:
        """Write down that the image of a volume has all that was answered. Raises as `mark_dirty`
        does."""
        self._mark(volume, epoch, None, lambda _txn: None)

    def _mark(
        self,
        volume: VolumeId,
        epoch: int,
        dirty: DirtyAt | None,
        in_transaction: Callable[[Transaction], None],
    ) -> None:
        def change(txn: Transaction) -> None:
            now = _taken_record(txn, volume, epoch)
            if not same_log(now.dirty_at, dirty):
                put_record(txn, replace(now, dirty_at=dirty))
            in_transaction(txn)

        self._index.update(change)

    def discard(
        self,
        seen: RbdVolumeRecord,
        now_seconds: float,
        in_transaction: WithVolume = nothing_more,
        salvaged: Salvaged | None = None,
    ) -> RbdVolumeRecord:
        """Write down that what was dirty when a record was seen is given up, and what became of its
        log. Whoever had the volume finds that it is not the last any more. Return the new record.
        Raises InUseError: it was taken, or is dirty anew; BockdError."""

        def change(txn: Transaction) -> RbdVolumeRecord:
            now = unchanged(txn, seen)
            if now.dirty_at is None or not same_log(now.dirty_at, seen.dirty_at):
                raise InUseError(f"volume {seen.id} ({seen.name}) was just written back; try again")
            at = now.dirty_at
            record = replace(
                now,
                holder=None,
                run=None,
                address=None,
                epoch=now.epoch + 1,
                dirty_at=None,
                discarded=Discarded(now_seconds, at.gateway, at.since),
                salvaged=salvaged,
            )
            put_record(txn, record)
            in_transaction(txn, record)
            return record

        return self._index.update(change)
