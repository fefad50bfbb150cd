"""The catalogue: volumes, snapshots, maps and layers as records of the index.

A *map* belongs to a volume or a snapshot, or is dead: kept only because maps made from it still
fall through to it. `parent` is the map to look in when a leaf is absent. A layer's *home* is the
map that owns it: every reference to the layer is in the home or in a descendant of it. When a dead
map is folded into its only child, its layers move home to that child.

Keys are big-endian unsigned numbers of 8 bytes (names: UTF-8); CHILDREN and HOMES have two numbers
and an empty payload. Records are JSON objects of the dataclasses below, but for a layer's, which
older code must misread in no way (`LayerRecord.encode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from bockd.drivers.local.format.leaf import MAX_LAYER_ID
from bockd.errors import ConflictError, DamagedError, PoolFormatError
from bockd.index.keys import FIRST_KEY, LAST_KEY, id_key, pair_key, second_of_pair
from bockd.index.tables import Table
from bockd.model import (
    BLOCK_SIZE,
    MAX_VOLUME_BYTES,
    LayerId,
    MapId,
    NodeKind,
    SnapshotId,
    VolumeId,
)
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes, decode_record
from bockd.pool.records import SnapshotRecord, VolumeRecord

META = Table(b"meta")
MAPS = Table(b"maps")
CHILDREN = Table(b"children")
LAYERS = Table(b"layers")
HOMES = Table(b"homes")

FORMAT = 4
"""The on-disk format that this code gives a pool when it takes it over.

1: as it was before blocks had checksums. Its code would drop blocks and keep their checksums, and
so must refuse a pool that has some.
2: with checksums (format.checksums).
3: journals say which blocks may be zeros (format.journal, format 2 of a segment). Older code
would take such a journal for damaged, and `check --repair` of it would drop it.
4: layers may be packed (format.cells). Older code would read these at the wrong offsets.
"""

FORMAT_WITH_TRASH = 5
"""4, and volumes and snapshots may be in the trash (bockd.pool.trash). Older code would show them
to everybody, and restore them in part. A pool has this format from the first one that is moved
there (`Catalogue.begin_trash`): until then older code may take it over."""

NEWEST_FORMAT = FORMAT_WITH_TRASH
"""A pool with a higher one is refused."""

OLDEST_FORMAT = 1
"""The oldest that this code reads: 2 to 5 only add to it. Whoever manages a pool makes it a
`FORMAT` at once, if it is older (`Catalogue.upgrade`)."""

NO_MAP = MapId(0)
"""The parent of a map that falls through to nothing: absent leaves are holes."""

_POOL_KEY = b"pool"


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """META/pool: the format and the next unused ids."""

    format: int
    created_at: float
    next_node: int
    """For volumes and snapshots, which share one sequence of ids."""
    next_map: int
    next_layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVolumeRecord(VolumeRecord):
    """VOLUMES/<id>."""

    map: MapId
    head: LayerId
    generation: int
    """Of the journal; a number is used for one opening or one head only."""
    segment: int
    """First journal segment of this generation that the map does not contain yet; all of the
    records before it are applied."""
    opened: bool
    """True while a journal of this generation may hold what the map does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSnapshotRecord(SnapshotRecord):
    """SNAPSHOTS/<id>."""

    map: MapId


@dataclass(frozen=True, slots=True)
class MapRecord:
    """MAPS/<id>."""

    id: MapId
    parent: MapId
    size_bytes: int
    """No entry lies at or beyond this size."""
    dead: bool


NO_FILE_BYTES = 2 * MAX_VOLUME_BYTES
"""The size that older code finds in the record of a packed layer. No layer's files are so long."""


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What LAYERS/<id> says. The files' sizes add up to `file_bytes` at least."""

    id: LayerId
    size_bytes: int
    """Of what it is for: no map leads to a block of it at or beyond this size."""
    home: MapId
    packed: bool = False
    """Its blocks lie in cells (format.cells), in one file; otherwise each at its own offset."""
    cells: int = 0
    """Of a packed layer: every cell that the index names is below it."""

    @property
    def file_bytes(self) -> int:
        """How long its files must be together, in bytes."""
        return self.cells * BLOCK_SIZE if self.packed else self.size_bytes

    def encode(self) -> bytes:
        """Return the record as it is stored."""
        size = self.size_bytes
        stored = _StoredLayer(self.id, size, self.home, self.packed, self.cells)
        if self.packed:
            stored = replace(stored, size_bytes=NO_FILE_BYTES, packed_bytes=size)
        return msgspec.json.encode(stored)

    @classmethod
    def decode(cls, payload: bytes) -> LayerRecord:
        """Return the record that was stored. Raises DamagedError when it is malformed."""
        stored = decode_record(_StoredLayer, payload)
        size = stored.size_bytes
        if stored.packed:
            if size != NO_FILE_BYTES or stored.packed_bytes <= 0:
                raise DamagedError(
                    f"the stored record of the packed layer {stored.id} is malformed"
                )
            size = stored.packed_bytes
        return cls(stored.id, size, stored.home, stored.packed, stored.cells)


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """LAYERS/<id>. Code of format 3 and older knows the first three keys alone.

    A pool's format is looked at when a process joins it, so a process of an older bockd that joined
    before the pool was taken over may open volumes beside us. It would read a packed layer at the
    wrong offsets, were its file long enough; this size it finds truncated, always.
    """

    id: LayerId
    size_bytes: int
    """NO_FILE_BYTES if it is packed."""
    home: MapId
    packed: bool = False
    cells: int = 0
    packed_bytes: int = 0
    """If it is packed: its size."""


DECODERS: dict[Table, Callable[[bytes], object]] = {
    META: partial(decode_record, PoolRecord),
    VOLUMES: partial(decode_record, LocalVolumeRecord),
    SNAPSHOTS: partial(decode_record, LocalSnapshotRecord),
    MAPS: partial(decode_record, MapRecord),
    LAYERS: LayerRecord.decode,
}
"""What raises DamagedError for a record that does not fit its table."""


class Catalogue(Nodes):
    """The records of one transaction, typed."""

    # -- the pool ----------------------------------------------------------------------------

    def pool(self) -> PoolRecord | None:
        """Return the pool's own record; None in an index without one. Raises PoolFormatError for a
        format that this code does not know."""
        payload = self.txn.get(META, _POOL_KEY)
        if payload is None:
            return None
        found = msgspec.json.decode(payload).get("format")
        if not isinstance(found, int) or not OLDEST_FORMAT <= found <= NEWEST_FORMAT:
            raise PoolFormatError(
                f"the pool has format {found}, this bockd reads format {NEWEST_FORMAT} and older; "
                "use the bockd that wrote it, or a newer one"
            )
        return decode_record(PoolRecord, payload)

    def upgrade(self, record: PoolRecord) -> None:
        """Convert a pool of an older format to ours. Older code refuses it from then on."""
        if record.format < FORMAT:
            self.put_pool(replace(record, format=FORMAT))

    def begin_trash(self) -> None:
        """Note that something is moved to the trash: older code refuses the pool from then on."""
        pool = self._pool()
        if pool.format < FORMAT_WITH_TRASH:
            self.put_pool(replace(pool, format=FORMAT_WITH_TRASH))

    def put_pool(self, record: PoolRecord) -> None:
        self.txn.put(META, _POOL_KEY, msgspec.json.encode(record))

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
            self.txn.put(CHILDREN, pair_key(parent, record.id), b"")
        return record

    def next_layer(self) -> LayerId:
        """Return the id that `add_layer` expects next, without allocating it. It is read before the
        layer's files are made."""
        return LayerId(self._pool().next_layer)

    def add_layer(
        self, layer: LayerId, size_bytes: int, home: MapId, *, packed: bool = False
    ) -> None:
        """Record an empty layer whose files exist and are synced. Raises ConflictError if the id
        was taken."""
        pool = self._pool()
        if layer != pool.next_layer:
            raise ConflictError("another process changed the pool at the same time; try again")
        if layer > MAX_LAYER_ID:
            raise ConflictError("the pool has used up its layer ids; copy it to a new one")
        self.put_pool(replace(pool, next_layer=layer + 1))
        self.put_layer(LayerRecord(layer, size_bytes, home, packed))
        self.txn.put(HOMES, pair_key(home, layer), b"")

    # -- volumes and snapshots, with what is the local pool's own ---------------------------

    def volume(self, volume: VolumeId) -> LocalVolumeRecord:
        """See Nodes."""
        return decode_record(LocalVolumeRecord, self._payload(NodeKind.VOLUME, volume))

    def volumes(self, after: int = 0) -> Iterator[LocalVolumeRecord]:
        """See Nodes."""
        return self._all(VOLUMES, LocalVolumeRecord, after)

    def sound_volumes(self) -> Iterator[LocalVolumeRecord]:
        """See Nodes."""
        return self._sound(VOLUMES, LocalVolumeRecord)

    def put_volume(self, record: LocalVolumeRecord) -> None:
        """Store the record of a volume."""
        self.txn.put(VOLUMES, id_key(record.id), msgspec.json.encode(record))

    def snapshot(self, snapshot: SnapshotId) -> LocalSnapshotRecord:
        """See Nodes."""
        return decode_record(LocalSnapshotRecord, self._payload(NodeKind.SNAPSHOT, snapshot))

    def snapshots(self, after: int = 0) -> Iterator[LocalSnapshotRecord]:
        """See Nodes."""
        return self._all(SNAPSHOTS, LocalSnapshotRecord, after)

    def sound_snapshots(self) -> Iterator[LocalSnapshotRecord]:
        """See Nodes."""
        return self._sound(SNAPSHOTS, LocalSnapshotRecord)

    def put_snapshot(self, record: LocalSnapshotRecord) -> None:
        """Store the record of a snapshot."""
        self.txn.put(SNAPSHOTS, id_key(record.id), msgspec.json.encode(record))

    # -- maps --------------------------------------------------------------------------------

    def map(self, map_id: MapId) -> MapRecord:
        payload = self.txn.get(MAPS, id_key(map_id))
        if payload is None:
            raise DamagedError(f"map {map_id} is missing from the index; run 'bockd check'")
        return decode_record(MapRecord, payload)

    def put_map(self, record: MapRecord) -> None:
        self.txn.put(MAPS, id_key(record.id), msgspec.json.encode(record))

    def maps(self) -> Iterator[MapRecord]:
        for _, payload in self.txn.scan(MAPS, FIRST_KEY, LAST_KEY):
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
        keys = self.txn.keys(CHILDREN, pair_key(map_id, 0), pair_key(map_id + 1, 0))
        return [MapId(second_of_pair(key)) for key in keys]

    def subtree(self, map_id: MapId) -> Iterator[MapId]:
        """Yield the map and all its descendants, which look up absent leaves in it."""
        waiting = [map_id]
        while waiting:
            member = waiting.pop()
            yield member
            waiting.extend(self.children(member))

    # -- layers ------------------------------------------------------------------------------

    def layer(self, layer: LayerId) -> LayerRecord:
        payload = self.txn.get(LAYERS, id_key(layer))
        if payload is None:
            raise DamagedError(f"layer {layer} is missing from the index; run 'bockd check'")
        return LayerRecord.decode(payload)

    def put_layer(self, record: LayerRecord) -> None:
        self.txn.put(LAYERS, id_key(record.id), record.encode())

    def remove_layer(self, layer: LayerId) -> None:
        """Remove the record of a layer; see `format.forgetting` for what goes with it."""
        home = self.layer(layer).home
        self.txn.delete(LAYERS, id_key(layer))
        self.txn.delete(HOMES, pair_key(home, layer))

    def layers(self) -> Iterator[LayerRecord]:
        for _, payload in self.txn.scan(LAYERS, FIRST_KEY, LAST_KEY):
            yield LayerRecord.decode(payload)

    def layers_of(self, home: MapId) -> list[LayerId]:
        """Return the layers whose home is this map."""
        keys = self.txn.keys(HOMES, pair_key(home, 0), pair_key(home + 1, 0))
        return [LayerId(second_of_pair(key)) for key in keys]
