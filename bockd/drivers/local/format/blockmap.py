"""Block maps as stored: looking leaves up through a chain of maps, and applying journal records.

A map's leaf is found in the map itself or, if absent there, in its nearest ancestor that has it;
absent everywhere means 256 holes. A leaf that is present answers for all of its 256 blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from bockd.drivers.local.format import cells, checksums, queue
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.cells import LeafCells
from bockd.drivers.local.format.journal import MAP_CHANGES, Change, Kind
from bockd.drivers.local.format.leaf import (
    HOLE,
    LEAF_BLOCKS,
    LEAF_MASK,
    LEAF_SHIFT,
    LEAVES,
    Leaf,
    leaf_key,
    leaf_key_parts,
)
from bockd.drivers.local.format.ranges import RangeSet
from bockd.errors import DamagedError
from bockd.model import LayerId, MapId
from bockd.pool.index import Transaction

log = logging.getLogger(__name__)


def stored_leaves(
    txn: Transaction, chain: Iterable[MapId], first: int, end: int
) -> dict[int, bytes]:
    """Return the payloads of leaves first..end-1 as seen through `chain`. Absent ones are all
    holes."""
    found: dict[int, bytes] = {}
    for map_id in chain:
        for key, payload in txn.scan(LEAVES, leaf_key(map_id, first), leaf_key(map_id, end)):
            found.setdefault(leaf_key_parts(key)[1], payload)
        if len(found) == end - first:
            break
    return found


def own_leaves(txn: Transaction, map_id: MapId, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the leaves from number `first` on that are stored in the map itself, as (number,
    payload), in order."""
    for key, payload in txn.scan(LEAVES, leaf_key(map_id, first), leaf_key(MapId(map_id + 1), 0)):
        yield leaf_key_parts(key)[1], payload


def present_leaves(txn: Transaction, chain: Iterable[MapId], first: int, end: int) -> set[int]:
    """Return the numbers of the leaves within first..end-1 that some map of the chain has."""
    return {
        leaf_key_parts(key)[1]
        for map_id in chain
        for key in txn.keys(LEAVES, leaf_key(map_id, first), leaf_key(map_id, end))
    }


def lose_leaves(txn: Transaction, chain: Sequence[MapId], numbers: range, touched: range) -> None:
    """Store that those of the leaves `numbers` are holes that a chain's first map may have had and
    that cannot be read. Raises DamagedError where something else may have been lost among the
    leaves `touched`."""
    own = chain[0]
    start, stop = leaf_key(own, numbers.start), leaf_key(own, max(numbers.start, numbers.stop))
    for gap_start, gap_stop in txn.close_gaps(LEAVES, start, stop):
        first, end = leaf_key_parts(gap_start)[1], leaf_key_parts(gap_stop)[1]
        sound = present_leaves(txn, chain[:1], first, end)
        # What an ancestor has would show through.
        for number in present_leaves(txn, chain[1:], first, end) - sound:
            txn.put(LEAVES, leaf_key(own, number), Leaf.uniform(HOLE).encode())
    present_leaves(txn, chain, touched.start, touched.stop)


def first_leaves(
    txn: Transaction, chain: Iterable[MapId], first: int, end: int, step: int, most: int
) -> tuple[dict[int, bytes], int]:
    """Return the payloads of the leaves from `first` on as seen through `chain`, and up to which
    leaf all others are holes: a multiple of `step` (as `first` and `end` are), at most `end`, with
    at most `most` leaves before it. Raises DamagedError where one may have been lost."""
    found: dict[int, bytes] = {}
    for map_id in chain:
        stored = txn.scan(LEAVES, leaf_key(map_id, first), leaf_key(map_id, end))
        for key, payload in islice(stored, most + 1):
            found.setdefault(leaf_key_parts(key)[1], payload)
        if len(found) > most:
            # Of this map, too, nothing was left out before that.
            end = sorted(found)[most] // step * step
            found = {number: payload for number, payload in found.items() if number < end}
            if first == end:
                break
    return found, end


@dataclass(frozen=True, slots=True)
class FrozenLayers:
    """Layers at home in one map, of which blocks may lose their last reference."""

    ids: frozenset[LayerId]
    packed: frozenset[LayerId]
    """Those of them whose blocks lie in cells."""

    @classmethod
    def at_home(
        cls, catalogue: Catalogue, map_id: MapId, but: LayerId | None = None
    ) -> FrozenLayers:
        """Return the layers at home in a map, but for one. Raises DamagedError."""
        ids = frozenset(catalogue.layers_of(map_id)) - {but}
        return cls(ids, frozenset(layer for layer in ids if catalogue.layer(layer).packed))


@dataclass
class MapChanges:
    """Journal records applied to one map inside a write transaction.

    Feed records in order with `apply`, then call `store`. If the head is packed they say in which
    cells its blocks are, and the rows of CELLS are changed with the leaves.

    Blocks of layers at home in this very map that lose their last reference by it are queued to be
    punched: only folding moves foreign layers home, and a map under change has no descendants that
    could still refer to them.

    Whole leaves that become holes are kept as ranges: a record may name 16 million of them, and
    most are not stored.
    """

    txn: Transaction
    map_id: MapId
    head: LayerId
    _chain: tuple[MapId, ...] = field(init=False)
    _homed: FrozenLayers = field(init=False)
    _work: dict[int, Leaf] = field(default_factory=dict, init=False)
    _holes: RangeSet = field(default_factory=RangeSet, init=False)
    """Leaves that became holes as a whole. One that changed afterwards is in `_work`."""
    _head: LayerRecord = field(init=False)
    _rows: dict[int, LeafCells] = field(default_factory=dict, init=False)
    """Of a packed head, by leaf number: the cells of its blocks."""
    _cells: int = field(default=0, init=False)
    """Every cell that a record named is below it."""

    def __post_init__(self) -> None:
        catalogue = Catalogue(self.txn)
        self._head = catalogue.layer(self.head)
        self._chain = catalogue.chain(self.map_id)
        self._homed = FrozenLayers.at_home(catalogue, self.map_id, but=self.head)

    def apply(self, change: Change) -> None:
        """Apply a record that changes the map; any other changes nothing. Raises DamagedError for
        one that a journal of this head does not have."""
        if change.kind not in MAP_CHANGES:
            return
        if change.kind is (Kind.REDIRECT if self._head.packed else Kind.CELLS):
            raise DamagedError(f"a journal speaks of another kind of head than layer {self.head}")
        target = HOLE if change.kind is Kind.HOLE else self.head
        if change.kind is Kind.CELLS:
            self._give_cells(change)
        if change.blocks == 1:
            self._assign(change.start >> LEAF_SHIFT, change.start & LEAF_MASK, 1, target)
            return
        first, end = change.start, change.start + change.blocks
        first_whole = -(-first // LEAF_BLOCKS)
        end_whole = end // LEAF_BLOCKS
        if first_whole >= end_whole:
            self._apply_edges(first, end, target)
            return
        self._apply_edges(first, first_whole * LEAF_BLOCKS, target)
        self._apply_edges(end_whole * LEAF_BLOCKS, end, target)
        if target == HOLE:
            self._forget(first_whole, end_whole)
            self._holes.add(first_whole, end_whole)
            return
        for number in range(first_whole, end_whole):
            self._work[number] = Leaf.uniform(target)

    def _forget(self, first: int, end: int) -> None:
        """Forget what leaves first..end-1 were to become."""
        numbers = range(first, end)
        if len(numbers) > len(self._work):
            self._work = {n: leaf for n, leaf in self._work.items() if n not in numbers}
            self._rows = {n: row for n, row in self._rows.items() if n not in numbers}
            return
        for number in numbers:
            self._work.pop(number, None)
            self._rows.pop(number, None)

    def _give_cells(self, change: Change) -> None:
        """Give a change's blocks their cells."""
        first, end, cell = change.start, change.start + change.blocks, change.cell
        if cell + change.blocks > self._cells:
            self._cells = cell + change.blocks
        if change.blocks == 1:
            self._row(first >> LEAF_SHIFT)[first & LEAF_MASK] = cell
            return
        while first < end:
            number, at = first >> LEAF_SHIFT, first & LEAF_MASK
            count = min(LEAF_BLOCKS - at, end - first)
            given = zip(range(at, at + count), range(cell, cell + count), strict=True)
            self._row(number).update(given)
            first, cell = first + count, cell + count

    def _take_cells(self, number: int, first: int, end: int) -> None:
        """Take the cells of blocks first..end-1 of a leaf away, before it is changed."""
        if self._head.packed and self.head in self._leaf(number).palette:
            row = self._row(number)
            for block in range(first, end):
                row.pop(block, None)

    def _row(self, number: int) -> LeafCells:
        """The cells of a leaf's blocks in the head, to be changed."""
        row = self._rows.get(number)
        if row is None:
            gone = number in self._holes
            row = {} if gone else cells.stored_cells(self.txn, self.head, number)
            self._rows[number] = row
        return row

    def _apply_edges(self, first: int, end: int, target: LayerId) -> None:
        while first < end:
            number = first >> LEAF_SHIFT
            stop = min(end, (number + 1) << LEAF_SHIFT)
            self._assign(number, first & LEAF_MASK, stop - first, target)
            first = stop

    def _assign(self, number: int, first: int, count: int, target: LayerId) -> None:
        """Assign `count` blocks of a leaf, from `first` on."""
        if target == HOLE:
            self._take_cells(number, first, first + count)
        self._leaf(number).assign(first, first + count, target)

    def _leaf(self, number: int) -> Leaf:
        leaf = self._work.get(number)
        if leaf is None and number in self._holes:
            leaf = self._work[number] = Leaf.uniform(HOLE)
        if leaf is None:
            for map_id in self._chain:
                payload = self.txn.get(LEAVES, leaf_key(map_id, number))
                if payload is not None:
                    leaf = Leaf.decode(payload)
                    break
            else:
                leaf = Leaf.uniform(HOLE)
            self._work[number] = leaf
        return leaf

    def store(self) -> bool:
        """Write the changed leaves. Return whether blocks were queued to be punched."""
        garbage = False
        inherits = len(self._chain) > 1
        for first, end in self._holes:
            garbage |= self._erase(first, end)
        for number in sorted(self._work):
            leaf = self._work[number]
            key = leaf_key(self.map_id, number)
            garbage |= self._queue_orphans(key, leaf)
            if not inherits and leaf.is_hole():
                self.txn.delete(LEAVES, key)
            else:
                self.txn.put(LEAVES, key, leaf.encode())
        for number in sorted(self._rows):
            cells.ROWS.put(self.txn, self.head, number, self._rows[number])
        if self._cells > self._head.cells:
            Catalogue(self.txn).put_layer(replace(self._head, cells=self._cells))
        return garbage

    def _erase(self, first: int, end: int) -> bool:
        """Write that leaves first..end-1 are all holes. Return whether blocks were queued to be
        punched. Raises DamagedError where something was lost that may be another leaf."""
        garbage, hole = False, Leaf.uniform(HOLE)
        start, stop = leaf_key(self.map_id, first), leaf_key(self.map_id, end)
        if self._homed.ids:
            for key, payload in self.txn.sound(LEAVES, start, stop):
                garbage |= self._queue_orphans(key, hole, payload)
        self.txn.erase(LEAVES, start, stop)
        if self._head.packed:
            cells.erase_leaves(self.txn, self.head, first, end)
        # What an ancestor has would show through.
        for number in present_leaves(self.txn, self._chain[1:], first, end):
            self.txn.put(LEAVES, leaf_key(self.map_id, number), hole.encode())
        return garbage

    def _queue_orphans(self, key: bytes, after: Leaf, payload: bytes | None = None) -> bool:
        """Queue what the stored leaf under `key`, or `payload` if that is it, loses when it becomes
        `after`. Return whether there was something.

        Of a leaf that cannot be read nothing is known; it is replaced all the same. What it showed
        keeps its space, until `check --repair` finds it."""
        if not self._homed.ids:
            return False
        try:
            if payload is None:
                payload = self.txn.get(LEAVES, key)
            before = None if payload is None else Leaf.decode(payload)
        except DamagedError as error:
            number = leaf_key_parts(key)[1]
            log.error("leaf %d of map %d is replaced: %s", number, self.map_id, error)  # noqa: TRY400
            return False
        if before is None:
            return False
        return queue_orphans(self.txn, leaf_key_parts(key)[1], before, after, self._homed)


def queue_orphans(
    txn: Transaction,
    number: int,
    before: Leaf,
    after: Leaf,
    layers: FrozenLayers,
) -> bool:
    """Queue for punching the blocks of leaf `number` that were in one of `layers` before and are
    not after, and forget their checksums and cells. Return whether there were any."""
    if layers.ids.isdisjoint(before.palette):
        return False
    now = after.layers()
    gone: dict[LayerId, list[int]] = {}
    for first, end, layer in before.runs():
        if layer in layers.ids:
            lost = [block for block in range(first, end) if now[block] != layer]
            gone.setdefault(layer, []).extend(lost)
    for layer, blocks in gone.items():
        for first, end in _places(txn, layer, number, blocks, packed=layer in layers.packed):
            queue.add_punch(txn, queue.PunchEntry(layer, first, end - first))
        if blocks:
            checksums.forget_blocks(txn, layer, number, blocks)
    return any(gone.values())


def _places(
    txn: Transaction, layer: LayerId, number: int, blocks: list[int], *, packed: bool
) -> Iterator[tuple[int, int]]:
    """Where blocks of a leaf, in ascending order, lie in a layer's file, as runs (first, end). Of a
    packed layer these cells are forgotten. Those that cannot be read stay, and keep their space."""
    if packed and blocks:
        try:
            row = cells.stored_cells(txn, layer, number)
        except DamagedError as error:
            log.error("cells of blocks that are gone: %s", error)  # noqa: TRY400
            return iter(())
        cells.ROWS.forget(txn, layer, number, blocks)
        return cells.runs_of_cells(sorted(row[block] for block in blocks if block in row))
    base = number * LEAF_BLOCKS
    return cells.runs_of_cells(base + block for block in blocks)
