"""Syncs that end when a test says so, in the place of those of compiled threads."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from bockd.nbd.server.nbd_server import NbdServer
from tests.nbd.server.serving import FixedExports, serving

LONG_NS = 20 * 1_000_000_000
"""Whoever waits for so long was not woken."""


class Disk:
    """In the place of the compiled threads: what is synced, and who waits for it."""

    def __init__(self) -> None:
        self.syncs: list[Sync] = []
        self.begun_in: list[str] = []
        """Names of the tasks that have begun them."""
        self.waits = 0
        self.not_woken = 0
        self.meanwhile: Callable[[], object] = self.end
        """Called when somebody waits without the loop."""
        self._refusals: list[BaseException] = []

    def refuse(self, *errors: BaseException) -> None:
        """Let the next syncs fail to begin."""
        self._refusals = [*errors]

    def begin(self, descriptors: list[int]) -> Sync:
        if self._refusals:
            raise self._refusals.pop(0)
        self.begun_in.append(trio.lowlevel.current_task().name.rsplit(".")[-1])
        self.syncs.append(Sync(self, descriptors))
        return self.syncs[-1]

    def end(self, error: int = 0) -> None:
        """The last sync ends."""
        self.syncs[-1].end(error)

    @asynccontextmanager
    async def behind(self, exports: FixedExports, path: Path) -> AsyncIterator[NbdServer]:
        """Serve what lies on this disk. A test that fails is not held up by its syncs."""
        async with serving(exports, path) as server:
            try:
                yield server
            finally:
                self.meanwhile = self.end
                for sync in self.syncs:
                    sync.end(0)
            assert self.not_woken == 0


class Sync:
    """As _syncing.pyi has it."""

    def __init__(self, disk: Disk, descriptors: list[int]) -> None:
        self._disk = disk
        self._descriptors = descriptors
        self._error = 0
        self.over = False
        self._ended = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._ended)

    def end(self, error: int) -> None:
        if self.over:
            return
        self.over = True
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)  # the files are open until then
        self._error = error
        os.eventfd_write(self._ended, 1)

    def fileno(self) -> int:
        return self._ended

    def result(self) -> int:
        try:
            os.eventfd_read(self._ended)
        except BlockingIOError:
            return -1
        return self._error

    def wait(self, one: int, other: int, nanoseconds: int) -> int:
        self._disk.waits += 1
        self._disk.meanwhile()
        poll = select.poll()
        for descriptor in (self._ended, one, other):
            poll.register(descriptor, select.POLLIN)
        if not poll.poll(nanoseconds // 1_000_000) and nanoseconds >= LONG_NS:
            self._disk.not_woken += 1
        return self.result()
