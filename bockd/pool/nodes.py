"""The volumes and snapshots of a pool as records of its index, the same for every driver.

VOLUMES and SNAPSHOTS have a JSON object for each id, NAMES the id for each name. A driver adds
fields of its own to the objects; here they are passed over.

What is in the trash (bockd.pool.trash) is in these tables, too: who accounts for what the pool
holds meets it. `find`, `shown_volumes` and `shown_snapshots` are for frontends, and leave it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from bockd.errors import ConflictError, DamagedError, NotFoundError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key, key_id
from bockd.index.tables import Table
from bockd.model import DeviceProfile, IoLimits, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.records import SnapshotRecord, Trashed, VolumeRecord

log = logging.getLogger(__name__)
R = TypeVar("R")

VOLUMES = Table(b"volumes")
SNAPSHOTS = Table(b"snapshots")
NAMES = Table(b"names")

_TABLES = {NodeKind.VOLUME: VOLUMES, NodeKind.SNAPSHOT: SNAPSHOTS}


@dataclass(frozen=True, slots=True)
class _Mark:
    """What `is_trashed` reads of a record."""

    trashed: Trashed | None = None


def decode_record(kind: type[R], payload: bytes) -> R:
    """Decode a record from its JSON. Raises DamagedError when it does not fit its type."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedError(f"a stored {kind.__name__} is malformed: {error}") from error


def sound_records(
    txn: Transaction,
    table: Table,
    decode: Callable[[bytes], R],
    start: bytes = b"",
    stop: bytes | None = None,
) -> Iterator[R]:
    """Yield the records of a table, or of its keys start <= key < stop, but those that are damaged,
    or that `decode` refuses with DamagedError, which are logged: for callers that must not stop at
    one."""
    for key, payload in txn.sound(table, start, stop):
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

    def shown_volumes(self) -> Iterator[VolumeRecord]:
        """Yield the volumes that are not in the trash, by id. Raises DamagedError."""
        return (record for record in self.volumes() if record.trashed is None)

    def shown_snapshots(self) -> Iterator[SnapshotRecord]:
        """Yield the snapshots that are not in the trash, by id. Raises DamagedError."""
        return (record for record in self.snapshots() if record.trashed is None)

    def is_trashed(self, kind: NodeKind, node: int) -> bool:
        """Return whether a volume or snapshot is in the trash. One that does not exist, or whose
        record is malformed, is not."""
        payload = self.txn.get(_TABLES[kind], id_key(node))
        try:
            return payload is not None and decode_record(_Mark, payload).trashed is not None
        except DamagedError:
            return False

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

    def _set(self, kind: NodeKind, node: int, **changed: object) -> dict[str, Any]:
        """Change fields of a record, and keep the driver's own. Return what it had. Raises
        NotFoundError."""
        fields: dict[str, Any] = msgspec.json.decode(self._payload(kind, node))
        self.txn.put(_TABLES[kind], id_key(node), msgspec.json.encode(fields | changed))
        return fields

    def fail_volume(self, volume: VolumeId, reason: str) -> None:
        """Record why a volume is refused until an operator reopens it."""
        self._set(NodeKind.VOLUME, volume, failed=reason)

    def limit_volume(self, volume: VolumeId, limits: IoLimits | None) -> None:
        """Record a volume's own limits of I/O; None takes them away."""
        self._set(NodeKind.VOLUME, volume, limits=limits)

    def profile_volume(self, volume: VolumeId, profile: DeviceProfile | None) -> None:
        """Record the device profile of a volume; None takes it away."""
        self._set(NodeKind.VOLUME, volume, profile=profile)

    def rename(self, kind: NodeKind, node: int, name: str, trashed: Trashed | None) -> None:
        """Give a volume or snapshot another name, as it is moved to the trash or from there. Raises
        NotFoundError, ConflictError when another one of its kind has the name."""
        before = self._set(kind, node, name=name, trashed=trashed)
        self.free_name(kind, before["name"])
        self.take_name(kind, name, node)

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
        NotFoundError, also for what is in the trash."""
        node = self._id_of(kind, ref)
        if node is None or self.is_trashed(kind, node):
            raise NotFoundError(
                f"there is no {kind} {ref[:300]!r}; 'bock {kind} list' shows what there is"
            )
        return node

    def _id_of(self, kind: NodeKind, ref: str) -> int | None:
        if ref.isascii() and ref.isdigit():
            there = len(ref) < 20 and self.txn.get(_TABLES[kind], id_key(int(ref))) is not None
            return int(ref) if there else None
        payload = self.txn.get(NAMES, _name_key(kind, ref))
        return None if payload is None else key_id(payload)


def _name_key(kind: NodeKind, name: str) -> bytes:
    return kind.value[:1].encode() + b"/" + name.encode()
