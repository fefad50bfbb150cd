"""The cached blocks of one volume or snapshot: hits, how blocks become hits, and how they go.

Rules, in the order in which a block passes through them (`operations.py` has the proof of the
first two):

* A block becomes a hit only with the data of a read or write of all of it that has ended well and
  is not stale.
* A change makes its blocks misses before it is sent below, and while it is under way nothing makes
  them hits again. So a read of them goes below, and finds there what the change has left.
* One call at a time changes the file: fills, in the order in which they were answered, and
  punches. So what a fill writes is never written over by an older one.
* A leaf is evicted as if it were changed: its map is cleared first, so that nobody begins to read
  it, and what fills it is stale. Then the reads of the file that have begun are waited for. Then
  it is punched. The fast lane reads the file without asking, but only on the owner thread, within
  one call (`FastView`): no such call spans the clearing of the map, and what the lane leaves for a
  thread to read is among the reads that are waited for. So no punched block is read.
* What fails of the file turns the cache off, until the device is opened again: all blocks are
  misses, the file is removed. A write below that fails leaves its blocks misses.

What is in the file is trusted, as is the head of a local volume: blocks have no checksums here,
because the lane would not look at them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from bockd.drivers.cache.blockmap import (
    HOLE_SLOT,
    LEAF_BLOCKS,
    LEAF_BYTES,
    LEAF_MASK,
    LEAF_SHIFT,
    MISS_SLOT,
    BlockMap,
)
from bockd.drivers.cache.cachefile import MAX_FILE_BYTES, CacheFile, file_call
from bockd.drivers.cache.hits import BLOCK_SHIFT, Miss, fill_zeros, pieces_of, touched
from bockd.drivers.cache.mapfile import Kept, write_map
from bockd.drivers.cache.operations import Operation, Operations
from bockd.drivers.cache.space import Space
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.device import FastView, OpenLayer
from bockd.runtime.steps import Blocking, Signal, Spawn, blocking_apart, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)

FILL_BYTES = 4 * MIB
"""How much one call of a thread writes, about."""

QUEUED_BYTES = 32 * MIB
"""Of data that waits to be written, for each device. Beyond that nothing more is cached: the local
disk is slower than what is below."""


class CachedBlocks:
    """For the owner thread."""

    def __init__(
        self,
        name: str,
        path: Path,
        file: CacheFile,
        blockmap: BlockMap,
        space_bytes: int,
        space: Space,
        spawn: Spawn,
    ) -> None:
        """Take over an open file at `path`, what its map says, and what of the space was counted
        for it; `name` is for the log."""
        self.name = name
        self.path = path
        self.file = file
        self.map = blockmap
        self.off = False
        """Everything is a miss, for ever."""
        self._space = space
        self._spawn = spawn
        self._leaves = blockmap.leaves
        self._operations = Operations()
        self._reads: set[Signal] = set()
        self._turn = Mutex()
        """Of calls that change the file."""
        self._queue: deque[Operation] = deque()
        self._queued_bytes = 0
        self._filling = False
        self._dirty = False
        self._syncing: Signal | None = None
        self._closing = False
        self._ended = False
        """The file is closed, or about to be."""
        self.counted_bytes = space_bytes
        """What of `Space.used_bytes` is this file's."""
        slots: list[OpenLayer | None] = [None, file, Miss()]
        self.view = FastView(self._leaves, {}, slots, -1, None, MAX_FILE_BYTES, False, None, [])
        self.blind_view = self.view._replace(leaves={})
        """In which nothing is a hit."""
        for number in blockmap.numbers():
            space.enter_cool(self, number)

    # -- hits --------------------------------------------------------------------------------

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from the cache if all of it is there and in memory."""
        block = offset >> BLOCK_SHIFT
        leaf = self._leaves.get(block >> LEAF_SHIFT)
        if leaf is not None and leaf[block & LEAF_MASK] == MISS_SLOT:
            return False
        runs = self._runs(offset, len(into))
        if runs is None:
            return False
        try:
            for position, part, slot in pieces_of(runs, offset, into):
                if slot == HOLE_SLOT:
                    fill_zeros(part)
                elif not self.file.try_read(position, part):
                    return False
        except OSError as error:
            self.turn_off(f"reading its file: {error}")
            return False
        return True

    async def read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from the cache, waiting for the disk if need be. False if not all of it is a
        hit, or cannot be read."""
        runs = self._runs(offset, len(into))
        if runs is None:
            return False
        pieces: list[tuple[int, memoryview]] = []
        for position, part, slot in pieces_of(runs, offset, into):
            if slot == HOLE_SLOT:
                fill_zeros(part)
            else:
                pieces.append((position, part))
        if pieces:
            try:
                await self.read_file(file_call(self.file.read, pieces))
            except OSError as error:
                self.turn_off(f"reading its file: {error}")
                return False
        return True

    async def read_file(self, read: Blocking[None]) -> None:
        """Make a call in a thread that reads hits from the file: they stay there meanwhile. Begun
        before anything else happens to them. Raises what it raises."""
        finished = Signal()
        self._reads.add(finished)
        try:
            await read
        finally:
            self._reads.remove(finished)
            finished.fire()

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, int]] | None:
        if self.off:
            return None
        first, end = touched(offset, length)
        runs = self.map.runs(first, end)
        if runs is not None:
            for number in range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1):
                if self.map.is_cool(number):
                    self.map.warm(number)
                    self._space.use(self, number)
        return runs

    # -- operations of the device ------------------------------------------------------------

    def covering(self, offset: int, length: int) -> Operation | None:
        """See Operations.covering."""
        return None if self.off else self._operations.covering(*touched(offset, length))

    def begin_read(self, first: int, end: int) -> Operation:
        """Open a read of blocks that is about to be sent below; `fill` or `give_up` ends it."""
        self._space.missed_reads += 1
        self._space.missed_bytes += (end - first) << BLOCK_SHIFT
        return self._operations.read(first, end)

    @contextmanager
    def changing(self, offset: int, length: int) -> Iterator[Operation]:
        """Open a change that is about to be sent below. It is over at the end of the block, unless
        `fill` has ended it."""
        first, end = touched(offset, length)
        change = self._operations.change(first, end)
        self.map.clear(first, end)
        try:
            yield change
        except Exception:
            self._operations.close(change)
            raise
        # What ends it otherwise, before the device below has, says nothing of when that will: then
        # it stays open.
        if change.changing:
            self._operations.close(change)

    def give_up(self, operation: Operation) -> None:
        """End an operation that fills nothing."""
        self._operations.close(operation)

    def fill(self, operation: Operation, first: int, data: bytes) -> None:
        """End an operation whose data is known, of whole blocks from `first` on. They become hits
        in a moment, unless that cannot be had."""
        self._operations.answer(operation, data, first)
        end = first + len(data) // BLOCK_SIZE
        if (
            operation.stale
            or self.off
            or self._closing
            or not data
            or end << BLOCK_SHIFT > MAX_FILE_BYTES
            or self._queued_bytes + len(data) > QUEUED_BYTES
            or self.map.runs(first, end) is not None
        ):
            self._operations.close(operation)
            return
        self._queue.append(operation)
        self._queued_bytes += len(data)
        if not self._filling:
            self._filling = True
            if not try_spawn(self._spawn, self._fill_all()):
                self._filling = False
                self._drop_queue()

    # -- filling -----------------------------------------------------------------------------

    async def _fill_all(self) -> None:
        try:
            while self._queue:
                async with self._turn:
                    await self._fill_some()
        finally:
            self._filling = False

    async def _fill_some(self) -> None:
        """Write some of what is queued, and make it hits. With the turn."""
        batch: list[tuple[Operation, bytes]] = []
        taken = size = 0
        while self._queue and size < FILL_BYTES:
            one, data = self._dequeue()
            first, end = one.data_first, one.data_first + len(data) // BLOCK_SIZE
            needed = self.map.unallocated(first, end) * BLOCK_SIZE
            if one.stale or self.off or self._closing or not self._space.take(needed):
                self._operations.close(one)
                continue
            batch.append((one, data))
            taken += needed
            size += len(data)
        if not batch:
            return
        self.counted_bytes += taken
        added = 0
        try:
            written = await file_call(
                self.file.fill, [(one.data_first, data) for one, data in batch]
            )
        except OSError as error:
            for one, _ in batch:
                self._operations.close(one)
            self.turn_off(f"writing its file: {error}")  # which gives back all that is counted
            return
        for (one, _), zeros in zip(batch, written, strict=True):
            added += self.map.note_written(one.data_first, zeros) * BLOCK_SIZE
            if not (one.stale or self.off):
                for number in self.map.add(one.data_first, zeros):
                    self._space.use(self, number)
            self._operations.close(one)
        self._uncount(taken - added)
        self._begin_sync()

    def _begin_sync(self) -> None:
        self._dirty = True
        if self._syncing is None and not self._is_gone():
            self._syncing = Signal()
            if not try_spawn(self._spawn, self._sync_all(self._syncing)):
                self._syncing = None

    async def _sync_all(self, finished: Signal) -> None:
        """Sync what was written until now, and then what was meanwhile: else nobody would hear of
        blocks that the kernel cannot write, drops, and then finds on the disk as they were."""
        try:
            while self._dirty and not (self._closing or self._is_gone()):
                self._dirty = False
                await blocking_apart("cache syncs", self.file.sync_data)
        except OSError as error:
            self.turn_off(f"syncing its file: {error}")
        finally:
            self._syncing = None
            finished.fire()

    def _dequeue(self) -> tuple[Operation, bytes]:
        one = self._queue.popleft()
        assert one.data is not None
        self._queued_bytes -= len(one.data)
        return one, one.data

    def _drop_queue(self) -> None:
        while self._queue:
            self._operations.close(self._dequeue()[0])

    def _uncount(self, count_bytes: int) -> None:
        self.counted_bytes -= count_bytes
        self._space.give_back(count_bytes)

    # -- eviction ----------------------------------------------------------------------------

    def cool(self, number: int) -> None:
        """See space.Holder."""
        self.map.cool(number)

    async def evict(self, numbers: list[int]) -> None:
        """Take leaves out of the cache and give their space back."""
        if self.off or self._closing:
            return
        changes: list[Operation] = []
        for number in numbers:
            first = number << LEAF_SHIFT
            changes.append(self._operations.change(first, first + LEAF_BLOCKS))
            self.map.drop(number)
        await self._drain_reads()
        async with self._turn:
            if not self._is_gone():
                await self._punch(numbers)
        for change in changes:
            self._operations.close(change)

    async def _punch(self, numbers: list[int]) -> None:
        ranges = [(number * LEAF_BYTES, LEAF_BYTES) for number in numbers]
        try:
            await file_call(self.file.punch, ranges)
        except (OSError, NotImplementedError) as error:
            self.turn_off(f"punching its file: {error}")
            return
        if not self.off:
            self._uncount(sum(map(self.map.punched, numbers)) * BLOCK_SIZE)

    async def _drain_reads(self) -> None:
        """Wait until every read of the file that has begun by now has ended."""
        for finished in list(self._reads):
            await finished

    # -- the end -----------------------------------------------------------------------------

    def _is_gone(self) -> bool:
        """Whether the file is closed, or about to be."""
        return self.off or self._ended

    def grow(self, size_bytes: int) -> None:
        """Follow the device, which has become larger, in the background."""
        try_spawn(self._spawn, self._grow(size_bytes))

    async def _grow(self, size_bytes: int) -> None:
        async with self._turn:
            if self._is_gone():
                return
            try:
                await file_call(self.file.grow, size_bytes)
            except OSError as error:
                self.turn_off(f"making its file longer: {error}")
            else:
                self.file.forget_windows()

    def drop(self) -> None:
        """Keep nothing: what this is a cache of is deleted. As `turn_off`, but for the warning."""
        if not self.off:
            self._end_using()

    def turn_off(self, reason: str) -> None:
        """Make everything a miss, for ever, and remove the file in the background."""
        if not self.off:
            log.warning("the cache of %s is off until it is opened again: %s", self.name, reason)
            self._end_using()

    def _end_using(self) -> None:
        self.off = True
        self._forget_leaves()
        try_spawn(self._spawn, self._discard_later())

    def _forget_leaves(self) -> None:
        for number in list(self.map.numbers()):
            self._space.leave(self, number)
        self.map.forget()

    async def _discard_later(self) -> None:
        await self._drain_reads()
        async with self._turn:
            await self._discard()

    async def _discard(self) -> None:
        """Remove the file. With the turn; no read of it is under way."""
        if self._ended:
            return
        self._ended = True
        self._drop_queue()
        if self._syncing is not None:
            await self._syncing
        await file_call(self._remove)
        self._uncount(self.counted_bytes)

    def _remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.file.close()

    async def close(self, map_path: Path, kept: Kept) -> Kept | None:
        """Close the file, and keep it with a map, which is as `kept` but for what is known here.
        Return that. None if it was removed instead. Nothing of the device may be under way."""
        self._closing = True
        await self._drain_reads()
        async with self._turn:
            self._drop_queue()
            if self._syncing is not None:
                await self._syncing
            if self._is_gone():
                await self._discard()
                return None
            self._ended = True
            kept = msgspec.structs.replace(kept, allocated_bytes=self.counted_bytes)
            try:
                found = await file_call(self._keep, map_path, kept)
            except OSError as error:
                log.warning("the cache of %s is not kept: %s", self.name, error)
                found = None
                self._ended = False
                self.off = True
                await self._discard()
        self._forget_leaves()
        return found

    def _keep(self, map_path: Path, kept: Kept) -> Kept:
        self.file.sync()
        hit(Failpoint.CACHE_SYNCED)
        kept = msgspec.structs.replace(kept, file=self.file.identity())
        write_map(map_path, kept, self.map.kept_leaves())
        self.file.close()
        return kept
