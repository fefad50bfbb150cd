"""The clients of a volume in a world: what they ask for, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bockd.errors import BockdError, UnavailableError, VolumeTakenError
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Steps

from .below import FailedError
from .oracle import SECTOR, Given, ViolationError

if TYPE_CHECKING:
    from .world import World

PLACES = (0, 1, 2, 5, 40)
"""Blocks at which requests begin: few, that they meet."""

_REACH = 4


class Clients:
    """Of one volume."""

    REQUESTS = ("read", "read", "write", "write", "write", "write", "trim", "zero", "flush", "fua")

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._reach = self._chance.choice((1, 2, _REACH))
        self._places = self._chance.choice((PLACES, PLACES[:1], PLACES[:3]))
        self._whole = self._chance.choice((0.5, 1.0))
        """How many requests are about whole blocks."""
        self._flushing = self._chance.choice((0.05, 0.2, 0.5))
        self._values = 0

    def range(self) -> tuple[int, int]:
        """Choose what a request is about, its offset and length."""
        first = self._chance.choice(self._places) * BLOCK_SIZE
        if self._chance.random() < self._whole:
            return first, self._chance.randint(1, self._reach) * BLOCK_SIZE
        start = first + SECTOR * self._chance.randrange(8)
        return start, SECTOR * self._chance.randint(1, 8 * self._reach)

    def value(self, length: int) -> bytes:
        """Return data that nothing else has; some of it zeros."""
        self._values += 1
        data = self._values.to_bytes(4, "big") * (length // 4)
        if self._chance.random() < 0.1:
            data = data[: length // 2] + bytes(length - length // 2)
        return data

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Take an error for an answer, where one may be."""
        device = self._world.device
        try:
            yield
        except BockdError as error:
            self._world.judge_error(device, error)

    def begin_any(self) -> None:
        """Begin a request of any kind."""
        request = self._chance.choice(self.REQUESTS)
        self.begin("flush" if self._chance.random() < self._flushing else request)

    def begin(self, kind: str) -> None:
        """Begin a request of a kind."""
        getattr(self, kind)()

    def read(self) -> None:
        self._world.start(self._read(*self.range()))

    def read_all(self) -> None:
        """Read all that there is."""
        self._world.start(self._read(0, self._world.oracle.size_bytes))

    async def _read(self, offset: int, length: int) -> None:
        world, into = self._world, memoryview(bytearray(length))
        began, device = world.tick(), world.device
        try:
            if not device.try_read(offset, into):
                await device.read(offset, into)
        except (FailedError, UnavailableError, VolumeTakenError) as error:
            world.judge_error(device, error)
            return
        ended = world.tick()
        if wrong := world.oracle.misread(bytes(into), offset, began, ended):
            raise ViolationError(f"sectors {wrong} read from {began} to {ended}")

    def write(self) -> None:
        offset, length = self.range()
        self._world.start(self._write(offset, self.value(length)))

    async def _write(self, offset: int, data: bytes) -> None:
        world, mutable = self._world, bytearray(data)
        given = world.oracle.begin(offset, data, world.tick())
        device = world.device
        try:
            if self._chance.random() < 0.5 and device.try_write(offset, memoryview(mutable)):
                device.commit()
            else:
                await device.write(offset, memoryview(mutable))
        except BockdError as error:
            world.judge_error(device, error)
            return
        finally:
            mutable[:] = b"!" * len(mutable)  # whoever keeps it must have a copy
        self._answered(given)

    def _answered(self, given: list[Given]) -> None:
        now = self._world.tick()
        for one in given:
            one.end = now

    def zero(self) -> None:
        offset, length = self.range()
        self._world.start(self._zeros(offset, length, lambda: self._zero(offset, length)))

    async def _zero(self, offset: int, length: int) -> None:
        await self._world.device.zero(offset, length, allocate=self._chance.random() < 0.5)

    def trim(self) -> None:
        offset, length = self.range()
        first = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
        whole = (offset + length) // BLOCK_SIZE * BLOCK_SIZE - first
        self._world.start(self._zeros(first, max(whole, 0), lambda: self._trim(offset, length)))

    async def _trim(self, offset: int, length: int) -> None:
        device = self._world.device
        if not (self._chance.random() < 0.5 and device.try_trim(offset, length)):
            await device.trim(offset, length)

    async def _zeros(self, offset: int, length: int, change: Callable[[], Steps[None]]) -> None:
        given = self._world.oracle.begin(offset, bytes(length), self._world.tick())
        with self._judging():
            await change()
            self._answered(given)

    def flush(self) -> None:
        self._world.start(self._flush())

    async def _flush(self) -> None:
        began = self._world.tick()
        with self._judging():
            await self._world.device.flush()
            self._world.oracle.flushed(began, self._world.tick())

    def fua(self) -> None:
        """Write, and be told when that is durable."""
        offset, length = self.range()
        self._world.start(self._fua(offset, self.value(length)))

    async def _fua(self, offset: int, data: bytes) -> None:
        given = self._world.oracle.begin(offset, data, self._world.tick())
        device = self._world.device
        with self._judging():
            await device.write(offset, memoryview(bytearray(data)))
            began = self._world.tick()
            await device.flush()
            self._answered(given)
            self._world.oracle.flushed(began, self._world.tick())
