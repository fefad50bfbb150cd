"""The catalogue: volumes, snapshots, maps and layers as records of the index.

A *map* belongs to a volume or a snapshot, or is dead: kept only because maps made from it still
fall through to it. `parent` is the map to look in when a leaf is absent. A layer's *home* is the
map that owns it: every reference to the layer is in the home or in a descendant of it. When a dead
map is folded into its only child, its layers move home to that child.

Keys are big-endian unsigned numbers of 8 bytes (names: UTF-8); CHILDREN and HOMES have two numbers
and an empty payload. Records are JSON objects of the dataclasses below.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from bockd.drivers.local.format.leaf import MAX_LAYER_ID
from bockd.errors import ConflictError, DamagedError, NotFoundError, PoolFormatError
from bockd.index.index import Table, Transaction
from bockd.model import LayerId, MapId, NodeKind, SnapshotId, VolumeId

FORMAT = 3
"""The on-disk format that this code writes. A pool with a higher one is refused.

1: as it was before blocks had checksums. Its code would drop blocks and keep their checksums, and
so must refuse a pool that has some.
2: with checksums (format.checksums).
3: journals say which blocks may be zeros (format.journal, format 2 of a segment). Older code
would take such a journal for damaged, and `check --repair` of it would drop it.
"""

OLDEST_FORMAT = 1
"""The oldest that this code reads: 2 and 3 only add to it. Whoever manages a pool makes it a
`FORMAT` at once (`Catalogue.upgrade`)."""

NO_MAP = MapId(0)
"""The parent of a map that falls through to nothing: absent leaves are holes."""

_ID = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_POOL_KEY = b"pool"
FIRST_KEY = b""
LAST_KEY = b"\xff" * 17


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """META/pool: the format and the next unused ids."""

    format: int
    created_at: float
    next_node: int
    """For volumes and snapshots, which share one sequence of ids."""
    next_map: int
    next_layer: int


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """VOLUMES/<id>."""

    id: VolumeId
    name: str
    size_bytes: int
    map: MapId
    head: LayerId
    created_at: float
    from_snapshot: SnapshotId | None
    generation: int
    """Of the journal; a number is used for one opening or one head only."""
    segment: int
    """First journal segment of this generation that the map does not contain yet; all of the
    records before it are applied."""
    opened: bool
    """True while a journal of this generation may hold what the map does not."""
    failed: str | None
    """Why the volume is refused until an operator reopens it."""
    content_bytes: int | None = None
    """The size of the image that was imported into it, when it is smaller than `size_bytes`. Code
    that does not know this drops it, and then exports what was added to make whole blocks."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """SNAPSHOTS/<id>. `volume` is the origin, which may be gone."""

    id: SnapshotId
    name: str
    volume: VolumeId
    size_bytes: int
    map: MapId
    created_at: float
    content_bytes: int | None = None
    """As the volume's."""


@dataclass(frozen=True, slots=True)
class MapRecord:
    """MAPS/<id>."""

    id: MapId
    parent: MapId
    size_bytes: int
    """No entry lies at or beyond this size."""
    dead: bool


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """LAYERS/<id>. The files' sizes add up to `size_bytes` at least."""

    id: LayerId
    size_bytes: int
    home: MapId


Record = TypeVar("Record", PoolRecord, VolumeRecord, SnapshotRecord, MapRecord, LayerRecord)

RECORD_TYPES: dict[Table, type] = {
    Table.META: PoolRecord,
    Table.VOLUMES: VolumeRecord,
    Table.SNAPSHOTS: SnapshotRecord,
    Table.MAPS: MapRecord,
    Table.LAYERS: LayerRecord,
}


def id_key(number: int) -> bytes:
    return _ID.pack(number)


def pair_key(first: int, second: int) -> bytes:
    return _PAIR.pack(first, second)


def decode_record(kind: type[Record], payload: bytes) -> Record:
    """Decode a record from its JSON. Raises DamagedError when it does not fit its type."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedError(f"a stored {kind.__name__} is malformed: {error}") from error


class Catalogue:
    """The records of one transaction, typed."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn

    # -- the pool ----------------------------------------------------------------------------

    def pool(self) -> PoolRecord | None:
        """Return the pool's own record; None in an index without one. Raises PoolFormatError for a
        format that this code does not know."""
        payload = self.txn.get(Table.META, _POOL_KEY)
        if payload is None:
            return None
        found = msgspec.json.decode(payload).get("format")
        if not isinstance(found, int) or not OLDEST_FORMAT <= found <= FORMAT:
            raise PoolFormatError(
                f"the pool has format {found}, this bockd reads format {FORMAT} and older; "
                "use the bockd that wrote it, or a newer one"
            )
        return decode_record(PoolRecord, payload)

    def upgrade(self, record: PoolRecord) -> None:
        """Convert a pool of an older format to ours. Older code refuses it from then on."""
        if record.format != FORMAT:
            self.put_pool(replace(record, format=FORMAT))

    def put_pool(self, record: PoolRecord) -> None:
        self.txn.put(Table.META, _POOL_KEY, msgspec.json.encode(record))

    def _pool(self) -> PoolRecord:
        record = self.pool()
        if record is None:
            raise DamagedError("the index has lost the pool's own record")
        return record

    def new_node(self) -> int:
        """Allocate an id for a volume or a snapshot."""
        pool = self._pool()
        self.put_pool(replace(pool, next_node=pool.next_node + 1))
        return pool.next_node

    def new_map(self, parent: MapId, size_bytes: int) -> MapRecord:
        """Create a live map without leaves."""
        pool = self._pool()
        self.put_pool(replace(pool, next_map=pool.next_map + 1))
        record = MapRecord(MapId(pool.next_map), parent, size_bytes, dead=False)
        self.put_map(record)
        if parent != NO_MAP:
            self.txn.put(Table.CHILDREN, pair_key(parent, record.id), b"")
        return record

    def next_layer(self) -> LayerId:
        """Return the id that `add_layer` expects next, without allocating it. It is read before the
        layer's files are made."""
        return LayerId(self._pool().next_layer)

    def add_layer(self, layer: LayerId, size_bytes: int, home: MapId) -> None:
        """Record a layer whose files exist and are synced. Raises ConflictError if the id was
        taken."""
        pool = self._pool()
        if layer != pool.next_layer:
            raise ConflictError("another process changed the pool at the same time; try again")
        if layer > MAX_LAYER_ID:
            raise ConflictError("the pool has used up its layer ids; copy it to a new one")
        self.put_pool(replace(pool, next_layer=layer + 1))
        self.put_layer(LayerRecord(layer, size_bytes, home))
        self.txn.put(Table.HOMES, pair_key(home, layer), b"")

    # -- volumes and snapshots ---------------------------------------------------------------

    def volume(self, volume: VolumeId) -> VolumeRecord:
        payload = self.txn.get(Table.VOLUMES, id_key(volume))
        if payload is None:
            raise NotFoundError(f"there is no volume {volume}")
        return decode_record(VolumeRecord, payload)

    def sound_volumes(self) -> Iterator[VolumeRecord]:
        """Yield the volumes whose records are not damaged, for callers that must not stop at a
        damaged one."""
        for _, payload in self.txn.sound(Table.VOLUMES):
            yield decode_record(VolumeRecord, payload)

    def sound_snapshots(self) -> Iterator[SnapshotRecord]:
        """Yield the snapshots whose records are not damaged, as `sound_volumes` does for
        volumes."""
        for _, payload in self.txn.sound(Table.SNAPSHOTS):
            yield decode_record(SnapshotRecord, payload)

    def put_volume(self, record: VolumeRecord) -> None:
        self.txn.put(Table.VOLUMES, id_key(record.id), msgspec.json.encode(record))

    def volumes(self) -> Iterator[VolumeRecord]:
        for _, payload in self.txn.scan(Table.VOLUMES, FIRST_KEY, LAST_KEY):
            yield decode_record(VolumeRecord, payload)

    def snapshot(self, snapshot: SnapshotId) -> SnapshotRecord:
        payload = self.txn.get(Table.SNAPSHOTS, id_key(snapshot))
        if payload is None:
            raise NotFoundError(f"there is no snapshot {snapshot}")
        return decode_record(SnapshotRecord, payload)

    def put_snapshot(self, record: SnapshotRecord) -> None:
        self.txn.put(Table.SNAPSHOTS, id_key(record.id), msgspec.json.encode(record))

    def snapshots(self) -> Iterator[SnapshotRecord]:
        for _, payload in self.txn.scan(Table.SNAPSHOTS, FIRST_KEY, LAST_KEY):
            yield decode_record(SnapshotRecord, payload)

    def take_name(self, kind: NodeKind, name: str, node: int) -> None:
        """Give `name` to a node. Raises ConflictError when another node of its kind has it."""
        key = _name_key(kind, name)
        if self.txn.get(Table.NAMES, key) is not None:
            raise ConflictError(f"a {kind} named {name!r} exists already; choose another name")
        self.txn.put(Table.NAMES, key, id_key(node))

    def name_is_free(self, kind: NodeKind, name: str) -> bool:
        """Return whether `take_name` would succeed now."""
        return self.txn.get(Table.NAMES, _name_key(kind, name)) is None

    def free_name(self, kind: NodeKind, name: str) -> None:
        self.txn.delete(Table.NAMES, _name_key(kind, name))

    def find(self, kind: NodeKind, ref: str) -> int:
        """Return the id for an id in decimal or a name. A numeric ref is always an id. Raises
        NotFoundError."""
        if ref.isascii() and ref.isdigit():
            table = Table.VOLUMES if kind is NodeKind.VOLUME else Table.SNAPSHOTS
            if len(ref) < 20 and self.txn.get(table, id_key(int(ref))) is not None:
                return int(ref)
        elif (payload := self.txn.get(Table.NAMES, _name_key(kind, ref))) is not None:
            return int(_ID.unpack(payload)[0])
        raise NotFoundError(
            f"there is no {kind} {ref[:300]!r}; 'bock {kind} list' shows what there is"
        )

    # -- maps --------------------------------------------------------------------------------

    def map(self, map_id: MapId) -> MapRecord:
        payload = self.txn.get(Table.MAPS, id_key(map_id))
        if payload is None:
            raise DamagedError(f"map {map_id} is missing from the index; run 'bockd check'")
        return decode_record(MapRecord, payload)

    def put_map(self, record: MapRecord) -> None:
        self.txn.put(Table.MAPS, id_key(record.id), msgspec.json.encode(record))

    def maps(self) -> Iterator[MapRecord]:
        for _, payload in self.txn.scan(Table.MAPS, FIRST_KEY, LAST_KEY):
            yield decode_record(MapRecord, payload)

    def chain(self, map_id: MapId) -> tuple[MapId, ...]:
        """Return the map, its parent, and so on to the root. Raises DamagedError for a circle."""
        chain: list[MapId] = []
        seen: set[MapId] = set()
        while map_id != NO_MAP:
            if map_id in seen:
                raise DamagedError(f"map {map_id} is its own ancestor; run 'bockd check'")
            seen.add(map_id)
            chain.append(map_id)
            map_id = self.map(map_id).parent
        return tuple(chain)

    def children(self, map_id: MapId) -> list[MapId]:
        keys = self.txn.keys(Table.CHILDREN, pair_key(map_id, 0), pair_key(map_id + 1, 0))
        return [MapId(_PAIR.unpack(key)[1]) for key in keys]

    def subtree(self, map_id: MapId) -> Iterator[MapId]:
        """Yield the map and all its descendants, which look up absent leaves in it."""
        waiting = [map_id]
        while waiting:
            member = waiting.pop()
            yield member
            waiting.extend(self.children(member))

    def kill_map(self, map_id: MapId) -> None:
        """Mark a map that nobody shows any more as dead, and queue it for reclaim."""
        self.put_map(replace(self.map(map_id), dead=True))
        self.txn.put(Table.RECLAIM, b"m" + id_key(map_id), b"")

    # -- layers ------------------------------------------------------------------------------

    def layer(self, layer: LayerId) -> LayerRecord:
        payload = self.txn.get(Table.LAYERS, id_key(layer))
        if payload is None:
            raise DamagedError(f"layer {layer} is missing from the index; run 'bockd check'")
        return decode_record(LayerRecord, payload)

    def put_layer(self, record: LayerRecord) -> None:
        self.txn.put(Table.LAYERS, id_key(record.id), msgspec.json.encode(record))

    def remove_layer(self, layer: LayerId) -> None:
        """Remove the record of a layer; see `format.forgetting` for what goes with it."""
        home = self.layer(layer).home
        self.txn.delete(Table.LAYERS, id_key(layer))
        self.txn.delete(Table.HOMES, pair_key(home, layer))

    def layers(self) -> Iterator[LayerRecord]:
        for _, payload in self.txn.scan(Table.LAYERS, FIRST_KEY, LAST_KEY):
            yield decode_record(LayerRecord, payload)

    def layers_of(self, home: MapId) -> list[LayerId]:
        """Return the layers whose home is this map."""
        keys = self.txn.keys(Table.HOMES, pair_key(home, 0), pair_key(home + 1, 0))
        return [LayerId(_PAIR.unpack(key)[1]) for key in keys]


def _name_key(kind: NodeKind, name: str) -> bytes:
    return kind.value[:1].encode() + b"/" + name.encode()
