"""Writing to a packed head: new blocks go one behind the other, others are overwritten in place.

A write is split as the head holds its blocks:

* What the head does not hold is written as whole blocks to a run of new cells (volume.cells), the
  first and the last completed from where they are now. Then the map leads there, and the change is
  staged. Until then nothing leads to the cells: a death leaves data that nobody names.
* What the head holds is overwritten in its cells. A block has one cell for as long as it is in the
  head, and gets another one only after a trim.

The rules for zeros, and who excludes whom, are those of raw heads (volume.volume).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from bockd.drivers.local.format.cells import CELLS, ROWS, LeafCells, runs_of_cells
from bockd.drivers.local.format.layer import OVERWRITE_PIECE_BYTES, Layer
from bockd.drivers.local.format.leaf import LEAF_MASK, LEAF_SHIFT
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.runs import find_runs
from bockd.drivers.local.volume.zeros import is_zeros, zero_blocks, zero_pieces
from bockd.errors import from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps, blocking
from bockd.runtime.waiting import WriteGate

if TYPE_CHECKING:
    from bockd.drivers.local.volume.durability import Durability
    from bockd.drivers.local.volume.holes import HolePlan
    from bockd.drivers.local.volume.loading import LeafLoader

_SHIFT = BLOCK_SIZE.bit_length() - 1

PIECE_CELLS = 1 * MIB // BLOCK_SIZE + 1
"""What one engine write takes at most."""

Edges = tuple[memoryview, memoryview]
HeadRun = tuple[int, int, int]
"""Blocks first..end-1 of the head, and the cell of the first."""


class EdgeReader(Protocol):
    """What completes partial blocks: what the first and the last block hold outside a write."""

    def try_edges(self, offset: int, end: int) -> Edges | None:
        """Return the bytes before `offset` and after `end`; None if that must wait."""

    def edges(self, offset: int, end: int) -> Steps[Edges]:
        """Return them, waiting if need be."""

    def foretell_zeros(self, blocks: Sequence[int]) -> None:
        """Have the journal say, before the write, that blocks of the head will be all zeros."""


class PackedWriter:
    """Writes to one packed head of an open volume. For the owner thread."""

    def __init__(
        self,
        loader: LeafLoader,
        durability: Durability,
        gate: WriteGate,
        index: LmdbIndex,
        reader: EdgeReader,
        head: Layer,
        slot: int,
        cells: HeadCells,
        piece_bytes: int,
        start_punching: Callable[[], None],
    ) -> None:
        self.cells = cells
        self._loader = loader
        self._map = loader.cache
        self._volume = durability.record.id
        self._tail = durability.tail
        self._room = durability.room
        self._flusher = durability.flusher
        self._gate = gate
        self._index = index
        self.lost_some = index.may_miss(CELLS)
        """The index may have lost rows of cells, these perhaps (`refuse_lost`)."""
        self._reader = reader
        self._head = head
        self._slot = slot
        self._piece_bytes = piece_bytes
        self._start_punching = start_punching

    def try_write(self, offset: int, data: memoryview, first: int, end: int) -> bool:
        """Write to blocks first..end-1, none of which is locked, as `Volume.try_write`."""
        if self.lost_some:
            return False
        if end - first == 1 and len(data) == BLOCK_SIZE and self._try_new_block(first, data):
            return True
        if self._map.missing(first, end) is not None:
            return False
        held = self._map.holds_only(first, end, self._slot)
        if held and not self._leaves_zeros(offset, data):
            self._overwrite(offset, data, first, end)
            return True
        if not (self._room.has_room() if held else self._may_take(end - first)):
            return False
        edges = self._reader.try_edges(offset, offset + len(data))
        if edges is None:
            return False
        self._write(offset, data, *edges)
        return True

    def _try_new_block(self, block: int, data: memoryview) -> bool:
        """Write a whole block that the head does not hold: what random writes do after a snapshot.
        Return False, with nothing done, if it needs another look."""
        leaf = self._map.find(block >> LEAF_SHIFT)
        if leaf is None or leaf[block & LEAF_MASK] == self._slot:
            return False
        if not (data[0] or data[-1]) and is_zeros(data):
            return False
        if not (self.has_cells(1) and (self._tail.allowance or self._room.may_redirect())):
            return False
        cell = self._append([data], 1)
        self._map.assign_one(block, self._slot, self._tail.sequence, cell)
        self._tail.stage_cells((block,), cell)
        return True

    def has_cells(self, more: int = 0) -> bool:
        """Return whether there are cells for every operation inside the gate, and so many more. If
        not, the volume must get another head first."""
        cells = self.cells
        return not cells.is_short or cells.has_room(PIECE_CELLS * self._gate.inside + more)

    def _may_take(self, count: int) -> bool:
        return self.has_cells(count) and self._room.may_redirect()

    def _leaves_zeros(self, offset: int, data: memoryview) -> bool:
        """Whether the journal may have to know of blocks of zeros, which `data` may complete."""
        return self._tail.exposed() and bool(zero_pieces(offset, data))

    async def write(self, offset: int, data: memoryview, first: int, end: int) -> None:
        """Write to blocks first..end-1, which are locked, inside the gate. Raises BockdError."""
        await self._loader.load(first, end)
        held = self._map.holds_only(first, end, self._slot)
        if held and not self._leaves_zeros(offset, data):
            self._overwrite(offset, data, first, end)
            return
        if not held:
            await self.refuse_lost(first, end)
            await self._room.wait_for_index()
        edges = await self._reader.edges(offset, offset + len(data))
        await self._loader.load(first, end)
        self._write(offset, data, *edges)

    def _write(self, offset: int, data: memoryview, prefix: memoryview, suffix: memoryview) -> None:
        """Write whole blocks, new ones and others. The leaves are loaded, and the journal has
        room."""
        start = offset - len(prefix)
        first, end = start >> _SHIFT, (offset + len(data) + len(suffix)) >> _SHIFT
        new, held = self.split(first, end)
        zeros = zero_blocks(offset, data, prefix, suffix)
        if old_zeros := [block for block in zeros if _is_in(block, held)]:
            self._reader.foretell_zeros(old_zeros)
        if new:
            count = sum(high - low for low, high in new)
            whole = (prefix, data, suffix)
            buffers = [
                part
                for low, high in new
                for part in _parts(whole, (low << _SHIFT) - start, (high << _SHIFT) - start)
            ]
            cell = self._append(buffers, count)
            self.lead_to(new, cell)
            if new_zeros := [block for block in zeros if _is_in(block, new)]:
                self._tail.stage_zeros(new_zeros)
        for run in held:
            self._overwrite_run(offset, data, run)

    def split(self, first: int, end: int) -> tuple[list[tuple[int, int]], list[HeadRun]]:
        """Return which of blocks first..end-1 the head does not hold, and which it holds, as runs.
        Their leaves are loaded."""
        new: list[tuple[int, int]] = []
        held: list[HeadRun] = []
        for low, high, slot, cell in find_runs(self._map, first, end):
            if slot == self._slot:
                held.append((low, high, cell))
            elif new and new[-1][1] == low:
                new[-1] = (new[-1][0], high)
            else:
                new.append((low, high))
        return new, held

    def _append(self, buffers: Sequence[memoryview], count: int) -> int:
        """Write `count` whole blocks to new cells, which follow each other, and return the first.
        No map leads there yet."""
        cell = self.cells.take(count)
        # Set first: should the write fail half-way, the next sync must still cover it.
        self._flusher.unsynced = True
        hit(Failpoint.WRITE_BEGUN)
        try:
            self._head.write_buffers(cell << _SHIFT, buffers, self._piece_bytes)
        except OSError as error:
            self.give_back(cell, cell + count)
            raise from_os_error(error, f"writing to volume {self._volume}") from error
        hit(Failpoint.CELLS_APPENDED)
        return cell

    def give_back(self, first: int, end: int) -> None:
        """Have cells first..end-1 punched, to which no map leads."""
        if first < end:
            self.cells.empty(first, end)
            self._start_punching()

    async def refuse_lost(self, first: int, end: int) -> None:
        """Raise DamagedError if the index may have lost cells of the leaves of blocks first..end-1:
        no checkpoint could add to them."""
        if self.lost_some:
            await blocking(self._look_for_rows, range(first >> LEAF_SHIFT, -(-end >> LEAF_SHIFT)))

    def _look_for_rows(self, leaves: range) -> None:
        """In a thread."""
        with self._index.reading() as txn:
            for number in leaves:
                ROWS.get(txn, self._head.id, number)

    # -- trims -------------------------------------------------------------------------------

    def must_look(self, groups: range) -> bool:
        """Return whether the index must be read to know which cells these groups have."""
        return self.lost_some or any(not self._map.is_whole(group) for group in groups)

    async def look(self, plan: HolePlan) -> list[range]:
        """Load the leaves that the groups of a plan do not cover, and return the cells of those in
        the groups that are not in memory. Its blocks are locked. Raises DamagedError, also where
        the index may have lost cells: no checkpoint could remove them."""
        if self.lost_some:
            leaves = range(plan.first >> LEAF_SHIFT, -(-plan.end >> LEAF_SHIFT))
            await blocking(self._look_through, leaves)
        # Pinned: what is in memory may be newer than the index, and must not go before it is asked.
        self._map.pin(plan.groups)
        try:
            groups = {group for group in plan.groups if not self._map.is_whole(group)}
            rows = await blocking(self._read_cells, groups) if groups else {}
            await self._loader.load_leaves(plan.leaves_beside())
            return [
                range(*run)
                for number, row in rows.items()
                if number not in self._map.leaves
                for run in runs_of_cells(sorted(row.values()))
            ]
        finally:
            self._map.unpin(plan.groups)

    def _look_through(self, leaves: range) -> None:
        """In a thread: raise DamagedError where a row between these leaves may have been lost."""
        with self._index.reading() as txn:
            for _ in ROWS.rows_between(txn, self._head.id, leaves.start, leaves.stop):
                pass

    def _read_cells(self, groups: set[int]) -> dict[int, LeafCells]:
        """In a thread: what the index says of the leaves of some groups."""
        with self._index.reading() as txn:
            return {number: row for group in groups for number, row in self._rows_of(txn, group)}

    def _rows_of(self, txn: Transaction, group: int) -> Iterator[tuple[int, LeafCells]]:
        numbers = self._map.leaves_of(group)
        return ROWS.rows_between(txn, self._head.id, numbers.start, numbers.stop)

    def empty(self, cells: Iterable[range]) -> None:
        """Have cells punched, to which no map leads any more."""
        for run in cells:
            self.cells.empty(run.start, run.stop)
        if self.cells.emptied:
            self._start_punching()

    # -- new cells ---------------------------------------------------------------------------

    def lengthen(self, end: int) -> None:
        """Make the file end behind cell `end - 1`, or further on. On the owner thread, where it
        grows in no other way meanwhile. Raises BockdError."""
        try:
            self._head.reach(end)
        except OSError as error:
            raise from_os_error(error, f"allocating in volume {self._volume}") from error

    def lead_to(self, new: Sequence[tuple[int, int]], cell: int) -> None:
        """Let the map lead to runs of new blocks, which lie in cells from `cell` on, and stage
        that."""
        at = cell
        for low, high in new:
            self._map.assign(low, high, self._slot, self._tail.sequence, at)
            at += high - low
        self._tail.stage_new(new, cell)

    def _overwrite(self, offset: int, data: memoryview, first: int, end: int) -> None:
        """Write where the head holds all of the blocks."""
        for low, high, _, cell in find_runs(self._map, first, end):
            self._overwrite_run(offset, data, (low, high, cell))

    def _overwrite_run(self, offset: int, data: memoryview, run: HeadRun) -> None:
        """Write what a write has of blocks whose cells follow each other."""
        low, high, cell = run
        begin = max(offset, low << _SHIFT)
        stop = min(offset + len(data), high << _SHIFT)
        at = begin - (low << _SHIFT) + (cell << _SHIFT)
        self._flusher.unsynced = True
        hit(Failpoint.WRITE_BEGUN)
        try:
            self._head.write(at, data[begin - offset : stop - offset], OVERWRITE_PIECE_BYTES)
        except OSError as error:
            raise from_os_error(error, f"writing to volume {self._volume}") from error
        hit(Failpoint.WRITE_DATA)


def _is_in(block: int, runs: Sequence[tuple[int, ...]]) -> bool:
    """Whether a block is in one of some runs, of which there are few where a write has zeros."""
    return any(run[0] <= block < run[1] for run in runs)


def _parts(whole: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """Bytes start..stop-1 of buffers that follow each other."""
    at = 0
    for buffer in whole:
        low, high = max(start - at, 0), min(stop - at, len(buffer))
        if low < high:
            yield buffer[low:high]
        at += len(buffer)
