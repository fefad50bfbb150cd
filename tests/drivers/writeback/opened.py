"""A volume with write-back in front of a device, for tests with one thread."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TypeVar

from bockd.drivers.memory.device import FailedError
from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.device import WriteBackDevice
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.pool.caches import LogReach
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Signal, Steps
from tests.drivers.local.schedule import GRAVEYARD, Scheduler, close_buried

T = TypeVar("T")

SEGMENT_BYTES = 64 * KIB
BOUND_BYTES = 4 * SEGMENT_BYTES
SIZE_BYTES = 1 * MIB
IMAGE = "one"


def as_new(log_id: str) -> LogReach:
    """Return what is known of a log that nobody has noted anything of."""
    return LogReach(log_id, 0, 0)


class Opened:
    """A directory, the driver's record of one volume, and that volume while it is open."""

    def __init__(
        self, path: Path, below: BlockDevice, record: str | None = None, begun: int = 0
    ) -> None:
        self.path = path
        self.below = below
        self.record = record
        self.unnotable = False
        """The record says that more may be below than the log says."""
        self.noted: LogReach | None = None
        """What the record says of a log besides its id."""
        self.commits: list[str | None] = []
        """What the record has become, in order."""
        self.begun = begun
        """How many logs the index has counted, of earlier processes, too."""
        self.refusing = False
        """Switch: the driver cannot commit that a log is dirty, or that nothing is."""
        self.refusing_unnotable = False
        """Switch: nor that more may be below than the log says."""
        self.gate: Signal | None = None
        """Switch: commits wait for this."""
        self.now = 1000.0
        self._buried_before = len(GRAVEYARD)
        self.scheduler = Scheduler(random.Random(0))
        self.directory = self._directory()
        self.device = self.open()
        self.flush()  # else the first write waits for one below

    def _directory(self) -> WriteBackDirectory:
        return WriteBackDirectory.open_directory(
            self.path,
            BOUND_BYTES,
            self.scheduler.spawn,
            LoggedPool("one", "a pool", lambda _directory: self.begun),
            clock=lambda: self.now,
            segment_bytes=SEGMENT_BYTES,
        )

    def _reach(self) -> LogReach | None:
        if self.record is None:
            return None
        noted = self.noted
        return noted if noted is not None and noted.log == self.record else as_new(self.record)

    def note(self) -> None:
        """Note in the record how far the log has come."""
        self.noted = self.device.reach()
        if self.noted is not None:
            self.run(self.device.note_known(self.noted))

    def open(self) -> WriteBackDevice:
        """Open the volume."""
        self.device = self.run(
            self.directory.open(
                self.below,
                IMAGE,
                self._reach(),
                self._on_dirty,
                self._on_clean,
                self._on_unnotable,
            )
        )
        return self.device

    async def _on_dirty(self, log_id: str) -> None:
        await self._commit(log_id)

    async def _on_clean(self) -> None:
        await self._commit(None)

    async def _on_unnotable(self) -> None:
        if self.refusing_unnotable:
            raise FailedError("the cluster does not answer")
        self.unnotable = True

    async def _commit(self, record: str | None) -> None:
        if self.gate is not None:
            await self.gate
        if self.refusing:
            raise FailedError("the cluster does not answer")
        self.record = record
        self.unnotable = False
        self.commits.append(record)
        self.begun += record is not None

    # -- running -------------------------------------------------------------------------------

    def begin(self, steps: Steps[T]) -> list[T | BaseException]:
        """Begin steps, and let all happen that can. Return what came of them, if they have ended:
        a result or an error."""
        came: list[T | BaseException] = []

        async def run() -> None:
            try:
                came.append(await steps)
            except Exception as error:  # noqa: BLE001 - the test's own
                came.append(error)

        self.scheduler.start(run(), lambda: None)
        self.settle()
        return came

    def settle(self) -> None:
        """Let all happen that can."""
        while ready := [t for t in self.scheduler.tasks if t.resume is not None or t.call]:
            self.scheduler.advance(self.scheduler.choose(ready))
        if self.scheduler.errors:
            raise self.scheduler.errors[0]

    def run(self, steps: Steps[T]) -> T:
        """Run steps to their end."""
        came = self.begin(steps)
        assert came, "it waits"
        if isinstance(came[0], BaseException):
            raise came[0]
        return came[0]

    def write(self, offset: int, data: bytes) -> None:
        self.run(self.device.write(offset, memoryview(data)))

    def read(self, offset: int = 0, length: int = BLOCK_SIZE) -> bytes:
        into = bytearray(b"?" * length)
        self.run(self.device.read(offset, memoryview(into)))
        return bytes(into)

    def flush(self) -> None:
        self.run(self.device.flush())

    def look(self) -> None:
        """Let a second pass."""
        self.now += 1
        self.directory.look()
        self.settle()

    # -- ends ----------------------------------------------------------------------------------

    def close(self) -> None:
        self.run(self.device.close())

    def die(self) -> None:
        """End as a process does that is killed."""
        self.scheduler.die()
        self.scheduler = Scheduler(random.Random(0))
        os.close(self.directory._lock)
        if (log := self.device.way.log) is not None:
            log._file.close()
            for segment in log._all():
                segment._close()

    def again(self) -> WriteBackDevice:
        """Die, and open all again."""
        self.die()
        self.directory = self._directory()
        return self.open()

    def log_path(self) -> Path:
        """Return where the log is that the record names."""
        return self.path / f"{IMAGE}.{self.record}"

    def dispose(self) -> None:
        """Give up whatever is under way."""
        self.scheduler.die()
        close_buried(self._buried_before)


def holding(below: BlockDevice, offset: int, length: int) -> bytes:
    """Return what a device in memory holds."""
    into = bytearray(length)
    assert below.try_read(offset, memoryview(into))
    return bytes(into)
