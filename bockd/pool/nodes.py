"""The volumes and snapshots of a pool as records of its index, the same for every driver.

VOLUMES and SNAPSHOTS have a JSON object for each id, NAMES the id for each name. A driver adds
fields of its own to the objects; here they are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import msgspec

from bockd.errors import ConflictError, DamagedError, NotFoundError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key, key_id
from bockd.index.tables import Table
from bockd.model import DeviceProfile, IoLimits, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.records import SnapshotRecord, VolumeRecord

log = logging.getLogger(__name__)
R = TypeVar("R")

VOLUMES = Table(b"volumes")
SNAPSHOTS = Table(b"snapshots")
NAMES = Table(b"names")

_TABLES = {NodeKind.VOLUME: VOLUMES, NodeKind.SNAPSHOT: SNAPSHOTS}


def decode_record(kind: type[R], payload: bytes) -> R:
    """Decode a record from its JSON. Raises DamagedError when it does not fit its type."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedError(f"a stored {kind.__name__} is malformed: {error}") from error


def sound_records(txn: Transaction, table: Table, decode: Callable[[bytes], R]) -> Iterator[R]:
    """Yield the records of a table but those that are damaged, or that `decode` refuses with
    DamagedError, which are logged: for callers that must not stop at one."""
    for key, payload in txn.sound(table):
        try:
            record = decode(payload)
        except DamagedError as error:
            log.error("table %s, key %r: %s", table, key, error)  # noqa: TRY400
        else:
            yield record


class Nodes:
    """The volumes and snapshots of one transaction."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn

    # -- records -----------------------------------------------------------------------------

    def volume(self, volume: VolumeId) -> VolumeRecord:
        """Return the record of a volume. Raises NotFoundError, DamagedError."""
        return decode_record(VolumeRecord, self._payload(NodeKind.VOLUME, volume))

    def volumes(self, after: int = 0) -> Iterator[VolumeRecord]:
        """Yield the volumes whose ids are greater than `after`, by id. Raises DamagedError."""
        return self._all(VOLUMES, VolumeRecord, after)

    def sound_volumes(self) -> Iterator[VolumeRecord]:
        """Yield the volumes whose records are not damaged, for callers that must not stop at a
        damaged one."""
        return self._sound(VOLUMES, VolumeRecord)

    def snapshot(self, snapshot: SnapshotId) -> SnapshotRecord:
        """Return the record of a snapshot. Raises NotFoundError, DamagedError."""
        return decode_record(SnapshotRecord, self._payload(NodeKind.SNAPSHOT, snapshot))

    def snapshots(self, after: int = 0) -> Iterator[SnapshotRecord]:
        """Yield the snapshots whose ids are greater than `after`, by id. Raises DamagedError."""
        return self._all(SNAPSHOTS, SnapshotRecord, after)

    def sound_snapshots(self) -> Iterator[SnapshotRecord]:
        """Yield the snapshots whose records are not damaged, as `sound_volumes` does for
        volumes."""
        return self._sound(SNAPSHOTS, SnapshotRecord)

    def _payload(self, kind: NodeKind, node: int) -> bytes:
        payload = self.txn.get(_TABLES[kind], id_key(node))
        if payload is None:
            raise NotFoundError(f"there is no {kind} {node}")
        return payload

    def _all(self, table: Table, kind: type[R], after: int) -> Iterator[R]:
        first = id_key(after + 1) if after else FIRST_KEY
        for _, payload in self.txn.scan(table, first, LAST_KEY):
            yield decode_record(kind, payload)

    def _sound(self, table: Table, kind: type[R]) -> Iterator[R]:
        return sound_records(self.txn, table, partial(decode_record, kind))

    def fail_volume(self, volume: VolumeId, reason: str) -> None:
        """Record why a volume is refused until an operator reopens it."""
        fields = msgspec.json.decode(self._payload(NodeKind.VOLUME, volume))
        fields["failed"] = reason
        self.txn.put(VOLUMES, id_key(volume), msgspec.json.encode(fields))

    def limit_volume(self, volume: VolumeId, limits: IoLimits | None) -> None:
        """Record a volume's own limits of I/O; None takes them away."""
        fields = msgspec.json.decode(self._payload(NodeKind.VOLUME, volume))
        fields["limits"] = limits
        self.txn.put(VOLUMES, id_key(volume), msgspec.json.encode(fields))

    def profile_volume(self, volume: VolumeId, profile: DeviceProfile | None) -> None:
        """Record the device profile of a volume; None takes it away."""
        fields = msgspec.json.decode(self._payload(NodeKind.VOLUME, volume))
        fields["profile"] = profile
        self.txn.put(VOLUMES, id_key(volume), msgspec.json.encode(fields))

    def forget(self, kind: NodeKind, node: int, name: str) -> None:
        """Remove a record and free its name."""
        self.free_name(kind, name)
        self.txn.delete(_TABLES[kind], id_key(node))

    # -- names -------------------------------------------------------------------------------

    def take_name(self, kind: NodeKind, name: str, node: int) -> None:
        """Give `name` to a node. Raises ConflictError when another node of its kind has it."""
        key = _name_key(kind, name)
        if self.txn.get(NAMES, key) is not None:
            raise ConflictError(f"a {kind} named {name!r} exists already; choose another name")
        self.txn.put(NAMES, key, id_key(node))

    def name_is_free(self, kind: NodeKind, name: str) -> bool:
        """Return whether `take_name` would succeed now."""
        return self.txn.get(NAMES, _name_key(kind, name)) is None

    def free_name(self, kind: NodeKind, name: str) -> None:
        """Let a name be taken again."""
        self.txn.delete(NAMES, _name_key(kind, name))

    def find(self, kind: NodeKind, ref: str) -> int:
        """Return the id for an id in decimal or a name. A numeric ref is always an id. Raises
        NotFoundError."""
        if ref.isascii() and ref.isdigit():
            if len(ref) < 20 and self.txn.get(_TABLES[kind], id_key(int(ref))) is not None:
                return int(ref)
        elif (payload := self.txn.get(NAMES, _name_key(kind, ref))) is not None:
            return key_id(payload)
        raise NotFoundError(
            f"there is no {kind} {ref[:300]!r}; 'bock {kind} list' shows what there is"
        )


def _name_key(kind: NodeKind, name: str) -> bytes:
    return kind.value[:1].encode() + b"/" + name.encode()
