"""An open volume: the writing half of the volume contract.

A write to blocks that the head holds goes there in place. Any other is a *redirect*: whole blocks
are written into the head (a partial one is completed from its old layer first), the map is changed
in memory, and the change is staged for the journal. Zero and trim change the map to holes at once.

A block that a write leaves all zeros is named in the journal (`foretell_zeros`), if no barrier
covers its redirect yet: recovery would take it for data that was lost. In place, the journal comes
first: between a write and its record a death would leave zeros that nobody explains.

Who excludes whom: an operation that finishes without a step needs no lock, it only refuses to run
into blocks that are locked. One that spans steps is inside the gate and holds its block range. So a
partial write never copies up what another is copying, and a punch never meets a new write.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress

from bockd import failpoints
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.journal import Kind
from bockd.drivers.local.format.layer import (
    OVERWRITE_PIECE_BYTES,
    SEGMENT_BYTES,
    Layer,
)
from bockd.drivers.local.format.leaf import LEAF_MASK, LEAF_SHIFT, LEAVES
from bockd.drivers.local.format.writepieces import SMALL_BYTES
from bockd.drivers.local.volume.allocating import ZeroAllocator
from bockd.drivers.local.volume.durability import Durability
from bockd.drivers.local.volume.heads import NO_SLOT, Heads
from bockd.drivers.local.volume.holes import HolePlan, lacks, make_holes, plan_holes
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.packedwrites import PackedWriter
from bockd.drivers.local.volume.reading import BLOCK_SHIFT, Reader
from bockd.drivers.local.volume.redirecting import (
    LaneRedirects,
    LaneVolume,
    PackedLaneRedirects,
    RawLaneRedirects,
)
from bockd.drivers.local.volume.zeros import is_zeros, zero_blocks, zero_pieces
from bockd.errors import DamagedError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, GIB, KIB, MIB
from bockd.pool.device import FastView
from bockd.runtime.steps import Spawn, Steps, blocking
from bockd.runtime.waiting import RangeLocks, WriteGate

BLOCK_MASK = BLOCK_SIZE - 1

PIECE_BYTES = 1 * MIB
"""What one engine write covers: the longest that the owner thread is held up by one."""

HOLE_PIECE_BLOCKS = 4 * GIB // BLOCK_SIZE
"""What one hole record covers: 64 groups of leaves, less than a millisecond of work on the owner
thread. Pieces begin at its multiples, so that they end where groups do."""

MIN_ALLOCATED_BYTES = 128 * KIB
"""Fewer zeros are written: a thread and an extent of their own would cost more."""

_ZEROS = memoryview(bytes(PIECE_BYTES))


class Volume(Reader):
    """Implements bockd.pool.device.BlockDevice for a volume."""

    read_only = False

    def __init__(
        self,
        store: StoreAccess,
        loader: LeafLoader,
        durability: Durability,
        gate: WriteGate,
        spawn: Spawn,
    ) -> None:
        super().__init__(store, loader, durability.record.size_bytes, spawn)
        self.durability = durability
        # What each request needs, without a way through others.
        self._failure = durability.failure
        self._tail = durability.tail
        self._room = durability.room
        self._flusher = durability.flusher
        self._piece_bytes = store.write_pieces.size_bytes
        self.locks = RangeLocks()
        self.gate = gate
        self.heads = Heads(store, loader.layers, durability, self.locks, self.drain_reads, spawn)
        self._allocator = ZeroAllocator(
            loader,
            durability,
            self.heads,
            gate,
            self.locks,
            enter=lambda more, cells: self._enter(reserve=False, more=more, cells=cells),
            foretell_zeros=lambda blocks: self.foretell_zeros(blocks),
        )
        self._head_slot = NO_SLOT
        self._head_descriptor = -1
        self._redirects: LaneRedirects | None = None
        self._packed: PackedWriter | None = None
        """Writes to the head if that is packed."""
        self._made_holes = False
        """Holes were made since the last commit."""
        durability.drain_reads = self.drain_reads
        durability.on_begun = self._adopt_first_head

    def _adopt_first_head(self, head: Layer) -> None:
        """Write to `head` from now on, which may have been read until now."""
        replaced = self.layers.take_over(head)
        self.adopt_head(head)
        if replaced is not None:
            self.heads.close_later(replaced)

    def adopt_head(self, head: Layer) -> None:
        """Write to `head` from now on: at the first change, and after each snapshot."""
        self._head_slot = self.layers.slot_of(head)
        head.mark_in_memory()  # not sooner: recovery looks for the mark of an earlier opening
        self._flusher.head = head
        self._head_descriptor = head.descriptors[0]
        self._packed = self.heads.packed = self._redirects = None
        lane = LaneVolume(
            self.map,
            self._tail,
            self._room,
            self._failure,
            self._piece_bytes,
            self.try_trim,
            self.commit,
        )
        if head.packed:
            cells = self.heads.adopt_packed(head, self._head_slot)
            self._packed = self.heads.packed = PackedWriter(
                self.loader,
                self.durability,
                self.gate,
                self._store.index,
                self,
                head,
                self._head_slot,
                cells,
                self._piece_bytes,
                self.heads.start_punching,
            )
            self._redirects = PackedLaneRedirects(lane, self._packed)
            return
        self._puncher = self.heads.adopt(head, self._head_slot)
        self._redirects = RawLaneRedirects(lane, self._puncher)

    def adopt_size(self, size_bytes: int) -> None:
        """Set the new size of a volume that has grown."""
        assert size_bytes >= self._size_bytes
        self._size_bytes = self.loader.size_bytes = size_bytes

    def _is_frozen(self, layer: Layer) -> bool:
        return layer.id != self._flusher.head.id

    # -- writing -----------------------------------------------------------------------------

    def fast_view(self) -> FastView:
        """See FastDevice.fast_view."""
        may_change = not (
            self.gate.closed or self._failure.reason is not None or failpoints.armed is not None
        )
        return FastView(
            self._leaves,
            self._cells,
            self._slots,
            self._head_slot if may_change and not self.locks.held else -1,
            self._flusher,
            SEGMENT_BYTES,
            self._tail.exposed(),
            self._redirects if may_change else None,  # trims look at the locks themselves
            self._marks,
        )

    def try_write(self, offset: int, data: memoryview) -> bool:
        """See BlockDevice.try_write."""
        if self._failure.reason is not None:
            self._failure.check_usable()
        length = len(data)
        first = offset >> BLOCK_SHIFT
        last = (offset + length - 1) >> BLOCK_SHIFT
        number = first >> LEAF_SHIFT
        leaf = self._leaves.get(number) or self.map.find(number)
        if leaf is None or self.gate.closed:
            return False
        if self.locks.held and self.locks.busy(first, last + 1):
            return False
        if self._packed is not None:
            return self._packed.try_write(offset, data, first, last + 1)
        if first != last:
            return self._try_write_many(offset, data, first, last + 1)
        # Most data begins or ends with a byte that says that it is no block of zeros.
        if leaf[first & LEAF_MASK] == self._head_slot:
            if not (data[0] or data[-1]) and self._tail.exposed():
                return self._try_overwrite(offset, data)
            self._write_head(offset, data)
            return True
        if (
            length == BLOCK_SIZE
            and (data[0] or data[-1] or not is_zeros(data))
            and (self._tail.allowance or self._room.may_redirect())
        ):
            # A redirect of one whole block: what random writes do after a snapshot.
            self._write_head(offset, data)
            if self._puncher.pending:
                self._puncher.pending.remove(first, last + 1)
            tail = self._tail
            self.map.assign_one(first, self._head_slot, tail.sequence)
            tail.stage_block(first)
            return True
        return self._try_write_many(offset, data, first, last + 1)

    def _try_write_many(self, offset: int, data: memoryview, first: int, end: int) -> bool:
        if self._head_slot == NO_SLOT or self.map.missing(first, end) is not None:
            return False
        if self.map.holds_only(first, end, self._head_slot):
            return self._try_overwrite(offset, data)
        if not self._room.may_redirect():
            return False
        edges = self.try_edges(offset, offset + len(data))
        if edges is None:
            return False
        self._redirect(offset, data, *edges)
        return True

    def _try_overwrite(self, offset: int, data: memoryview) -> bool:
        """Write where the head holds the blocks; False if that must wait."""
        if self._tail.exposed() and zero_pieces(offset, data):
            edges = self.try_edges(offset, offset + len(data))
            if edges is None or not self._room.has_room():
                return False
            self.foretell_zeros(zero_blocks(offset, data, *edges))
        self._write_head(offset, data, OVERWRITE_PIECE_BYTES)
        return True

    def foretell_zeros(self, blocks: Sequence[int]) -> None:
        """Stage in the journal, before the write, that these blocks, in order, will be all zeros
        where the head has them. The journal has room. Raises VolumeFailedError."""
        durable, dirty = self._tail.durable, self.map.dirty
        if isinstance(blocks, range):  # all of it or nothing: there may be very many
            leaves = range(blocks.start >> LEAF_SHIFT, ((blocks.stop - 1) >> LEAF_SHIFT) + 1)
            blocks = blocks if any(dirty.get(number, 0) > durable for number in leaves) else ()
        else:
            blocks = [block for block in blocks if dirty.get(block >> LEAF_SHIFT, 0) > durable]
        if blocks:
            self._tail.stage_zeros(blocks)
            self._tail.commit()
            hit(Failpoint.ZEROS_FORETOLD)

    def commit(self) -> None:
        """See BlockDevice.commit."""
        self._tail.commit()
        if self._made_holes:
            self._made_holes = False
            # The head's time is the volume's (drivers.local.space), and of holes nothing is written
            # there.
            with suppress(OSError):
                os.utime(self._head_descriptor)

    async def write(self, offset: int, data: memoryview) -> None:
        """See BlockDevice.write."""
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            await self._write_piece(offset + start, piece)

    async def _write_piece(self, offset: int, data: memoryview) -> None:
        first = offset >> BLOCK_SHIFT
        end = ((offset + len(data) - 1) >> BLOCK_SHIFT) + 1
        await self._enter(reserve=False)
        try:
            held = await self.locks.acquire(first, end)
            try:
                await self.loader.load(first, end)
                if self._packed is not None:
                    await self._packed.write(offset, data, first, end)
                elif self.map.holds_only(first, end, self._head_slot):
                    if self._tail.exposed() and zero_pieces(offset, data):
                        edges = await self.edges(offset, offset + len(data))
                        self.foretell_zeros(zero_blocks(offset, data, *edges))
                    self._write_head(offset, data, OVERWRITE_PIECE_BYTES)
                else:
                    await self._room.wait_for_index()
                    prefix, suffix = await self.edges(offset, offset + len(data))
                    await self.loader.load(first, end)
                    self._redirect(offset, data, prefix, suffix)
                self._tail.commit()
            finally:
                self.locks.release(held)
        finally:
            self.gate.leave()

    async def _enter(self, *, reserve: bool, more: int = 0, cells: int = 0) -> None:
        """Go in, with room for what the operation will append to the journal: `more` places than
        most (`JournalRoom.has_room`), and so many `cells`. What may use the reserve takes none."""
        while True:
            await self._room.wait(reserve=reserve, more=more)
            await self.gate.enter()
            ready = lacking = False
            try:
                self._failure.check_usable()
                ready = self._room.has_room(more, entered=True)
                if ready and not reserve and self._packed is not None:
                    lacking = not self._packed.has_cells(cells)
                    ready = not lacking
            finally:
                if not ready:
                    self.gate.leave()
            if ready:
                return
            if lacking:
                await self.durability.rotate()

    def _write_head(self, offset: int, data: memoryview, piece_bytes: int = SMALL_BYTES) -> None:
        # Set first: should the write fail half-way, the next sync must still cover it.
        self._flusher.unsynced = True
        if failpoints.armed is not None:
            hit(Failpoint.WRITE_BEGUN)
        try:
            length = len(data)
            in_one = length <= piece_bytes and offset + length <= SEGMENT_BYTES
            if not (in_one and os.pwrite(self._head_descriptor, data, offset) == length):
                self._flusher.head.write(offset, data, piece_bytes)
        except OSError as error:
            raise from_os_error(error, f"writing to volume {self.durability.record.id}") from error
        if failpoints.armed is not None:
            hit(Failpoint.WRITE_DATA)

    def _redirect(
        self, offset: int, data: memoryview, prefix: memoryview, suffix: memoryview
    ) -> None:
        """Write whole blocks into the head and let the map point there. The leaves are loaded."""
        start = offset - len(prefix)
        first = start >> BLOCK_SHIFT
        end = (offset + len(data) + len(suffix)) >> BLOCK_SHIFT
        zeros = zero_blocks(offset, data, prefix, suffix)
        if old_zeros := [block for block in zeros if self._is_in_head(block)]:
            self.foretell_zeros(old_zeros)
        if len(prefix):
            self._write_head(start, prefix)
            hit(Failpoint.WRITE_EDGES)
        self._write_head(offset, data, self._piece_bytes)
        if len(suffix):
            self._write_head(offset + len(data), suffix)
        if self._puncher.pending:
            self._puncher.pending.remove(first, end)
        self.map.assign(first, end, self._head_slot, self._tail.sequence)
        self._tail.stage(Kind.REDIRECT, first, end - first)
        if zeros:
            self._tail.stage_zeros(zeros)

    def _is_in_head(self, block: int) -> bool:
        """Return whether the head has a block, whose leaf is loaded."""
        leaf = self.map.find(block >> LEAF_SHIFT)
        return leaf is not None and leaf[block & LEAF_MASK] == self._head_slot

    def _edge_lengths(self, offset: int, end: int) -> tuple[int, int]:
        """Bytes of the first block before `offset` and of the last block after `end`."""
        return offset & BLOCK_MASK, -end & BLOCK_MASK

    def try_edges(self, offset: int, end: int) -> tuple[memoryview, memoryview] | None:
        """Return what the first and last block hold outside a write, or None if that must wait."""
        before, after = self._edge_lengths(offset, end)
        prefix, suffix = memoryview(bytearray(before)), memoryview(bytearray(after))
        if before and not self.try_read(offset - before, prefix):
            return None
        if after and not self.try_read(end, suffix):
            return None
        return prefix, suffix

    async def edges(self, offset: int, end: int) -> tuple[memoryview, memoryview]:
        """Return what `try_edges` does, waiting if need be. Raises BockdError."""
        before, after = self._edge_lengths(offset, end)
        prefix, suffix = memoryview(bytearray(before)), memoryview(bytearray(after))
        if before:
            await self.read(offset - before, prefix)
        if after:
            await self.read(end, suffix)
        return prefix, suffix

    # -- zero and trim -----------------------------------------------------------------------

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """See BlockDevice.zero."""
        end = offset + length
        first_whole, end_whole = -(-offset // BLOCK_SIZE), end // BLOCK_SIZE
        if first_whole >= end_whole or (allocate and length < MIN_ALLOCATED_BYTES):
            await self._write_zeros(offset, end)
            return
        await self._write_zeros(offset, first_whole << BLOCK_SHIFT)
        await self._write_zeros(end_whole << BLOCK_SHIFT, end)
        if allocate:
            await self._allocator.allocate(first_whole, end_whole)
        else:
            await self._make_holes(first_whole, end_whole)

    async def trim(self, offset: int, length: int) -> None:
        """See BlockDevice.trim."""
        # For less than a block nothing is done, but a failed volume acknowledges nothing.
        self._failure.check_usable()
        first_whole, end_whole = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if first_whole < end_whole:
            await self._make_holes(first_whole, end_whole)

    async def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            piece = _ZEROS[: min(end - offset, PIECE_BYTES)]
            await self._write_piece(offset, piece)
            offset += len(piece)

    def try_trim(self, offset: int, length: int) -> bool:
        """See BlockDevice.try_trim."""
        self._failure.check_usable()
        first, end = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if first >= end:
            return True
        if end - first > HOLE_PIECE_BLOCKS or self.gate.closed:
            return False
        if self.locks.held and self.locks.busy(first, end):
            return False
        plan = self._plan_holes(first, end)
        if self._must_look(plan) or not self._room.has_room():
            return False
        self._hole_out(plan, ())
        return True

    async def _make_holes(self, first: int, end: int) -> None:
        while first < end:
            stop = min(end, (first // HOLE_PIECE_BLOCKS + 1) * HOLE_PIECE_BLOCKS)
            await self._make_holes_piece(first, stop)
            if stop < end:
                await blocking(_do_nothing)  # others have their turn
            first = stop

    async def _make_holes_piece(self, first: int, end: int) -> None:
        # What makes room may use what is kept in reserve for a full disk.
        await self._enter(reserve=True)
        try:
            held = await self.locks.acquire(first, end)
            try:
                plan = self._plan_holes(first, end)
                unread = await self._look(plan) if self._must_look(plan) else ()
                self._hole_out(plan, unread)
                self.commit()
                hit(Failpoint.TRIM_COMMITTED)
            finally:
                self.locks.release(held)
        finally:
            self.gate.leave()

    def _plan_holes(self, first: int, end: int) -> HolePlan:
        return plan_holes(first, end, self._size_bytes >> BLOCK_SHIFT)

    def _must_look(self, plan: HolePlan) -> bool:
        """Return whether the index must be read before these blocks can become holes."""
        return (
            lacks(self.map, plan)
            or self._store.index.may_miss(LEAVES)
            or (self._packed is not None and self._packed.must_look(plan.groups))
        )

    async def _look(self, plan: HolePlan) -> Collection[range]:
        """Load the leaves that `_hole_out` needs. Return the head's cells of blocks that need not
        be in memory, if it has any. Raises DamagedError where the index may have lost a leaf that
        is not within these blocks: no checkpoint could remove it."""
        if self._store.index.may_miss(LEAVES):
            try:
                await self.loader.present(plan.first >> LEAF_SHIFT, -(-plan.end >> LEAF_SHIFT))
            except DamagedError:
                await self.loader.lose(plan.first, plan.end)
        if self._packed is None:
            await self.loader.load_leaves(plan.leaves_beside())
            return ()
        return await self._packed.look(plan)

    def _hole_out(self, plan: HolePlan, unread: Collection[range]) -> None:
        """Make blocks holes, and stage that. What is needed of the map is in memory, but for
        `unread` cells, and the journal has room."""
        made = make_holes(self.map, plan, self._head_slot, self._tail.sequence)
        if made is None:
            return
        self._tail.stage(Kind.HOLE, made.first, made.end - made.first)
        if self._packed is not None:
            self._packed.empty((*made.cells, *unread))
        elif made.of_head:
            # The whole of it is holes now, so punching between the head's blocks harms nobody.
            self._puncher.pending.add(made.first, made.end)
            self.heads.start_punching()
        self._made_holes = True
        hit(Failpoint.TRIM_REMAPPED)

    # -- flush -------------------------------------------------------------------------------

    def flush(self) -> Steps[None]:
        """See BlockDevice.flush."""
        return self._flusher.flush()


def _do_nothing() -> None:
    """In a thread."""
