"""Whether clients can be served, as the daemon says it."""

from __future__ import annotations

import os
import threading

import pytest
import trio
import trio.testing

from bockd.daemon.metrics import health as health_module
from bockd.daemon.metrics.health import (
    ANSWER_SECONDS,
    FRESH_SECONDS,
    HELD_SECONDS,
    Health,
    Stage,
)
from bockd.drivers.memory.pool import MemoryPool
from bockd.drivers.rbd.space import ROOM_SECONDS
from bockd.errors import DeviceError
from tests.nbd.server.serving import in_trio


class Disk(MemoryPool):
    """A pool on a disk that may hang, fail or be read-only."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.flags = 0

    def room(self) -> os.statvfs_result:
        self.asked += 1
        assert self.answers.wait(240)
        if self.error is not None:
            raise self.error
        return os.statvfs_result((4096, 4096, 10, 5, 5, 0, 0, 0, self.flags, 255))


async def served(nursery: trio.Nursery, disk: Disk) -> Health:
    health = Health(disk, "the disk")
    health.stage = Stage.SERVING
    nursery.start_soon(health.run)
    return health


@in_trio
async def test_a_daemon_that_starts_or_stops_is_not_ready() -> None:
    health = Health(Disk(), "the disk")
    assert await health.trouble() == "the daemon is starting"
    health.stage = Stage.STOPPING
    assert await health.trouble() == "the daemon is stopping"


@in_trio
async def test_the_reason_is_told_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "FRESH_SECONDS", 0.0)
    disk = Disk()
    async with trio.open_nursery() as nursery:
        health = await served(nursery, disk)
        assert await health.trouble() is None
        assert health.room is not None
        assert health.room.f_bfree == 5
        disk.error = DeviceError("asking for the space of /pool: Input/output error")
        assert await health.trouble() == "asking for the space of /pool: Input/output error"
        assert health.room is None
        disk.error, disk.flags = None, os.ST_RDONLY
        assert await health.trouble() == "the disk is read-only: nothing can be written"
        disk.flags = 0
        assert await health.trouble() is None
        nursery.cancel_scope.cancel()


@in_trio
async def test_many_probes_of_one_moment_ask_once() -> None:
    disk = Disk()
    async with trio.open_nursery() as nursery:
        health = await served(nursery, disk)
        disk.answers.clear()
        async with trio.open_nursery() as probes:
            for _ in range(50):
                probes.start_soon(health.trouble)
            await trio.testing.wait_all_tasks_blocked(0.01)
            disk.answers.set()
        assert await health.trouble() is None
        assert disk.asked == 1
        nursery.cancel_scope.cancel()


def test_a_disk_that_hangs_is_told_of_in_time_and_holds_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "ANSWER_SECONDS", 0.05)
    disk = Disk()
    disk.answers.clear()
    expected = "the disk does not answer within 0.05 seconds"

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            health = await served(nursery, disk)
            for _ in range(5):
                assert await health.trouble() == expected
                assert health.room is None
            assert disk.asked == 1
            disk.answers.set()
            while await health.trouble() == expected:
                pass
            assert await health.trouble() is None
            nursery.cancel_scope.cancel()

    trio.run(main)


async def asked(disk: Disk, health: Health, nursery: trio.Nursery) -> None:
    """Have a disk asked that does not answer."""
    disk.answers.clear()
    nursery.start_soon(health.trouble)
    while not disk.asked:
        await trio.lowlevel.checkpoint()


@in_trio
async def test_the_end_waits_for_an_answer() -> None:
    """Whoever closes the pool then ends what a thread is using."""
    disk, ended = Disk(), trio.Event()

    async def daemon() -> None:
        async with trio.open_nursery() as frontends:
            await asked(disk, await served(frontends, disk), frontends)
            frontends.cancel_scope.cancel()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert disk.asked == 1
        assert not ended.is_set()
        disk.answers.set()


@in_trio
async def test_the_end_does_not_wait_for_a_dead_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "HELD_SECONDS", 0.05)
    disk = Disk()
    async with trio.open_nursery() as frontends:
        await asked(disk, await served(frontends, disk), frontends)
        frontends.cancel_scope.cancel()
    assert not disk.answers.is_set()
    disk.answers.set()


def test_the_limits() -> None:
    """Prometheus waits for ten seconds; the end waits for whatever a cluster is given."""
    assert (FRESH_SECONDS, ANSWER_SECONDS) == (1.0, 5.0)
    assert HELD_SECONDS > ROOM_SECONDS
