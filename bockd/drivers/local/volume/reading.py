"""Reading an open device: what volumes and snapshots have in common.

A read finds the layer of each block in the live map and fills the caller's buffer from there. When
map and data are in memory it is done on the spot; otherwise a thread does it, and the answer may be
older than a write that came later, but never older than one acknowledged before the read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.layer import OVERWRITE_PIECE_BYTES, SEGMENT_BYTES, Layer
from bockd.drivers.local.format.leaf import LEAF_MASK, LEAF_SHIFT
from bockd.drivers.local.format.writepieces import SMALL_BYTES
from bockd.drivers.local.volume.extents import ExtentWalk
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.readahead import Range, ReadAhead, extents_of
from bockd.drivers.local.volume.runs import find_runs
from bockd.drivers.local.volume.verifying import ReadPiece, verify_reads
from bockd.errors import BockdError, DamagedBlockError, from_os_error
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE, MIB, Extent, LayerId
from bockd.pool.device import CACHE_AHEAD_BYTES, FastView, FilePart, PartSizes
from bockd.runtime.steps import Blocking, Signal, Spawn, blocking, try_spawn

BLOCK_SHIFT = 12
assert 1 << BLOCK_SHIFT == BLOCK_SIZE

CACHE_PIECE_BYTES = 64 * MIB
"""How much of that is done at once: who waits for the reads under way waits for this, too."""

_ZEROS = bytes(1 << 20)


class Reader:
    """The reading half of a device. Offsets and lengths are in bytes, checked by the frontend."""

    part_sizes = PartSizes(OVERWRITE_PIECE_BYTES, SMALL_BYTES)
    """What is not in the page cache gets folios no larger than the first; a part begins where a
    small folio does, so that what comes late is no second write to one."""

    def __init__(
        self, store: StoreAccess, loader: LeafLoader, size_bytes: int, spawn: Spawn
    ) -> None:
        self.loader = loader
        self.map = loader.cache
        self.layers = loader.layers
        self._store = store
        # What each request needs, without a way through others.
        self._leaves = loader.cache.leaves
        self._cells = loader.cache.cells
        self._slots = loader.layers.slots
        self._size_bytes = size_bytes
        self._spawn = spawn
        self._reads: set[Signal] = set()
        self._ending = False
        self._ahead = ReadAhead()
        self._marks = self._ahead.marks
        self.on_damage: Callable[[LayerId, int], None] = self.map.mark_damaged
        """Told what a read has found damaged: a layer and a block of it."""

    @property
    def size_bytes(self) -> int:
        """Size in bytes; a multiple of BLOCK_SIZE."""
        return self._size_bytes

    def try_read(self, offset: int, into: memoryview) -> bool:
        """See BlockDevice.try_read."""
        length = len(into)
        if self._marks:
            self._begin_ahead(self._ahead.touched(offset, offset + length))
        first = offset >> BLOCK_SHIFT
        last = (offset + length - 1) >> BLOCK_SHIFT
        if first != last or offset >= SEGMENT_BYTES:
            return self._try_read_many(offset, into, first, last + 1)
        number = first >> LEAF_SHIFT
        leaf = self._leaves.get(number) or self.map.find(number)
        if leaf is None:
            return False
        layer = self._slots[leaf[first & LEAF_MASK]]
        if layer is None:
            into[:] = _ZEROS[:length]
            return True
        position = offset
        if layer.packed:
            cell = self._cells[number][first & LEAF_MASK]
            position += (cell - first) << BLOCK_SHIFT
        descriptor = layer.first_descriptor
        if descriptor < 0:  # closed, or no layer but what stands for damaged blocks
            return layer.try_read(position, into)
        layer.used = True
        try:
            return os.preadv(descriptor, (into,), position, layer.nowait_flag) == length
        except BlockingIOError:
            return False
        except OSError as error:
            raise layer.failure(error, position) from error

    def fast_view(self) -> FastView:
        """See FastDevice.fast_view."""
        return FastView(
            self._leaves,
            self._cells,
            self._slots,
            -1,
            None,
            SEGMENT_BYTES,
            False,
            None,
            self._marks,
        )

    def _try_read_many(self, offset: int, into: memoryview, first: int, end: int) -> bool:
        if self.map.missing(first, end) is not None:
            return False
        for layer, position, _, piece in self._plan_read(offset, into, first, end):
            try:
                if not layer.try_read(position, piece):
                    return False
            except OSError as error:
                doing = f"reading layer {layer.id} at bytes {position} to {position + len(piece)}"
                raise from_os_error(error, doing) from error
        return True

    def _plan_read(self, offset: int, into: memoryview, first: int, end: int) -> list[ReadPiece]:
        """Fill holes with zeros and return what is to be read from which layer."""
        pieces: list[ReadPiece] = []
        stop = offset + len(into)
        for run_first, run_end, slot, cell in find_runs(self.map, first, end):
            start = max(offset, run_first << BLOCK_SHIFT)
            part = into[start - offset : min(stop, run_end << BLOCK_SHIFT) - offset]
            layer = self._slots[slot]
            if layer is None:
                _fill_zeros(part)
            else:
                position = start + ((cell - run_first) << BLOCK_SHIFT)
                pieces.append(ReadPiece(layer, position, start, part))
        return pieces

    async def read(self, offset: int, into: memoryview) -> None:
        """See BlockDevice.read."""
        first = offset >> BLOCK_SHIFT
        end = ((offset + len(into) - 1) >> BLOCK_SHIFT) + 1
        # Registered before the map is consulted: `drain_reads` must see every read that may
        # still use what the map said earlier.
        finished = Signal()
        self._reads.add(finished)
        try:
            missing = self.map.missing(first, end)
            await self.loader.load(first, end)
            # If it was the map that was missing, the data may be at hand.
            if missing is not None and self._try_read_many(offset, into, first, end):
                return
            pieces = self._plan_read(offset, into, first, end)
            if pieces:
                self._begin_ahead(self._ahead.missed(offset, offset + len(into)))
                await self._in_thread(
                    {piece.layer for piece in pieces},
                    [piece for piece in pieces if self._is_frozen(piece.layer)],
                    blocking(_read_pieces, pieces),
                )
        finally:
            self._reads.remove(finished)
            finished.fire()

    async def read_files(
        self, parts: Sequence[FilePart], into: memoryview, read: Blocking[None]
    ) -> None:
        """See FastDevice.read_files."""
        finished = Signal()
        self._reads.add(finished)
        try:
            layers = {
                slot: layer for slot in {part[0] for part in parts} if (layer := self._slots[slot])
            }
            for offset, end in extents_of(sorted([(part[1], part[1] + part[3]) for part in parts])):
                self._begin_ahead(self._ahead.missed(offset, end))
            frozen = [
                ReadPiece(layers[slot], position, offset, into[at : at + length])
                for slot, offset, position, length, at in parts
                if self._is_frozen(layers[slot])
            ]
            await self._in_thread(set(layers.values()), frozen, read)
        finally:
            self._reads.remove(finished)
            finished.fire()

    async def _in_thread(
        self, layers: set[Layer], frozen: list[ReadPiece], read: Blocking[None]
    ) -> None:
        """Make the call `read`, which reads from `layers`, in a thread, and verify what it has read
        from frozen ones. The read is among `_reads`."""
        _hold(layers)
        try:
            if frozen:
                await blocking(_read_and_verify, self._store.index, frozen, read.call)
            else:
                await read
        except DamagedBlockError as error:
            self.on_damage(LayerId(error.layer), error.block)
            raise
        finally:
            _let_go(layers)
            self._store.files.make_room()

    def _begin_ahead(self, ahead: Range | None) -> None:
        if ahead is None or self._ending:
            return
        try_spawn(self._spawn, self._read_ahead(*ahead))

    async def _read_ahead(self, offset: int, end: int) -> None:
        """Have the kernel read a range of the head. What is frozen is read when it is asked for,
        and verified before anybody is given it."""
        end = min(end, self._size_bytes)
        if not self._ending and offset < end:  # or else the device may be closed by now
            await self._prefetch(offset, end, lambda layer: not self._is_frozen(layer))

    async def _prefetch(self, offset: int, end: int, wanted: Callable[[Layer], bool]) -> None:
        """Have the kernel read a range, as far as it is in layers that are `wanted`."""
        finished = Signal()
        self._reads.add(finished)
        try:
            first, stop = offset >> BLOCK_SHIFT, ((end - 1) >> BLOCK_SHIFT) + 1
            await self.loader.load(first, stop)
            runs = [
                (layer, cell << BLOCK_SHIFT, (run_end - run_first) << BLOCK_SHIFT)
                for run_first, run_end, slot, cell in find_runs(self.map, first, stop)
                if (layer := self._slots[slot]) is not None and wanted(layer)
            ]
            if runs:
                await self._in_thread({run[0] for run in runs}, [], blocking(_prefetch, runs))
        except BockdError:
            pass  # whoever reads it meets it
        finally:
            self._reads.remove(finished)
            finished.fire()

    def _is_frozen(self, _layer: Layer) -> bool:
        """Whether a layer's blocks may have checksums."""
        return True

    async def end_reads(self) -> None:
        """Wait until every read is finished, and read nothing ahead any more: the device is about
        to be closed."""
        self._ending = True
        await self.drain_reads()

    async def drain_reads(self) -> None:
        """Wait until every read that has begun by now is finished."""
        for finished in list(self._reads):
            await finished

    async def cache(self, offset: int, length: int) -> None:
        """See BlockDevice.cache."""
        end = offset + min(length, CACHE_AHEAD_BYTES)
        for start in range(offset, end, CACHE_PIECE_BYTES):
            await self._prefetch(start, min(start + CACHE_PIECE_BYTES, end), lambda _: True)

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        """See BlockDevice.try_extents."""
        walk = ExtentWalk(self.map, offset, length, limit)
        return walk.extents if walk.go_on() is None else None

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        """See BlockDevice.extents."""
        walk = ExtentWalk(self.map, offset, length, limit)
        while (number := walk.go_on()) is not None:
            await self.loader.load_onward(number)
        return walk.extents


def _fill_zeros(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def _hold(layers: set[Layer]) -> None:
    """Keep layers from being closed while a thread reads from them."""
    for layer in layers:
        layer.used = True
        layer.readers += 1


def _let_go(layers: set[Layer]) -> None:
    for layer in layers:
        layer.readers -= 1


def _prefetch(runs: list[tuple[Layer, int, int]]) -> None:
    for layer, start, length in runs:
        with suppress(OSError):
            layer.prefetch(start, length)


def _read_pieces(pieces: list[ReadPiece]) -> None:
    in_cells = [piece for piece in pieces if piece.layer.packed]
    if len(in_cells) > 1:  # they may lie all over the file: the disk is to know all of them
        _prefetch([(piece.layer, piece.position, len(piece.data)) for piece in in_cells])
    for layer, position, _, data in pieces:
        layer.read(position, data)


def _read_and_verify(index: LmdbIndex, frozen: list[ReadPiece], read: Callable[[], None]) -> None:
    read()
    verify_reads(index, frozen)
