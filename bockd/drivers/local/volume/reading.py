"""Reading an open device: what volumes and snapshots have in common.

A read finds the layer of each block in the live map and fills the caller's buffer from there. When
map and data are in memory it is done on the spot; otherwise a thread does it, and the answer may be
older than a write that came later, but never older than one acknowledged before the read.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.layer import SEGMENT_BYTES, Layer
from bockd.drivers.local.format.leaf import LEAF_BYTES, LEAF_MASK, LEAF_SHIFT
from bockd.drivers.local.volume.extents import ExtentWalk
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.verifying import verify_read
from bockd.errors import BockdError, DamagedBlockError, from_os_error
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE, GIB, Extent, LayerId
from bockd.pool.device import FastView
from bockd.runtime.steps import Signal, blocking

BLOCK_SHIFT = 12
assert 1 << BLOCK_SHIFT == BLOCK_SIZE

CACHE_AHEAD_BYTES = 1 * GIB
"""How far one call of `cache` reads ahead: the page cache of a machine is not much larger, and a
hint that names a whole volume of 16 TiB must not bring 16 million leaves into memory."""

_ZEROS = bytes(1 << 20)

ReadPiece = tuple[Layer, int, memoryview]


class Reader:
    """The reading half of a device. Offsets and lengths are in bytes, checked by the frontend."""

    def __init__(self, store: StoreAccess, loader: LeafLoader, size_bytes: int) -> None:
        self.loader = loader
        self.map = loader.cache
        self.layers = loader.layers
        self._store = store
        # What each request needs, without a way through others.
        self._leaves = loader.cache.leaves
        self._slots = loader.layers.slots
        self._size_bytes = size_bytes
        self._reads: set[Signal] = set()
        self.on_damage: Callable[[LayerId, int], None] = self.map.mark_damaged
        """Told what a read has found damaged: a layer and a block of it."""

    @property
    def size_bytes(self) -> int:
        """Size in bytes; a multiple of BLOCK_SIZE."""
        return self._size_bytes

    def try_read(self, offset: int, into: memoryview) -> bool:
        """See BlockDevice.try_read."""
        length = len(into)
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
        descriptor = layer.near_descriptor
        if descriptor < 0:  # closed, or no layer but what stands for damaged blocks
            return layer.try_read(offset, into)
        layer.used = True
        try:
            return os.preadv(descriptor, (into,), offset, layer.nowait_flag) == length
        except BlockingIOError:
            return False
        except OSError as error:
            raise layer.failure(error, offset) from error

    def fast_view(self) -> FastView:
        """See FastDevice.fast_view."""
        return FastView(self._leaves, self._slots, -1, None, SEGMENT_BYTES)

    def _try_read_many(self, offset: int, into: memoryview, first: int, end: int) -> bool:
        if self.map.missing(first, end) is not None:
            return False
        for layer, position, piece in self._plan_read(offset, into, first, end):
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
        for run_first, run_end, slot in self.map.runs(first, end):
            start = max(offset, run_first << BLOCK_SHIFT)
            part = into[start - offset : min(stop, run_end << BLOCK_SHIFT) - offset]
            layer = self._slots[slot]
            if layer is None:
                _fill_zeros(part)
            else:
                pieces.append((layer, start, part))
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
            await self.loader.load(first, end)
            pieces = self._plan_read(offset, into, first, end)
            frozen = [piece for piece in pieces if self._is_frozen(piece[0])]
            if pieces:
                _hold(pieces)
                try:
                    await blocking(_read_pieces, self._store.index, pieces, frozen)
                except DamagedBlockError as error:
                    self.on_damage(LayerId(error.layer), error.block)
                    raise
                finally:
                    _let_go(pieces)
                    self._store.files.make_room()
        finally:
            self._reads.remove(finished)
            finished.fire()

    def _is_frozen(self, _layer: Layer) -> bool:
        """Whether a layer's blocks may have checksums."""
        return True

    async def drain_reads(self) -> None:
        """Wait until every read that has begun by now is finished."""
        for finished in list(self._reads):
            await finished

    async def cache(self, offset: int, length: int) -> None:
        """See BlockDevice.cache."""
        length = min(length, CACHE_AHEAD_BYTES)
        first, end = offset >> BLOCK_SHIFT, ((offset + length - 1) >> BLOCK_SHIFT) + 1
        try:
            await self.loader.load(first, end)
        except BockdError:
            return
        for run_first, run_end, slot in self.map.runs(first, end):
            layer = self._slots[slot]
            if layer is not None:
                layer.prefetch(run_first << BLOCK_SHIFT, (run_end - run_first) << BLOCK_SHIFT)

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        """See BlockDevice.try_extents."""
        walk = ExtentWalk(self.map, offset, length, limit)
        return walk.extents if walk.go_on() is None else None

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        """See BlockDevice.extents."""
        walk = ExtentWalk(self.map, offset, length, limit)
        while (number := walk.go_on()) is not None:
            await self.loader.load_onward(number, -(-self._size_bytes // LEAF_BYTES))
        return walk.extents


def _fill_zeros(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def _hold(pieces: list[ReadPiece]) -> None:
    """Keep layers from being closed while a thread reads from them."""
    for layer, _, _ in pieces:
        layer.used = True
        layer.readers += 1


def _let_go(pieces: list[ReadPiece]) -> None:
    for layer, _, _ in pieces:
        layer.readers -= 1


def _read_pieces(index: LmdbIndex, pieces: list[ReadPiece], frozen: list[ReadPiece]) -> None:
    for layer, position, piece in pieces:
        layer.read(position, piece)
    for layer, position, piece in frozen:
        verify_read(index, layer, position, piece)
