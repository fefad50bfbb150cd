"""How pyfuse3's tasks wait for the kernel: who serves, and who gets a turn meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.fuse import prompt
from bockd.fuse.prompt import PromptTrio

from .descriptor import opened
from .memory_nodes import MemoryNodes, mounted

REQUESTS = 20


@pytest.fixture
def kernel() -> Iterator[tuple[int, int]]:
    """What is read from, and what is written to for a request to be there. None is taken out."""
    ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def readable(kernel: tuple[int, int]) -> int:
    """A descriptor that always has a request."""
    ours, theirs = kernel
    os.write(theirs, b"x")
    return ours


class Tasks:
    """Tasks that take requests from one descriptor, each `count` of them, as pyfuse3's do."""

    def __init__(self, descriptor: int) -> None:
        self._trio = PromptTrio()
        self._lock = self._trio.Lock()
        self._descriptor = descriptor
        self.served: list[str] = []
        self.on_disk: dict[str, trio.Event] = {}

    async def serve(self, name: str, count: int) -> None:
        for _ in range(count):
            async with self._lock:
                await self._trio.lowlevel.wait_readable(self._descriptor)
            self.served.append(name)
            if name in self.on_disk:
                await self.on_disk[name].wait()


def test_requests_that_are_there_take_one_turn(
    readable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "TURN_NS", 10**12)

    async def main() -> list[str]:
        tasks = Tasks(readable)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.serve, "a", REQUESTS)
            nursery.start_soon(tasks.serve, "b", REQUESTS)
        return tasks.served

    served = trio.run(main)
    first = served[0]
    assert served[:REQUESTS] == [first] * REQUESTS
    assert len(served) == 2 * REQUESTS


def test_others_run_when_a_turn_is_over(readable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "TURN_NS", -1)

    async def main() -> int:
        tasks, seen = Tasks(readable), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.serve, "a", REQUESTS)
            nursery.start_soon(tasks.serve, "b", REQUESTS)
            while len(tasks.served) < 2 * REQUESTS:
                await trio.lowlevel.checkpoint()
                seen += 1
        return seen

    assert trio.run(main) >= REQUESTS


def test_a_turn_ends_when_something_comes_for_the_loop(
    readable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NBD does not wait for all requests of the kernel's."""
    monkeypatch.setattr(prompt, "TURN_NS", 10**12)

    async def main() -> int:
        tasks = Tasks(readable)
        ours, theirs = os.pipe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, ours)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(tasks.serve, "a", 10 * REQUESTS)
            nursery.start_soon(tasks.serve, "b", 10 * REQUESTS)
            os.write(theirs, b"x")
            await trio.lowlevel.wait_readable(again := os.dup(ours))
            served = len(tasks.served)
        for descriptor in (ours, theirs, again):
            os.close(descriptor)
        return served

    assert trio.run(main) < REQUESTS


def test_another_task_takes_over_from_one_that_waits(readable: int) -> None:
    async def main() -> list[str]:
        tasks = Tasks(readable)
        tasks.on_disk["a"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.serve, "a", 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(tasks.serve, "b", REQUESTS)
            await trio.testing.wait_all_tasks_blocked()
            assert tasks.served == ["a"] + ["b"] * REQUESTS
            tasks.on_disk["a"].set()
        return tasks.served

    assert len(trio.run(main)) == 1 + REQUESTS


def test_a_waiting_task_is_told_while_the_other_is_on_the_disk(kernel: tuple[int, int]) -> None:
    """Both wait before the first request comes: the second serves while the first cannot."""

    async def main() -> None:
        tasks = Tasks(kernel[0])
        tasks.on_disk = {"a": trio.Event(), "b": trio.Event()}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.serve, "a", 1)
            nursery.start_soon(tasks.serve, "b", 1)
            await trio.testing.wait_all_tasks_blocked()
            assert not tasks.served
            os.write(kernel[1], b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(tasks.served) == ["a", "b"]
            for disk in tasks.on_disk.values():
                disk.set()

    trio.run(main)


def test_cancelling_frees_the_lock(kernel: tuple[int, int]) -> None:
    async def main() -> list[str]:
        tasks = Tasks(kernel[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.serve, "a", 1)
            nursery.start_soon(tasks.serve, "b", 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        os.write(kernel[1], b"x")
        await tasks.serve("c", 1)
        return tasks.served

    assert trio.run(main) == ["c"]


def test_pyfuse3_waits_this_way(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should this fail, pyfuse3 has another way now, or another name for trio."""
    made: list[PromptTrio] = []

    class Noted(PromptTrio):
        def Lock(self) -> prompt._Lock:  # noqa: N802 - trio's name
            made.append(self)
            return super().Lock()

    monkeypatch.setattr(prompt, "PromptTrio", Noted)
    with mounted(MemoryNodes({"disk": MemoryDevice(1 << 20)}), mount):
        with opened(mount / "volumes" / "disk") as file:
            assert len(os.pread(file, 4096, 0)) == 4096
        assert vars(pyfuse3)["trio"] is made[0]
    assert len(made) == 1
    assert vars(pyfuse3)["trio"] is trio
