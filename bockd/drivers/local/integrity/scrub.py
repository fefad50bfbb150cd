"""Checksums of frozen layers: the first reading, which writes them, and passes that verify them.

Both go in batches, each of which ends with one synced transaction that holds its progress too, so
that they go on after a restart. A batch holds the pool's maintenance lock: no byte of a frozen
layer changes meanwhile. What a map ceases to show meanwhile has no checksum when the batch is
stored.

Why the first reading is right about what it reads: a layer is frozen by a transaction that follows
the sync of its last write. (The head of a deleted volume is not frozen but dead; it is left out.)
And why it reads all of it: every block that anybody shows of a layer is shown by a leaf of the
layer's home.

A block that does not verify is marked: `LeafCache` then lets every read of it fail, here and in
processes that load its leaf later. A later pass that finds it in order takes the mark away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TypeVar

from bockd.drivers.local.format import cells, checksums
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.cells import LeafCells
from bockd.drivers.local.format.checksums import (
    CHECKSUMS,
    DamageRecord,
    LeafSums,
    PassRecord,
    ReadingRecord,
    sums_of,
)
from bockd.drivers.local.format.coldreads import ColdReader
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key
from bockd.drivers.local.integrity.damage import describe, frozen_layers
from bockd.drivers.local.registry import Registry
from bockd.errors import DamagedError
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, LayerId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps, blocking

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH_LEAVES = 16
"""Read between two transactions: 16 MiB at most, and what a crash lets be read again."""

BATCH_LOOKS = 1024
"""Leaves looked at for blocks of one layer, most of which may have none."""


@dataclass(slots=True)
class ScrubBatch:
    """What one step did. When no work was left it read nothing, and `more` is false."""

    more: bool
    read_bytes: int = 0


@dataclass(slots=True)
class _Verdicts:
    """Of one batch of a pass."""

    bad: list[DamageRecord] = field(default_factory=list)
    good: list[tuple[LayerId, int]] = field(default_factory=list)
    """Blocks that were marked and verify now."""
    blocks: int = 0
    leaves: int = 0
    following: tuple[LayerId, int] | None = None
    """Where the next batch begins; None: everything was verified."""


class Scrubber:
    """Reads and verifies the frozen layers of one pool, a batch at a time."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._unreadable: set[LayerId] = set()
        """Layers whose files are missing: told once."""

    @property
    def must_wait(self) -> bool:
        """True while somebody else is at work on frozen layers, which may take long."""
        return self._registry.maintenance_lock.held

    async def begin_pass(self) -> None:
        """Begin a new pass over everything, whatever pass is under way."""

        def begin(txn: Transaction) -> None:
            total = txn.count(CHECKSUMS)
            now = self._registry.clock()
            checksums.put_pass(txn, PassRecord(now, None, LayerId(0), 0, 0, total, 0))

        # Not between what a batch of another pass has read and what it stores.
        await self._undisturbed(lambda: self._store.index.update(begin))
        hit(Failpoint.SCRUB_BEGUN)

    async def _undisturbed(self, call: Callable[[], T]) -> T:
        async with self._registry.maintenance_lock:
            return await blocking(call)

    # -- the first reading -------------------------------------------------------------------

    def read_on(self) -> Steps[ScrubBatch]:
        """Give checksums to the next blocks that have none. Raises BockdError."""
        return self._undisturbed(self._read_batch)

    def _read_batch(self) -> ScrubBatch:
        with self._store.index.reading() as txn:
            unread = self._next_unread(txn)
            if unread is None:
                return ScrubBatch(more=False)
            layer, reading = unread
            looked = list(islice(own_leaves(txn, layer.home, reading.next_leaf), BATCH_LOOKS))
            wanted = list(islice(_without_sums(txn, layer.id, looked), BATCH_LEAVES))
            rows = _rows_of(txn, layer, [number for number, _ in wanted])
        done = len(looked) < BATCH_LOOKS and len(wanted) < BATCH_LEAVES
        last = wanted[-1][0] if len(wanted) == BATCH_LEAVES else looked[-1][0] if looked else 0
        found: dict[int, LeafSums] = {}
        try:
            if wanted:
                found = self._read_leaves(layer, wanted, rows)
        except (OSError, DamagedError) as error:
            self._unreadable.add(layer.id)
            log.error("layer %s has no checksums, for it cannot be read: %s", layer.id, error)  # noqa: TRY400
            return ScrubBatch(more=True)

        def store(txn: Transaction) -> None:
            for number, sums in found.items():
                shown = _shown_in(txn, layer, number)
                still = {block: crc for block, crc in sums.items() if block in shown}
                checksums.add_sums(txn, layer.id, number, still)
            checksums.put_reading(txn, replace(reading, next_leaf=last + 1, done=done))
            hit(Failpoint.SCRUB_READ)

        self._store.index.update(store)
        return ScrubBatch(more=True, read_bytes=sum(map(len, found.values())) * BLOCK_SIZE)

    def _next_unread(self, txn: Transaction) -> tuple[LayerRecord, ReadingRecord] | None:
        for layer in frozen_layers(txn):
            if layer.id in self._unreadable:
                continue
            reading = checksums.reading_of(txn, layer.id)
            if reading is None or (not reading.done and reading.home != layer.home):
                return layer, ReadingRecord(layer.id, layer.home, 0, done=False)
            if not reading.done:
                return layer, reading
        return None

    def _read_leaves(
        self,
        layer: LayerRecord,
        wanted: list[tuple[int, list[int]]],
        rows: dict[int, LeafCells] | None,
    ) -> dict[int, LeafSums]:
        with closing(ColdReader.open(self._store.layout, layer)) as reader:
            read = _read_leaves(reader, wanted, rows)
        for block, error in sorted(read.failed.items()):
            log.error("layer %s, block %s: no checksum: %s", layer.id, block, error)
        return read.sums

    # -- passes ------------------------------------------------------------------------------

    async def verify_on(self) -> ScrubBatch:
        """Verify the next blocks of the pass under way, if there is one. Raises BockdError."""
        verdicts = await self._undisturbed(self._verify_batch)
        if verdicts is None:
            return ScrubBatch(more=False)
        for record in verdicts.bad:
            self._registry.mark_damaged(record.layer, record.block)
        for volume in list(self._registry.volumes) if verdicts.good else ():
            # What the index does not have keeps its leaf from being read anew.
            await self._registry.checkpoint(volume)
        for _, block in verdicts.good:
            for device in self._registry.devices():
                device.map.clear_damaged(block)
        return ScrubBatch(more=True, read_bytes=verdicts.blocks * BLOCK_SIZE)

    def _verify_batch(self) -> _Verdicts | None:
        with self._store.index.reading() as txn:
            under_way = checksums.latest_pass(txn)
            if under_way is None or under_way.finished_at is not None:
                return None
            start = under_way.next_layer, under_way.next_leaf
            entries = list(islice(checksums.ROWS.rows_from(txn, *start), BATCH_LEAVES))
            layers = {layer.id: layer for layer in Catalogue(txn).layers()}
            marked = {(record.layer, record.block) for record in checksums.all_damage(txn)}
            rows = {
                of: _rows_of(txn, layers[of], [number for at, number, _ in entries if at == of])
                for of in {entry[0] for entry in entries} & layers.keys()
            }
        verdicts = _Verdicts(leaves=len(entries))
        if len(entries) == BATCH_LEAVES:
            verdicts.following = entries[-1][0], entries[-1][1] + 1
        for layer_id in dict.fromkeys(entry[0] for entry in entries):
            # The checksums of one that is forgotten are about to go.
            if (layer := layers.get(layer_id)) is not None:
                own = [(number, sums) for of, number, sums in entries if of == layer_id]
                self._verify_layer(layer, own, rows[layer_id], marked, verdicts)
        self._store.index.update(partial(self._store_verdicts, verdicts=verdicts))
        if verdicts.bad:
            hit(Failpoint.SCRUB_MARKED)
        self._tell(record for record in verdicts.bad if (record.layer, record.block) not in marked)
        return verdicts

    def _tell(self, found: Iterable[DamageRecord]) -> None:
        with self._store.index.reading() as txn:
            for record in found:
                log.error("%s", describe(txn, record))

    def _verify_layer(
        self,
        layer: LayerRecord,
        leaves: list[tuple[int, LeafSums]],
        rows: dict[int, LeafCells] | None,
        marked: set[tuple[LayerId, int]],
        verdicts: _Verdicts,
    ) -> None:
        try:
            reader = ColdReader.open(self._store.layout, layer)
        except (OSError, DamagedError) as error:
            # Volumes that need it are refused: nothing of it is served.
            log.error("layer %s cannot be verified: %s", layer.id, error)  # noqa: TRY400
            return
        with closing(reader):
            read = _read_leaves(reader, [(n, sorted(sums)) for n, sums in leaves], rows)
            for number, sums in leaves:
                verdicts.blocks += len(sums)
                for block, expected in sums.items():
                    at, found = number * LEAF_BLOCKS + block, read.sums[number].get(block)
                    if found != expected:
                        # Whoever has its leaf in memory, in another process, is to read it from
                        # the disk, where it is verified.
                        place = at if rows is None else rows[number].get(block)
                        if place is not None:
                            reader.evict(place)
                        verdicts.bad.append(
                            DamageRecord(layer.id, at, expected, found, self._registry.clock())
                        )
                    elif (layer.id, at) in marked:
                        verdicts.good.append((layer.id, at))

    def _store_verdicts(self, txn: Transaction, verdicts: _Verdicts) -> None:
        still = []
        for record in verdicts.bad:
            number, block = divmod(record.block, LEAF_BLOCKS)
            # Otherwise no map shows it any more.
            if checksums.stored_sums(txn, record.layer, number).get(block) == record.expected:
                still.append(record)
                if record.block not in checksums.damaged_blocks(
                    txn, record.layer, record.block, record.block + 1
                ):
                    checksums.mark(txn, record)
        verdicts.bad = still
        for layer, at in verdicts.good:
            checksums.unmark(txn, layer, at)
        current = checksums.latest_pass(txn)
        if current is not None:
            checksums.put_pass(txn, self._advanced(current, verdicts))
        hit(Failpoint.SCRUB_VERIFIED)

    def _advanced(self, current: PassRecord, verdicts: _Verdicts) -> PassRecord:
        following = verdicts.following or (LayerId(0), 0)
        return replace(
            current,
            finished_at=None if verdicts.following else self._registry.clock(),
            next_layer=following[0],
            next_leaf=following[1],
            leaves_done=current.leaves_done + verdicts.leaves,
            blocks_verified=current.blocks_verified + verdicts.blocks,
        )


def _blocks_in(payload: bytes, layer: LayerId) -> list[int]:
    """The blocks of a leaf, in its stored form, that lead to a layer."""
    runs = Leaf.decode(payload).runs()
    return [block for first, end, of in runs if of == layer for block in range(first, end)]


def _without_sums(
    txn: Transaction, layer: LayerId, leaves: list[tuple[int, bytes]]
) -> Iterator[tuple[int, list[int]]]:
    """Those leaves, as (number, blocks), that lead to blocks of the layer without checksums."""
    for number, payload in leaves:
        if shown := _blocks_in(payload, layer):
            known = checksums.stored_sums(txn, layer, number)
            if unknown := [block for block in shown if block not in known]:
                yield number, unknown


def _rows_of(
    txn: Transaction, layer: LayerRecord, numbers: Iterable[int]
) -> dict[int, LeafCells] | None:
    """The cells of some leaves in a packed layer, by leaf number; None if it is raw. A row that
    cannot be read is told, and lacks all blocks."""
    if not layer.packed:
        return None
    rows: dict[int, LeafCells] = {}
    for number in numbers:
        try:
            rows[number] = cells.stored_cells(txn, layer.id, number)
        except DamagedError as error:
            log.error("layer %s: %s", layer.id, error)  # noqa: TRY400
            rows[number] = {}
    return rows


def _shown_in(txn: Transaction, layer: LayerRecord, number: int) -> frozenset[int]:
    """The blocks of a leaf that the layer's home shows in it."""
    payload = txn.get(LEAVES, leaf_key(layer.home, number))
    return frozenset() if payload is None else frozenset(_blocks_in(payload, layer.id))


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of some leaves of one layer."""

    sums: dict[int, LeafSums]
    failed: dict[int, OSError | DamagedError]
    """By block of the layer: what kept it from being read."""


def _read_leaves(
    reader: ColdReader, leaves: list[tuple[int, list[int]]], rows: dict[int, LeafCells] | None
) -> _Read:
    """Read blocks of leaves, given as (number, blocks), in the order in which they lie in the
    layer's files. Of a packed layer `rows` has the cells of these leaves."""
    read = _Read({number: {} for number, _ in leaves}, {})
    places: list[tuple[int, int]] = []
    for number, blocks in leaves:
        for block in blocks:
            at = number * LEAF_BLOCKS + block
            place = at if rows is None else rows[number].get(block)
            if place is None:
                read.failed[at] = DamagedError("the index does not say where it lies")
            else:
                places.append((place, at))
    for run in _runs(sorted(places)):
        _read_run(reader, run, read)
    return read


def _read_run(reader: ColdReader, run: list[tuple[int, int]], read: _Read) -> None:
    """Read blocks that lie one behind the other, given as (place in the files, block)."""
    try:
        content = reader.read(run[0][0], len(run))
    except (OSError, DamagedError) as error:
        if len(run) == 1:
            read.failed[run[0][1]] = error
            return
        for one in run:  # which of them?
            _read_run(reader, [one], read)
        return
    for at, crc in sums_of(content, [at for _, at in run]).items():
        number, block = divmod(at, LEAF_BLOCKS)
        read.sums[number][block] = crc


def _runs(places: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut places, in ascending order, into runs that can be read at once."""
    run: list[tuple[int, int]] = []
    for place, at in places:
        if run and (place != run[-1][0] + 1 or not place % LEAF_BLOCKS):
            yield run
            run = []
        run.append((place, at))
    if run:
        yield run
