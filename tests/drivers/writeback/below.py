"""A device below that takes its time, fails, and loses what was not flushed when power fails."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from bockd.drivers.memory.device import FailedError
from bockd.model import Extent
from bockd.runtime.waiting import Pulse
from tests.drivers.cache.world import SlowDevice
from tests.drivers.local.schedule import History

from .oracle import ViolationError

SECTOR = History.SECTOR


class VolatileDevice(SlowDevice):
    """Carries requests out block by block, at moments of their own."""

    def __init__(self, size_bytes: int, chance: random.Random) -> None:
        super().__init__(size_bytes, chance)
        self._values: dict[int, list[bytes]] = {}
        """Of each sector that has changed: what it held at the last flush, and all since."""
        self.changes = 0
        self._dropped: dict[int, int] = {}
        """How many of them are left out because a flush has covered what came later."""

    def _note(self, offset: int, length: int, before: bytes) -> None:
        self.changes += 1
        first = offset // SECTOR * SECTOR
        now = self.now(offset, length)
        for at in range(first, offset + length, SECTOR):
            values = self._values.setdefault(at, [before[at - offset : at - offset + SECTOR]])
            values.append(now[at - offset : at - offset + SECTOR])

    def _write(self, offset: int, data: memoryview) -> None:
        before = self.now(offset, len(data))
        super()._write(offset, data)
        self._note(offset, len(data), before)

    def _trim(self, offset: int, length: int) -> None:
        before = self.now(offset, length)
        super()._trim(offset, length)
        self._note(offset, length, before)

    async def flush(self) -> None:
        covered = {
            at: self._dropped.get(at, 0) + len(values) - 1 for at, values in self._values.items()
        }
        await self._moments(0, 1, lambda _offset, _length: None)
        for at, reached in covered.items():
            count = reached - self._dropped.get(at, 0)
            if count > 0:  # others may have flushed meanwhile
                del self._values[at][:count]
                self._dropped[at] = reached

    def cut(self) -> None:
        """Lose some of what was not flushed."""
        self.changes += 1
        for at, values in self._values.items():
            super()._write(at, memoryview(self.chance.choice(values)))
        self.settle()

    def settle(self) -> None:
        """Take what it holds for flushed."""
        self._values.clear()
        self._dropped.clear()


class Image:
    """A `BlockDevice`: another one, as one opening of it has it."""

    read_only = False

    def __init__(self, device: VolatileDevice) -> None:
        self.size_bytes = device.size_bytes
        self.let_go = False
        """Switch: whoever had it says that nothing comes any more."""
        self._device = device
        self._under_way = 0
        self._ended = Pulse()

    @contextmanager
    def _request(self) -> Iterator[VolatileDevice]:
        if self.let_go:
            raise ViolationError("a request comes after the end")
        self._under_way += 1
        try:
            yield self._device
        finally:
            self._under_way -= 1
            self._ended.fire()

    async def close(self) -> None:
        """Wait until no request is under way."""
        self.let_go = True
        while self._under_way:
            await self._ended.wait()

    def try_read(self, offset: int, into: memoryview) -> bool:
        with self._request() as device:
            return device.try_read(offset, into)

    def try_write(self, offset: int, data: memoryview) -> bool:
        with self._request() as device:
            return device.try_write(offset, data)

    def try_trim(self, offset: int, length: int) -> bool:
        with self._request() as device:
            return device.try_trim(offset, length)

    def commit(self) -> None:
        with self._request() as device:
            device.commit()

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        with self._request() as device:
            return device.try_extents(offset, length, limit)

    async def read(self, offset: int, into: memoryview) -> None:
        with self._request() as device:
            await device.read(offset, into)

    async def write(self, offset: int, data: memoryview) -> None:
        with self._request() as device:
            await device.write(offset, data)

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        with self._request() as device:
            await device.zero(offset, length, allocate=allocate)

    async def trim(self, offset: int, length: int) -> None:
        with self._request() as device:
            await device.trim(offset, length)

    async def flush(self) -> None:
        with self._request() as device:
            await device.flush()

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        with self._request() as device:
            return await device.extents(offset, length, limit)

    async def cache(self, offset: int, length: int) -> None:
        with self._request() as device:
            await device.cache(offset, length)


__all__ = ["FailedError", "Image", "VolatileDevice"]
