"""How the tasks of pyfuse3 wait for requests: not at all while the kernel has some.

pyfuse3 takes requests in the tasks of `pyfuse3.main`: one waits for the kernel, with a lock held,
and serves what comes; another one waits for the lock, to take over when the first has to wait for a
disk. With trio's own lock and waiting, each request takes two turns of the event loop and three
system calls for nothing but that, and most are answered without waiting for anything. So the module
that pyfuse3 calls `trio` is exchanged, as `pyfuse3.asyncio` does it: here a task goes on while
there are requests, for at most `TURN_NS`, and until something comes for the event loop.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import pyfuse3
import trio

from bockd.fuse.limits import TURN_NS
from bockd.runtime.steprunner import running_loop


@contextmanager
def prompt_tasks() -> Iterator[None]:
    """Let the tasks of `pyfuse3.main` wait as this module says, for the duration."""
    pyfuse3.trio = PromptTrio()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]


class PromptTrio:
    """What pyfuse3 calls `trio`: the same but for `Lock` and `lowlevel.wait_readable`. It makes
    one lock, and waits for one descriptor."""

    def __init__(self) -> None:
        self._turn = _Turn()
        self.lowlevel = _LowLevel(self._turn)

    def Lock(self) -> _Lock:  # noqa: N802 - trio's name
        """Return the lock of whoever waits for the kernel."""
        return _Lock(self._turn)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


class _Turn:
    """Until when requests may be served without letting the rest of the daemon run."""

    def __init__(self) -> None:
        self.end_ns = 0

    def begin(self) -> None:
        self.end_ns = perf_counter_ns() + TURN_NS


class _Lock:
    """A lock that its last holder may take again before those that wait for it: they are told that
    it is free, and look when they run."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn
        self._held = False
        self._waiting = 0
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        # Where nobody waits pyfuse3 has just started a task, and would start one for each request
        # until that one runs.
        others_run = not self._waiting or perf_counter_ns() > self._turn.end_ns
        self._waiting += 1
        try:
            if others_run:
                await trio.lowlevel.checkpoint()
                self._turn.begin()
            while self._held:
                await self._lot.park()
        finally:
            self._waiting -= 1
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        self._lot.unpark()


class _LowLevel:
    """What pyfuse3 calls `trio.lowlevel`."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn
        self._poll = select.poll()
        self._descriptor = -1
        loop = running_loop()
        if loop is not None:
            self._poll.register(loop.descriptor, select.POLLIN)

    async def wait_readable(self, descriptor: int) -> None:
        """Return when the kernel has a request or has ended the connection: at once if it has, and
        nothing has come for the event loop."""
        if descriptor != self._descriptor:
            self._poll.register(descriptor, select.POLLIN)
            self._descriptor = descriptor
        ready = self._poll.poll(0)
        if len(ready) != 1 or ready[0][0] != descriptor:
            await trio.lowlevel.wait_readable(descriptor)
            self._turn.begin()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)
