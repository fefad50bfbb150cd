"""A device below that takes its time, fails, and loses what was not flushed when power fails."""

from __future__ import annotations

import random

from bockd.drivers.memory.device import FailedError
from tests.drivers.cache.world import SlowDevice
from tests.drivers.local.schedule import History

SECTOR = History.SECTOR


class VolatileDevice(SlowDevice):
    """Carries requests out block by block, at moments of their own."""

    def __init__(self, size_bytes: int, chance: random.Random) -> None:
        super().__init__(size_bytes, chance)
        self._values: dict[int, list[bytes]] = {}
        """Of each sector that has changed: what it held at the last flush, and all since."""
        self._dropped: dict[int, int] = {}
        """How many of them are left out because a flush has covered what came later."""

    def _note(self, offset: int, length: int, before: bytes) -> None:
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
        for at, values in self._values.items():
            super()._write(at, memoryview(self.chance.choice(values)))
        self.settle()

    def settle(self) -> None:
        """Take what it holds for flushed."""
        self._values.clear()
        self._dropped.clear()


__all__ = ["FailedError", "VolatileDevice"]
