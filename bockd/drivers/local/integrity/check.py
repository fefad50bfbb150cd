"""Proving a pool's invariants: everything in the index is walked, everything on disk accounted for.

Problems are what should never be: a value that fails its checksum, an entry that leads nowhere, a
layer that nobody owns, a journal that is missing. Strays are legal: blocks in layers that no map
reaches, left by a crash between a write and its journal record, or by a trim not yet punched.

What other processes have open (coopeners) changes meanwhile: its journals and heads
are not looked at. Repairing needs the pool for itself.

`--repair` returns the strays' space, removes files that nothing names, and accepts the loss of the
latest writes of a volume whose journal is missing or damaged. It never touches mapped data: what
cannot be read might map anything, so while it is there nothing is taken for a stray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.coopeners import without_co_openers
from bockd.drivers.local.format import cells, checksums, queue
from bockd.drivers.local.format.catalogue import (
    CHILDREN,
    DECODERS,
    HOMES,
    LAYERS,
    MAPS,
    NO_MAP,
    Catalogue,
    LayerRecord,
    LocalSnapshotRecord,
    LocalVolumeRecord,
    MapRecord,
)
from bockd.drivers.local.format.cells import CELLS
from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.drivers.local.format.journal import MAP_CHANGES, Kind
from bockd.drivers.local.format.journalreading import SegmentContents, read_journal
from bockd.drivers.local.format.layer import Layer, verify_layer
from bockd.drivers.local.format.layout import JournalName, Layout, unlink_if_present
from bockd.drivers.local.format.leaf import HOLE, LEAF_BLOCKS, LEAVES, Leaf, leaf_key_parts
from bockd.drivers.local.format.queue import RECLAIM
from bockd.drivers.local.integrity.checkcells import check_rows
from bockd.drivers.local.integrity.checkchecksums import ChecksumCheck
from bockd.drivers.local.integrity.checklayers import LayerCheck, overlong_files
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.volume.recovery import (
    pages_survived,
    refuse_broken_chain,
    refuse_other_kind,
)
from bockd.errors import BockdError, DamagedError, PoolFormatError
from bockd.index.keys import id_key, pair_key
from bockd.index.tables import Table
from bockd.index.transaction import LmdbTransaction, unseal
from bockd.model import BLOCK_SIZE, LayerId, MapId, NodeKind, VolumeId
from bockd.pool.nodes import NAMES, SNAPSHOTS, VOLUMES, decode_record
from bockd.pool.reports import CheckReport
from bockd.runtime.steps import Background

_LARGE_TABLES = frozenset({LEAVES, CHECKSUMS, CELLS})
"""Walked one entry at a time."""

_SHOWING = (LEAVES, CELLS, MAPS, LAYERS, VOLUMES)
"""An entry of these may be all that says that a block is in use."""


@contextmanager
def opened_to_check(
    path: Path, *, repair: bool
) -> Iterator[tuple[StoreAccess, frozenset[VolumeId]]]:
    """Open the pool at `path` to check it, while no daemon has it open. Yield the pool's store, and
    the volumes that other processes have open.

    Raises:
        InUseError: a daemon has the pool.
        CoOpenersError: another process has something open, and the pool is to be repaired.
        PoolFormatError: there is no pool, or it has a newer format.
        DamagedError: the index cannot be opened at all.
    """
    if not Layout(path).index_data.exists():
        raise PoolFormatError(f"there is no pool in {path}")
    background = Background()
    registry = Registry.open(path, background.spawn)
    try:
        with without_co_openers(registry.store, needed=repair) as live:
            yield registry.store, live
    finally:
        registry.release()


def check_open_pool(store: StoreAccess, *, live: frozenset[VolumeId], repair: bool) -> CheckReport:
    """Check a pool that this process has open. Volumes in `live` are changing meanwhile: their
    journals and the strays of their heads are not looked at. Blocks."""
    with store.index.examining() as txn:
        checker = _Checker(store, txn, live)
        checker.run()
    repaired = _repair(store, checker) if repair else ()
    if repaired:
        again = check_open_pool(store, live=live, repair=False)
        return replace(again, repaired=repaired)
    return checker.report()


@dataclass
class _Checker:
    """One walk. Tables are read raw first, so that one broken value does not hide the rest."""

    store: StoreAccess
    txn: LmdbTransaction
    live: frozenset[VolumeId]
    problems: list[str] = field(default_factory=list)
    volumes: dict[VolumeId, LocalVolumeRecord] = field(default_factory=dict)
    snapshots: list[LocalSnapshotRecord] = field(default_factory=list)
    maps: dict[MapId, MapRecord] = field(default_factory=dict)
    layers: dict[LayerId, LayerRecord] = field(default_factory=dict)
    keys: dict[Table, dict[bytes, bytes]] = field(default_factory=dict)
    broken_journals: list[VolumeId] = field(default_factory=list)
    stray_files: list[Path] = field(default_factory=list)
    unread: dict[Table, str] = field(default_factory=dict)
    """Tables with entries that cannot be read: what is wrong with the first one."""
    leaves: int = 0
    pending: int = 0
    checksums: int = 0
    damaged: int = 0

    def __post_init__(self) -> None:
        self.blocks = LayerCheck(self.store.layout)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def unreadable(self, table: Table, error: DamagedError) -> None:
        """Report an entry that cannot be read. Its key may be wrong, too."""
        self.unread.setdefault(table, str(error))
        self.problem(str(error))

    def doubt(self) -> str | None:
        """Return why no block can be called a stray; None if nothing prevents that."""
        return next((self.unread[table] for table in _SHOWING if table in self.unread), None)

    def run(self) -> None:
        self._read_tables()
        self._check_nodes()
        self._check_maps()
        self._check_layers()
        self._check_leaves()
        self._check_journals()
        self._check_files()
        self._check_checksums()
        self._compare_layers()

    def report(self) -> CheckReport:
        return CheckReport(
            clean=not self.problems,
            problems=tuple(self.problems),
            repaired=(),
            volumes=len(self.volumes),
            snapshots=len(self.snapshots),
            layers=len(self.layers),
            leaves=self.leaves,
            stray_blocks=self.blocks.stray_count,
            pending_reclaim=self.pending,
            hollow_blocks=self.blocks.hollow_count,
            checksums=self.checksums,
            damaged_blocks=self.damaged,
        )

    # -- reading -----------------------------------------------------------------------------

    def _read_tables(self) -> None:
        for table in self.store.index.tables.values():
            if table in _LARGE_TABLES:
                continue
            good = self.keys[table] = {}
            for key, value in self.txn.raw(table):
                try:
                    good[key] = unseal(table, key, value)
                    if table in DECODERS:
                        DECODERS[table](good[key])
                except DamagedError as error:
                    self.unreadable(table, error)
                    good.pop(key, None)
        for payload in self.keys[VOLUMES].values():
            record = decode_record(LocalVolumeRecord, payload)
            self.volumes[record.id] = record
        for payload in self.keys[SNAPSHOTS].values():
            self.snapshots.append(decode_record(LocalSnapshotRecord, payload))
        for payload in self.keys[MAPS].values():
            map_record = decode_record(MapRecord, payload)
            self.maps[map_record.id] = map_record
        for payload in self.keys[LAYERS].values():
            layer = LayerRecord.decode(payload)
            self.layers[layer.id] = layer

    # -- the catalogue -----------------------------------------------------------------------

    def _check_nodes(self) -> None:
        shown: dict[MapId, str] = {}
        names = self.keys[NAMES]
        expected: dict[bytes, bytes] = {}
        nodes: list[tuple[NodeKind, LocalVolumeRecord | LocalSnapshotRecord]] = [
            *((NodeKind.VOLUME, v) for v in self.volumes.values()),
            *((NodeKind.SNAPSHOT, s) for s in self.snapshots),
        ]
        for kind, node in nodes:
            label = f"{kind} {node.id} ({node.name})"
            expected[kind.value[:1].encode() + b"/" + node.name.encode()] = id_key(node.id)
            owner = self.maps.get(node.map)
            if owner is None or owner.dead:
                self.problem(f"{label} shows map {node.map}, which is missing or dead")
            elif owner.size_bytes != node.size_bytes:
                self.problem(f"{label} and its map {node.map} differ in size")
            if node.map in shown:
                self.problem(f"{label} and {shown[node.map]} both show map {node.map}")
            shown[node.map] = label
        if names != expected:
            self.problem("the table of names does not match the volumes and snapshots")
        for map_id, map_record in self.maps.items():
            if not map_record.dead and map_id not in shown:
                self.problem(f"map {map_id} is alive, but nothing shows it")
        for volume in self.volumes.values():
            head = self.layers.get(volume.head)
            if head is None:
                self.problem(f"volume {volume.id} writes to layer {volume.head}, which is missing")
            elif head.home != volume.map:
                self.problem(f"the head of volume {volume.id} is at home in map {head.home}")

    def _check_maps(self) -> None:
        children = {pair_key(m.parent, m.id) for m in self.maps.values() if m.parent != NO_MAP}
        if children != set(self.keys[CHILDREN]):
            self.problem("the table of children does not match the maps' parents")
        dead = set(queue.dead_maps(self.txn))
        for map_id, record in self.maps.items():
            if record.parent != NO_MAP and record.parent not in self.maps:
                self.problem(f"map {map_id} falls through to map {record.parent}, which is missing")
            if record.dead != (map_id in dead):
                self.problem(f"map {map_id} is dead and not queued for reclaim, or the reverse")
            self._ancestors(map_id)
        self.pending = len(self.keys[RECLAIM])

    def _ancestors(self, map_id: MapId) -> set[MapId]:
        """The map and its ancestors; a circle is a problem and ends the walk."""
        found: set[MapId] = set()
        while map_id in self.maps:
            if map_id in found:
                self.problem(f"map {map_id} is its own ancestor")
                break
            found.add(map_id)
            map_id = self.maps[map_id].parent
        return found

    def _check_layers(self) -> None:
        homes = {pair_key(layer.home, layer.id) for layer in self.layers.values()}
        if homes != set(self.keys[HOMES]):
            self.problem("the table of homes does not match the layers")
        for layer in self.layers.values():
            if layer.home not in self.maps:
                self.problem(f"layer {layer.id} is at home in map {layer.home}, which is missing")
            try:
                verify_layer(self.store.layout, layer.id, layer.file_bytes)
            except DamagedError as error:
                self.problem(str(error))
                continue
            for text in overlong_files(self.store.layout, layer):
                self.problem(text)

    # -- leaves ------------------------------------------------------------------------------

    def _check_leaves(self) -> None:
        current: MapId | None = None
        allowed: set[LayerId] = set()
        for key, value in self.txn.raw(LEAVES):
            self.leaves += 1
            try:
                runs = Leaf.decode(unseal(LEAVES, key, value)).runs()
            except DamagedError as error:
                self.unreadable(LEAVES, error)
                continue
            map_id, number = leaf_key_parts(key)
            for first, end, layer in runs:  # also where it should not lead: it may be right
                if layer != HOLE:
                    self.blocks.reach(layer, number, first, end)
            if map_id not in self.maps:
                self.problem(f"leaf {number} belongs to map {map_id}, which is missing")
                continue
            if map_id != current:
                current = map_id
                ancestors = self._ancestors(map_id)
                allowed = {layer.id for layer in self.layers.values() if layer.home in ancestors}
            self._check_leaf(self.maps[map_id], number, runs, allowed)

    def _check_leaf(
        self,
        map_record: MapRecord,
        number: int,
        runs: list[tuple[int, int, LayerId]],
        allowed: set[LayerId],
    ) -> None:
        base = number * LEAF_BLOCKS
        for first, end, layer in runs:
            if layer == HOLE:
                continue
            if layer not in allowed:
                self.problem(
                    f"map {map_record.id} points blocks {base + first} to {base + end - 1} at "
                    f"layer {layer}, which is missing or not among its ancestors'"
                )
                continue
            if (base + end) * BLOCK_SIZE > min(
                map_record.size_bytes, self.layers[layer].size_bytes
            ):
                self.problem(f"map {map_record.id} has entries beyond its end in leaf {number}")

    # -- journals and files ------------------------------------------------------------------

    def _check_journals(self) -> None:
        for volume in self.volumes.values():
            if not volume.opened or volume.id in self.live:
                continue
            try:
                segments = self._segments(volume)
            except DamagedError as error:
                if self._changed_since(volume):
                    continue  # another process has it open, or had
                self.problem(str(error))
                self.broken_journals.append(volume.id)
                self.blocks.doubt(volume.head)
                continue
            for segment in segments:
                for change in segment.changes:
                    if change.kind in MAP_CHANGES:
                        self.blocks.excuse(volume.head, change.start, change.blocks)
                    if change.kind is Kind.CELLS:
                        self.blocks.excuse_cells(volume.head, change.cell, change.blocks)

    def _changed_since(self, volume: LocalVolumeRecord) -> bool:
        with self.store.index.reading() as txn:
            payload = txn.get(VOLUMES, id_key(volume.id))
        return payload is None or decode_record(LocalVolumeRecord, payload) != volume

    def _segments(self, volume: LocalVolumeRecord) -> list[SegmentContents]:
        first = JournalName(volume.id, volume.generation, volume.segment)
        segments, missing = read_journal(self.store.layout, first)
        if missing is not None:
            raise DamagedError(
                f"volume {volume.id} ({volume.name}) was not closed and its journal "
                f"{self.store.layout.journal_segment(missing)} is incomplete or missing"
            )
        if (head := self.layers.get(volume.head)) is not None:
            refuse_other_kind(segments, packed=head.packed)
        if len(segments) > 1:
            refuse_broken_chain(segments, survived=self._survived(volume, segments))
        return segments

    def _survived(self, volume: LocalVolumeRecord, segments: list[SegmentContents]) -> bool:
        known = self.layers.get(volume.head)
        if known is None:  # a problem that is reported by now
            return False
        head = Layer.of(self.store.layout, known, writable=False)
        try:
            return pages_survived(segments, self.store.boot, head)
        finally:
            head.close()

    def _check_files(self) -> None:
        layout = self.store.layout
        unlinks = set(queue.unlinks(self.txn))
        fresh = Catalogue(self.txn).next_layer()
        for layer, number in layout.layer_segments():
            if layer in self.layers or layer in unlinks:
                continue
            path = layout.layer_segment(layer, number)
            if layer >= fresh:
                self.stray_files.append(path)  # a creation that no transaction followed
            else:
                self.problem(f"{path} is known to no map; move it away if no backup needs it")
        for name in layout.journal_segments():
            volume = self.volumes.get(name.volume)
            if volume is None and VOLUMES in self.unread:
                continue  # it may be the journal of one that cannot be read
            if volume is None or name.generation < volume.generation or not volume.opened:
                self.stray_files.append(layout.journal_segment(name))

    def _check_checksums(self) -> None:
        leaving = queue.unlinks(self.txn)
        walk = ChecksumCheck(self.txn, self.layers, leaving, self.blocks, self.problem)
        walk.run()
        self.checksums, self.damaged = walk.checksums, walk.damaged
        check_rows(self.txn, self.layers, leaving, self.problem, partial(self.unreadable, CELLS))

    def _compare_layers(self) -> None:
        for entry in queue.punches(self.txn, 1 << 62):
            known = self.layers.get(entry.layer)
            packed = known is not None and known.packed
            excuse = self.blocks.excuse_cells if packed else self.blocks.excuse
            excuse(entry.layer, entry.first, entry.count)
        if self.doubt() is not None:
            self.blocks.doubt(*self.layers)
        heads = {self.volumes[v].head for v in self.live if v in self.volumes}
        merging = {source for source, _ in queue.begun_merges(self.txn)}
        self.blocks.moving = frozenset(merging | queue.begun_settling(self.txn).keys())
        for layer in self.layers.values():
            try:
                if layer.id in heads:
                    if layer.packed:
                        self.blocks.check_cells(layer, self.txn, self.problem)
                    continue
                lost = self.blocks.compare(layer, self.txn, self.problem)
                if lost:
                    self.problem(
                        f"{lost} blocks of layer {layer.id} are holes, and held data when their "
                        "checksums were taken: the file is older than the index, as in a copy made "
                        "while the pool was in use ('bockd backup' makes one that is whole), or "
                        "was damaged"
                    )
            except (DamagedError, OSError) as error:
                if isinstance(error, OSError):
                    self.problem(f"layer {layer.id} cannot be read: {error}")
        if count := self.blocks.outlived_count:
            self.problem(f"{count} checksums are of blocks that are not there any more")


def _repair(store: StoreAccess, checker: _Checker) -> tuple[str, ...]:
    """Do what is safe; each line says what was done."""
    done: list[str] = []
    for volume in checker.broken_journals:

        def accept(txn: LmdbTransaction, volume: VolumeId = volume) -> None:
            catalogue = Catalogue(txn)
            record = catalogue.volume(volume)
            catalogue.put_volume(
                replace(record, opened=False, generation=record.generation + 1, segment=0)
            )

        store.index.update(accept)
        done.append(f"volume {volume}: opened without its journal; its latest writes are lost")
    for path in checker.stray_files:
        unlink_if_present(path)
        done.append(f"removed {path.name}, which nothing names")
    try:
        _forget_strays(store, checker.blocks)
        punched = checker.blocks.punch_strays(checker.layers)
    except BockdError as error:
        done.append(f"strays were not punched: {error}")
    else:
        if reason := checker.doubt():
            done.append(f"strays were not punched: what cannot be read may show them: {reason}")
        if count := checker.blocks.leftover_count:
            done.append(f"forgot the cells of {count} blocks that nothing shows")
        if punched:
            done.append(f"returned {punched} stray blocks to the file system")
    return tuple(done)


def _forget_strays(store: StoreAccess, blocks: LayerCheck) -> None:
    """Forget the checksums and cells of strays, as an interrupted merge leaves them, before these
    go."""
    with store.index.reading() as txn:
        known = [
            (layer, number, within)
            for layer, number, within in blocks.strays_by_leaf()
            if not all(
                rows.get(txn, layer, number).keys().isdisjoint(within)
                for rows in (checksums.ROWS, cells.ROWS)
            )
        ]
    if known:

        def forget(txn: LmdbTransaction) -> None:
            for layer, number, within in known:
                checksums.forget_blocks(txn, layer, number, within)
                cells.ROWS.forget(txn, layer, number, within)

        store.index.update(forget)
