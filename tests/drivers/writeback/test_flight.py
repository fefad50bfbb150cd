"""What all writers of a directory have on its way below: it has a bound, and nobody starves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.memory.device import FailedError, MemoryDevice
from bockd.drivers.writeback import flight
from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.device import WriteBackDevice
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.model import KIB, MIB
from bockd.runtime.steps import Signal
from tests.drivers.local.schedule import GRAVEYARD, Scheduler, close_buried

from .opened import holding

VOLUMES = 4
SIZE_BYTES = 2 * MIB
PIECE = 64 * KIB
LIMIT_BYTES, SHARE_BYTES = 2 * MIB, 16 * KIB


class Below(MemoryDevice):
    """Counts what is on its way."""

    def __init__(self) -> None:
        super().__init__(SIZE_BYTES)
        self.bytes = 0
        self.sizes: list[int] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.bytes += len(data)
        self.sizes.append(len(data))
        try:
            await super().write(offset, data)
        finally:
            self.bytes -= len(data)


class Volumes:
    """Some volumes of a directory, each with all of its size dirty, as one epoch."""

    def __init__(self, path: Path) -> None:
        self.scheduler = Scheduler(random.Random(0))
        self._buried_before = len(GRAVEYARD)
        self.below = [Below() for _ in range(VOLUMES)]
        self.directory = WriteBackDirectory.open_directory(
            path, 64 * MIB, self.scheduler.spawn, LoggedPool("one", "a pool", lambda _: 0)
        )
        self.devices: list[WriteBackDevice] = []
        self.errors: list[Exception] = []
        self._open()

    def _open(self) -> None:
        async def commit(*_arguments: object) -> None:
            """Note nothing."""

        async def fill() -> None:
            for number, below in enumerate(self.below):
                one = await self.directory.open(below, f"v{number}", None, commit, commit, commit)
                self.devices.append(one)
                data = bytes([number + 1]) * PIECE
                for offset in range(0, SIZE_BYTES, PIECE):
                    await one.write(offset, memoryview(data))

        self.scheduler.start(fill(), lambda: None)
        self.settle()
        assert len(self.devices) == VOLUMES

    def settle(self) -> None:
        while ready := [t for t in self.scheduler.tasks if t.resume is not None or t.call]:
            self.scheduler.advance(self.scheduler.choose(ready))
        assert not self.scheduler.errors

    def drain(self) -> None:
        """Begin to write all back."""

        async def drain(one: WriteBackDevice) -> None:
            try:
                await one.drain()
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.errors.append(error)

        for one in self.devices:
            self.scheduler.spawn(drain(one))
        self.settle()

    def is_below(self, number: int) -> bool:
        wanted = bytes([number + 1]) * SIZE_BYTES
        return holding(self.below[number], 0, SIZE_BYTES) == wanted

    def dispose(self) -> None:
        self.scheduler.die()
        close_buried(self._buried_before)


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volumes]:
    monkeypatch.setattr(flight, "MAX_BYTES", LIMIT_BYTES)
    monkeypatch.setattr(flight, "SHARE_BYTES", SHARE_BYTES)
    made = Volumes(tmp_path / "logs")
    yield made
    made.dispose()


def under_way(volumes: Volumes) -> int:
    return sum(one.bytes for one in volumes.below)


def hang(volumes: Volumes, numbers: range) -> Signal:
    """Have the devices below of some volumes hang."""
    gate = Signal()
    for number in numbers:
        volumes.below[number].gate = gate
    return gate


def go_on(volumes: Volumes, gate: Signal) -> None:
    for one in volumes.below:
        one.gate = None
    gate.fire()
    volumes.settle()


def test_what_is_under_way_of_all_volumes_has_a_bound(volumes: Volumes) -> None:
    gate = hang(volumes, range(VOLUMES))
    volumes.drain()
    assert LIMIT_BYTES // 2 < under_way(volumes) <= LIMIT_BYTES + VOLUMES * SHARE_BYTES
    assert all(one.bytes for one in volumes.below), "none waits for the others"
    go_on(volumes, gate)
    assert not volumes.errors
    assert all(map(volumes.is_below, range(VOLUMES)))
    assert volumes.directory.space.flight.bytes == 0


def test_a_volume_goes_on_while_others_hang(volumes: Volumes) -> None:
    gate = hang(volumes, range(VOLUMES - 1))
    volumes.drain()
    assert volumes.is_below(VOLUMES - 1)
    assert not any(map(volumes.is_below, range(VOLUMES - 1)))
    go_on(volumes, gate)
    assert all(map(volumes.is_below, range(VOLUMES)))


def test_a_volume_that_fails_or_is_closed_while_it_waits_keeps_no_room(volumes: Volumes) -> None:
    gate = hang(volumes, range(VOLUMES))
    volumes.drain()
    volumes.scheduler.spawn(volumes.devices[0].close())
    volumes.devices[1].lose()
    volumes.settle()
    volumes.below[2].failures["write"] = FailedError("the pool is full")
    go_on(volumes, gate)
    assert len(volumes.errors) == 3
    assert volumes.is_below(3)
    assert volumes.directory.space.flight.bytes == 0
    del volumes.below[2].failures["write"]
    volumes.drain()
    assert volumes.is_below(2)
