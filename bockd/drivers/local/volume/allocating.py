"""Zeros that are to keep their space: allocated in the head, in a thread, and then redirected to.

Each piece is done inside the gate, with its blocks locked, as a write that spans steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bockd.drivers.local.format import layer
from bockd.drivers.local.format.journal import CellBlocks, Kind, ZeroBlocks, places
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.runs import find_runs
from bockd.errors import from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Steps, blocking
from bockd.runtime.waiting import RangeLocks, WriteGate

if TYPE_CHECKING:
    from bockd.drivers.local.volume.durability import Durability
    from bockd.drivers.local.volume.heads import Heads
    from bockd.drivers.local.volume.packedwrites import HeadRun, PackedWriter

ALLOCATED_PIECE_BLOCKS = 64 * MIB // BLOCK_SIZE
"""Zeros allocated under one lock at most, in a thread: one group of leaves. Less would take longer
in all, more would hold up the owner thread for longer at a time."""


class ZeroAllocator:
    """Allocates zeros in the head of an open volume."""

    def __init__(
        self,
        loader: LeafLoader,
        durability: Durability,
        heads: Heads,
        gate: WriteGate,
        locks: RangeLocks,
        enter: Callable[[int, int], Steps[None]],
        foretell_zeros: Callable[[Sequence[int]], None],
    ) -> None:
        self._loader = loader
        self._map = loader.cache
        self._volume = durability.record.id
        self._tail = durability.tail
        self._room = durability.room
        self._flusher = durability.flusher
        self._heads = heads
        self._gate = gate
        self._locks = locks
        self._enter = enter
        self._foretell_zeros = foretell_zeros

    async def allocate(self, first: int, end: int) -> None:
        """Make blocks first..end-1 zeros that keep their space. Raises BockdError."""
        while first < end:
            stop = min(end, first - first % ALLOCATED_PIECE_BLOCKS + ALLOCATED_PIECE_BLOCKS)
            # A change, and two records that name all of it.
            changes = (
                1 if self._heads.packed is None else places([CellBlocks(range(first, stop), 0)])
            )
            places_needed = changes + 2 * places([ZeroBlocks(range(first, stop))])
            more = max(0, places_needed - self._room.per_operation)
            await self._enter(more, stop - first)
            self._room.promised += more
            try:
                held = await self._locks.acquire(first, stop)
                try:
                    if (packed := self._heads.packed) is not None:
                        first = await self._allocate_cells(packed, first, stop)
                    else:
                        first = await self._allocate_locked(first, stop)
                    self._tail.commit()
                finally:
                    self._locks.release(held)
            finally:
                self._room.promised -= more
                self._gate.leave()

    async def _allocate_locked(self, first: int, end: int) -> int:
        """Zero blocks from `first` on. Returns how far, `end` at most."""
        await self._loader.load(first, end)
        elsewhere: list[tuple[int, int]] = []
        if not self._map.holds_only(first, end, self._heads.slot):
            await self._room.wait_for_index()
            await self._loader.load(first, end)
            runs = find_runs(self._map, first, end)
            elsewhere = [(low, high) for low, high, slot, _ in runs if slot != self._heads.slot]
        if self._tail.exposed() and elsewhere != [(first, end)]:
            self._foretell_zeros(range(first, end))
        self._flusher.unsynced = True
        try:
            zeroed = await blocking(self._zero_head, first * BLOCK_SIZE, end * BLOCK_SIZE)
            # A sync that was under way may have covered none of it.
            self._flusher.unsynced = True
            end = zeroed // BLOCK_SIZE
            if not elsewhere:
                return end
            hit(Failpoint.ZEROS_ALLOCATED)
            await self._loader.load(first, end)
        except Exception:
            self._flusher.unsynced = True
            for low, high in elsewhere:  # what was allocated there nobody reaches
                self._heads.puncher.pending.add(low, high)
                self._heads.start_punching()
            raise
        self._heads.puncher.pending.remove(first, end)
        self._map.assign(first, end, self._heads.slot, self._tail.sequence)
        self._tail.stage(Kind.REDIRECT, first, end - first)
        self._tail.stage_zeros(range(first, end))
        return end

    async def _allocate_cells(self, packed: PackedWriter, first: int, end: int) -> int:
        """Zero blocks from `first` on in a packed head: in their cells, or in new ones. Returns how
        far, `end` at most."""
        await self._loader.load(first, end)
        if not self._map.holds_only(first, end, self._heads.slot):
            await packed.refuse_lost(first, end)
            await self._room.wait_for_index()
            await self._loader.load(first, end)
        new, held = packed.split(first, end)
        if held and self._tail.exposed():
            self._foretell_zeros(range(first, end))
        cell = stop = 0
        if count := sum(high - low for low, high in new):
            cell = packed.cells.take(count)
            stop = cell + count
        try:
            if count:
                packed.lengthen(stop)
            self._flusher.unsynced = True
            reached = await blocking(self._zero_cells, _with_cells(new, cell, held))
            # A sync that was under way may have covered none of it.
            self._flusher.unsynced = True
            if not count:
                return reached
            hit(Failpoint.ZEROS_ALLOCATED)
            await self._loader.load(first, end)
        except Exception:
            self._flusher.unsynced = True
            packed.give_back(cell, stop)  # what was allocated there nobody reaches
            raise
        done = [(low, min(high, reached)) for low, high in new if low < reached]
        used = cell + sum(high - low for low, high in done)
        packed.give_back(used, stop)
        if done:
            packed.lead_to(done, cell)
        self._tail.stage_zeros(range(first, reached))
        return reached

    def _zero_cells(self, runs: list[HeadRun]) -> int:
        """In a thread: zero runs of blocks in their cells, in order, for some milliseconds. Returns
        how far."""
        deadline = time.monotonic() + layer.ZERO_SECONDS
        for low, high, cell in runs:
            offset, end = cell * BLOCK_SIZE, (cell + high - low) * BLOCK_SIZE
            reached = self._zero_head(offset, end)
            if reached < end or time.monotonic() >= deadline:
                return low + (reached - offset) // BLOCK_SIZE
        return high

    def _zero_head(self, offset: int, end: int) -> int:
        try:
            return self._flusher.head.zero(offset, end)
        except OSError as error:
            raise from_os_error(error, f"zeroing volume {self._volume}") from error


def _with_cells(new: list[tuple[int, int]], cell: int, held: list[HeadRun]) -> list[HeadRun]:
    """All runs in the order of blocks; the new ones lie in cells from `cell` on."""
    runs = list(held)
    for low, high in new:
        runs.append((low, high, cell))
        cell += high - low
    return sorted(runs)
