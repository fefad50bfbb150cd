"""Records of a pool in Ceph: which image or snap a volume or snapshot is, and who has it open.

They are the JSON objects of VOLUMES and SNAPSHOTS (bockd.pool.nodes), with these fields more. Who
has a volume is said for people, and to see who of several was the last; what keeps two gateways
from writing is the image's lock, and nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from bockd.errors import InUseError, NotFoundError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key, key_id
from bockd.index.tables import Table
from bockd.model import SnapshotId, VolumeId
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, decode_record
from bockd.pool.records import SnapshotRecord, VolumeRecord

RBD = Table(b"rbd")
"""One entry: the next id of a volume or snapshot."""

_NEXT_NODE = b"next-node"


class Identity(NamedTuple):
    """Of a gateway."""

    gateway: str
    """Its name, which it keeps."""
    run: str
    """Its life from this start to its end: 16 hexadecimal digits."""


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
    return decode_record(RbdVolumeRecord, payload)


def snapshot_record(txn: Transaction, snapshot: SnapshotId) -> RbdSnapshotRecord:
    """Return the record of a snapshot. Raises NotFoundError, DamagedError."""
    payload = txn.get(SNAPSHOTS, id_key(snapshot))
    if payload is None:
        raise NotFoundError(f"there is no snapshot {snapshot}")
    return decode_record(RbdSnapshotRecord, payload)


def put_record(txn: Transaction, record: RbdVolumeRecord | RbdSnapshotRecord) -> None:
    """Store a record in place of what is there under its id."""
    table = VOLUMES if isinstance(record, RbdVolumeRecord) else SNAPSHOTS
    txn.put(table, id_key(record.id), msgspec.json.encode(record))


def new_node(txn: Transaction) -> int:
    """Give an id to a volume or a snapshot. None is given twice."""
    payload = txn.get(RBD, _NEXT_NODE)
    node = 1 if payload is None else key_id(payload)
    txn.put(RBD, _NEXT_NODE, id_key(node + 1))
    return node


def volume_records(txn: Transaction) -> Iterator[RbdVolumeRecord]:
    """Yield all volumes by id. Raises DamagedError."""
    for _, payload in txn.scan(VOLUMES, FIRST_KEY, LAST_KEY):
        yield decode_record(RbdVolumeRecord, payload)


def snapshot_records(txn: Transaction) -> Iterator[RbdSnapshotRecord]:
    """Yield all snapshots by id. Raises DamagedError."""
    for _, payload in txn.scan(SNAPSHOTS, FIRST_KEY, LAST_KEY):
        yield decode_record(RbdSnapshotRecord, payload)


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


class Tenures:
    """Who has a volume, in the index. Everything here blocks."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def look(self, volume: VolumeId) -> RbdVolumeRecord:
        """Return the record as it is now. Raises BockdError (NotFoundError, UnavailableError)."""
        # A change of nothing commits nothing, and begins with what the others have committed.
        return self._index.update(lambda txn: volume_record(txn, volume))

    def begin(self, seen: RbdVolumeRecord, who: Identity, address: str) -> int | None:
        """Write down that a gateway has a volume by a connection, if the record still is of the
        epoch and image that were seen. Return the new epoch; None: another gateway was faster.
        Raises BockdError."""

        def change(txn: Transaction) -> int | None:
            now = volume_record(txn, seen.id)
            if (now.epoch, now.image) != (seen.epoch, seen.image):
                return None
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
