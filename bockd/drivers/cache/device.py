"""A volume or snapshot behind a cache: the volume contract over another device.

Writes go through: they are answered when the device below has, so its promises are kept as they
are, and a flush is the flush below. Nothing is done at once but reading what is cached; the fast
lane finds that by itself.

It is for devices that answer nothing at once: their `try_*` forms are not asked.

What of the file is valid depends on nobody else having the volume. So the driver says until when
it has: `held` is asked before each call of the lane and each read, and where it says no, everything
is a miss (which then fails, if the volume was taken). A driver that finds a volume lost calls
`lose`; so does a request that fails with VolumeTakenError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bockd.drivers.cache.blocks import CachedBlocks
from bockd.drivers.cache.cachefile import FILE_CALL
from bockd.drivers.cache.hits import BLOCK_SHIFT, touched
from bockd.errors import DeviceError, VolumeTakenError
from bockd.model import BLOCK_SIZE, KIB, Extent
from bockd.pool.device import BlockDevice, FastView, FilePart, PartSizes, SharedDevice
from bockd.runtime.steps import Blocking, Signal


def always() -> bool:
    """Say that a device is held: for what never changes."""
    return True


def _never() -> bool:
    return False


class CachedDevice:
    """A `BlockDevice` and `FastDevice`."""

    part_sizes = PartSizes(64 * KIB, 16 * KIB)
    """Of no meaning: nothing may be written into the file from outside."""

    def __init__(
        self, below: BlockDevice, blocks: CachedBlocks, held: Callable[[], bool] = always
    ) -> None:
        """`held` says whether nobody else can have changed the device by now."""
        assert below.size_bytes % BLOCK_SIZE == 0
        self.below = below
        self.blocks = blocks
        self._held = held
        self._retired = False

    @property
    def size_bytes(self) -> int:
        return self.below.size_bytes

    @property
    def read_only(self) -> bool:
        return self.below.read_only

    def lose(self) -> None:
        """Use nothing of the cache any more: somebody else has the device, or may have it. After
        `retire` that is no news."""
        if not self._retired:
            self.blocks.turn_off("it was taken by another one")

    def retire(self) -> None:
        """Show no hits any more: the device below is about to be given back. What is cached may be
        kept."""
        self._retired = True
        self._held = _never

    def follow_size(self) -> None:
        """Take notice that the device below has become larger."""
        self.blocks.grow(self.below.size_bytes)

    # What the fast lane asks.

    def fast_view(self) -> FastView:
        """See FastDevice.fast_view."""
        return self.blocks.view if self._held() else self.blocks.blind_view

    async def read_files(
        self, parts: Sequence[FilePart], into: memoryview, read: Blocking[None]
    ) -> None:
        """See FastDevice.read_files."""
        read.kind = FILE_CALL
        try:
            await self.blocks.read_file(read)
        except OSError as error:
            self.blocks.turn_off(f"reading its file: {error}")
            raise DeviceError(f"reading the cache of {self.blocks.name}: {error}") from error

    # The immediate forms.

    def try_read(self, offset: int, into: memoryview) -> bool:
        return self._held() and self.blocks.try_read(offset, into)

    def try_write(self, offset: int, data: memoryview) -> bool:
        return False

    def try_trim(self, offset: int, length: int) -> bool:
        return False

    def commit(self) -> None:
        self.below.commit()

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        return self.below.try_extents(offset, length, limit)

    # The forms that wait.

    async def read(self, offset: int, into: memoryview) -> None:
        if self._held() and (
            await self.blocks.read(offset, into) or await self._share(offset, into)
        ):
            return
        first, end = touched(offset, len(into))
        whole = (end - first) << BLOCK_SHIFT
        read = self.blocks.begin_read(first, end)
        try:
            with self._noticing():
                if whole == len(into):
                    await self.below.read(offset, into)
                    data = bytes(into)
                else:  # whole blocks, so that the next read of one is a hit
                    buffer = bytearray(whole)
                    await self.below.read(first << BLOCK_SHIFT, memoryview(buffer))
                    data = bytes(buffer)
                    start = offset - (first << BLOCK_SHIFT)
                    into[:] = buffer[start : start + len(into)]
        except BaseException:
            self.blocks.give_up(read)
            raise
        self.blocks.fill(read, first, data)

    async def _share(self, offset: int, into: memoryview) -> bool:
        """Fill `into` with what another operation brings, or has brought a moment ago. False if
        there is none, or it has failed."""
        other = self.blocks.covering(offset, len(into))
        if other is None:
            return False
        if not other.answered.fired:
            await other.answered
        if other.data is None:
            return await self.blocks.read(offset, into)
        start = offset - (other.data_first << BLOCK_SHIFT)
        into[:] = other.data[start : start + len(into)]
        return True

    async def write(self, offset: int, data: memoryview) -> None:
        with self.blocks.changing(offset, len(data)) as change:
            with self._noticing():
                await self.below.write(offset, data)
            first = -(-offset >> BLOCK_SHIFT)
            start = (first << BLOCK_SHIFT) - offset
            count = (offset + len(data) >> BLOCK_SHIFT) - first
            if count > 0:
                whole = data[start : start + (count << BLOCK_SHIFT)]
                self.blocks.fill(change, first, bytes(whole))

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        with self.blocks.changing(offset, length), self._noticing():
            await self.below.zero(offset, length, allocate=allocate)

    async def trim(self, offset: int, length: int) -> None:
        with self.blocks.changing(offset, length), self._noticing():
            await self.below.trim(offset, length)

    async def flush(self) -> None:
        with self._noticing():
            await self.below.flush()

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        return await self.below.extents(offset, length, limit)

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(offset, length)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except VolumeTakenError:
            self.lose()
            raise


class SharedCachedDevice(CachedDevice):
    """A `SharedDevice`: one over a device that another gateway may take."""

    def __init__(
        self, below: BlockDevice, blocks: CachedBlocks, held: Callable[[], bool], lost: Signal
    ) -> None:
        """`lost` is the other one's."""
        super().__init__(below, blocks, held)
        self.lost = lost


def cached(below: BlockDevice, blocks: CachedBlocks, held: Callable[[], bool]) -> CachedDevice:
    """Return a device over another one, which can be lost if that one can."""
    if isinstance(below, SharedDevice):
        return SharedCachedDevice(below, blocks, held, below.lost)
    return CachedDevice(below, blocks, held)
