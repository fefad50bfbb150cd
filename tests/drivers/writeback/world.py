"""A volume with write-back in a world where all takes its time, fails, or ends in the middle.

A step of the schedule is one event of one operation. The device below carries each request out
block by block, at moments that the schedule chooses, and may fail before, within or after that;
what was not flushed it may lose when power fails. The local disk is that of disk.py. The driver's
record of what is dirty changes at a moment of its own, and whoever asked may not hear of it.

What must hold (oracle.py):
* What a read returns was there between its beginning and its end.
* The process is killed: every write that was answered is read.
* Power fails: of each sector nothing is read that is older than what an answered flush has covered.
* The local disk is lost, at any moment: what is below is what a power cut could have left, at the
  same moment or an earlier one.
* While the record says that nothing is dirty, others may have the volume, and lose nothing.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.device import WriteBackDevice
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.errors import BockdError, UnavailableError
from bockd.model import BLOCK_SIZE, KIB
from bockd.runtime.steps import Steps, blocking
from tests.drivers.local.schedule import GRAVEYARD, Scheduler, UnevenScheduler, close_buried

from .below import FailedError, VolatileDevice
from .disk import DeathError, Disk
from .opened import as_new
from .oracle import SECTOR, Given, Oracle

SIZE_BYTES = 256 * KIB
SEGMENT_BYTES = 32 * KIB
BOUND_BYTES = 5 * SEGMENT_BYTES
IMAGE = "one"
PLACES = (0, 1, 2, 5, 40)
"""Blocks at which requests begin: few, that they meet."""
_REACH = 4


class ViolationError(AssertionError):
    """A rule was broken."""


def _nothing() -> None:
    """Take a moment."""


class World:
    """One volume, and one machine that has it most of the time."""

    REQUESTS = ("read", "read", "write", "write", "write", "write", "trim", "zero", "flush")

    def __init__(self, seed: int, root: Path, mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
        self._buried_before = len(GRAVEYARD)
        self.chance = random.Random(seed)
        self.root = root / "logs"
        self.below = VolatileDevice(SIZE_BYTES, self.chance)
        self.oracle = Oracle(SIZE_BYTES)
        self.record: str | None = None
        self.noted = as_new("")
        """How far a log has come, as the record says."""
        self.commits = 0
        self.unheard = 0.0
        """How many of the driver's commits fail, done or not."""
        self.reach = self.chance.choice((1, 2, _REACH))
        self.places = self.chance.choice((PLACES, PLACES[:1], PLACES[:3]))
        self.flushing = self.chance.choice((0.05, 0.2, 0.5))
        self.values = 0
        self.counts = dict.fromkeys(
            ("kill", "cut", "loss", "close", "others", "broken", "dirty"), 0
        )
        self._now = 0
        self._patch = pytest.MonkeyPatch()
        self.boot = 1
        self.disk = Disk(self.root, root / "shadow", self.chance)
        self.disk.install(self._patch)
        self._patch.setattr("bockd.drivers.writeback.recovery.boot_id", lambda: f"boot {self.boot}")
        self.uneven = self.chance.random() < 0.5
        self.device: WriteBackDevice
        self.directory: WriteBackDirectory
        self._alive = False
        self._lock = -1
        self._was_cut = False
        """Power has failed since the volume was judged last."""
        mutate(self._patch)
        self.open()

    # -- openings and ends ---------------------------------------------------------------------

    def open(self) -> None:
        """Take the volume. Recovery itself may be cut."""
        self.disk.failing = 0.0
        kind = UnevenScheduler if self.uneven else Scheduler
        self.scheduler = kind(random.Random(self.chance.random()))
        self.tick()
        if self.chance.random() < 0.2:
            self.disk.dies_in = self.chance.randrange(4)
            try:
                self._open()
            except DeathError:
                self._end_process()
                self.cut()
                self.scheduler = kind(random.Random(self.chance.random()))
                self.tick()
            else:
                self.disk.dies_in = -1
                return
        self._open()

    def _open(self) -> None:
        self._alive = False
        self._lock = -1  # the last process gave it up
        self.directory = WriteBackDirectory.open_directory(
            self.root,
            BOUND_BYTES,
            self.scheduler.spawn,
            LoggedPool("one", "a pool", lambda: self.commits),
            clock=lambda: float(self._now),
            segment_bytes=SEGMENT_BYTES,
        )
        self._lock = self.directory._lock
        reach = None
        if self.record is not None:
            reach = self.noted if self.noted.log == self.record else as_new(self.record)
        opening = self.directory.open(self.below, IMAGE, reach, self._on_dirty, self._on_clean)
        opened: list[WriteBackDevice] = []

        async def steps() -> None:
            opened.append(await opening)

        self.start(steps())
        self._until(opened)
        self.device = opened[0]
        self._alive = True

    async def _on_dirty(self, log_id: str) -> None:
        await self._commit(log_id)

    async def _on_clean(self) -> None:
        await self._commit(None)

    async def _commit(self, record: str | None) -> None:
        fails = self.chance.random() < self.unheard

        def commit() -> None:
            if not fails or self.chance.random() < 0.5:
                self.record = record
                self.commits += 1

        await blocking(_nothing)
        await blocking(commit)
        if fails:
            raise FailedError("the commit")

    def kill(self) -> None:
        """Have the process killed."""
        self.counts["kill"] += 1
        self._end_process()
        self._another()
        self.open()
        self.settle()

    def power_cut(self) -> None:
        """Have the power fail."""
        self.counts["cut"] += 1
        self._end_process()
        self.cut()
        self.open()
        self.settle()

    def cut(self) -> None:
        """Lose what a power cut loses."""
        self.boot += 1
        self._was_cut = True
        self.disk.dies_in = -1
        self.disk.failing = 0.0
        self.disk.cut()
        self.below.cut()

    def lose_disk(self) -> None:
        """Lose the local disk, and accept it."""
        self.counts["loss"] += 1
        self._end_process()
        self.boot += 1
        self.below.cut()
        self.judge_below()
        shutil.rmtree(self.root)
        self._was_cut = False
        self.disk = Disk(self.root, self.root.parent / "shadow", self.chance)
        self.disk.install(self._patch)
        self.record = None
        self.oracle.reset(self.content_below(), self.tick(), durable=True)
        self.open()

    def close(self) -> None:
        """Close the volume in order, and open it again."""
        self.counts["close"] += 1
        self.start(self._ignoring(self.device.close))
        self.finish()
        self.directory.release()
        self._another()
        if self.chance.random() < 0.5:
            self.cut()
        self.open()
        self.settle()

    def _end_process(self) -> None:
        """End as a process does that is killed."""
        self._now = max(self._now, self.scheduler.now)
        self.scheduler.die()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._alive and (log := self.device.way.log) is not None:
            log._file.close()
            for segment in log._all():
                segment._close()
        self._alive = False

    def _another(self) -> None:
        """Have another gateway have the volume, if it may, and write."""
        if self.record is not None or self.chance.random() < 0.5:
            return
        self.counts["others"] += 1
        for _ in range(3):
            offset, length = self.range()
            data = self.value(length)
            for one in self.oracle.begin(offset, data, self.tick()):
                one.end = self.tick()
            VolatileDevice._write(self.below, offset, memoryview(data))
        self.below.settle()
        self.oracle.flushed(self.tick(), self.tick())

    def settle(self) -> None:
        """Read all that there is after an end: it must be right, and stays."""
        content = bytearray(SIZE_BYTES)
        done: list[bool] = []

        async def steps() -> None:
            await self.device.read(0, memoryview(content))
            done.append(True)

        failing, self.below.failing = self.below.failing, 0.0
        self.start(steps())
        self._until(done)
        self.below.failing = failing
        now, cut, self._was_cut = self.tick(), self._was_cut, False
        if cut:
            wrong = self.oracle.lost(bytes(content), now)
        else:
            wrong = self.oracle.misread(bytes(content), 0, now, now)
        if wrong:
            raise ViolationError(f"after an end at {self._now} sectors {wrong} are wrong")
        self.oracle.reset(bytes(content), self.tick(), durable=cut)

    def dispose(self) -> None:
        """End the world, whatever state it is in."""
        self._end_process()
        close_buried(self._buried_before)
        self._patch.undo()

    # -- time ----------------------------------------------------------------------------------

    def tick(self) -> int:
        """Return a moment that is later than all before."""
        self.scheduler.now = max(self.scheduler.now, self._now) + 1
        self._now = self.scheduler.now
        return self._now

    def start(self, steps: Steps[None]) -> None:
        self.scheduler.start(steps, lambda: None)

    def advance(self, events: int) -> bool:
        """Let so many events happen. Return False if there is none any more."""
        for _ in range(events):
            self.tick()
            ready = [t for t in self.scheduler.tasks if t.resume is not None or t.call is not None]
            if not ready:
                return False
            self.scheduler.advance(self.scheduler.choose(ready))
            if self.scheduler.errors:
                error = self.scheduler.errors[0]
                if isinstance(error, BockdError):
                    raise ViolationError(f"unexpected: {error}") from error
                raise error
        return True

    def _until(self, came: Sequence[object]) -> None:
        """Let things happen until something has come."""
        while not came:
            if not self.advance(1):
                raise ViolationError("it waits for nothing")

    def finish(self) -> None:
        """Let everything come to its end."""
        while self.advance(1):
            pass
        if self.scheduler.tasks:
            raise ViolationError("operations wait for each other")

    # -- requests --------------------------------------------------------------------------------

    def range(self) -> tuple[int, int]:
        """Choose what a request is about, its offset and length."""
        first = self.chance.choice(self.places) * BLOCK_SIZE
        if self.chance.random() < 0.5:
            return first, self.chance.randint(1, self.reach) * BLOCK_SIZE
        start = first + SECTOR * self.chance.randrange(8)
        return start, SECTOR * self.chance.randint(1, 8 * self.reach)

    def value(self, length: int) -> bytes:
        """Return data that nothing else has; some of it zeros."""
        self.values += 1
        data = self.values.to_bytes(4, "big") * (length // 4)
        if self.chance.random() < 0.1:
            data = data[: length // 2] + bytes(length - length // 2)
        return data

    def request(self, kind: str) -> None:
        """Begin a request of a kind."""
        getattr(self, kind)()

    def read(self) -> None:
        self.start(self._read(*self.range()))

    async def _read(self, offset: int, length: int) -> None:
        began, into = self.tick(), memoryview(bytearray(length))
        try:
            if not self.device.try_read(offset, into):
                await self.device.read(offset, into)
        except (FailedError, UnavailableError):
            return
        if wrong := self.oracle.misread(bytes(into), offset, began, self.tick()):
            raise ViolationError(f"sectors {wrong} read from {began} to {self._now}")

    def write(self) -> None:
        offset, length = self.range()
        self.start(self._write(offset, self.value(length)))

    async def _write(self, offset: int, data: bytes) -> None:
        given, mutable = self.oracle.begin(offset, data, self.tick()), bytearray(data)
        try:
            if self.chance.random() < 0.5 and self.device.try_write(offset, memoryview(mutable)):
                self.device.commit()
            else:
                await self.device.write(offset, memoryview(mutable))
        except BockdError:
            return
        finally:
            mutable[:] = b"!" * len(mutable)  # whoever keeps it must have a copy
        self._answered(given)

    def _answered(self, given: list[Given]) -> None:
        now = self.tick()
        for one in given:
            one.end = now

    def zero(self) -> None:
        offset, length = self.range()
        self.start(self._zeros(offset, length, lambda: self._zero(offset, length)))

    async def _zero(self, offset: int, length: int) -> None:
        await self.device.zero(offset, length, allocate=self.chance.random() < 0.5)

    def trim(self) -> None:
        offset, length = self.range()
        first = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
        whole = (offset + length) // BLOCK_SIZE * BLOCK_SIZE - first
        self.start(self._zeros(first, max(whole, 0), lambda: self._trim(offset, length)))

    async def _trim(self, offset: int, length: int) -> None:
        if not (self.chance.random() < 0.5 and self.device.try_trim(offset, length)):
            await self.device.trim(offset, length)

    async def _zeros(self, offset: int, length: int, change: Callable[[], Steps[None]]) -> None:
        given = self.oracle.begin(offset, bytes(length), self.tick())
        with suppress(BockdError):
            await change()
            self._answered(given)

    def flush(self) -> None:
        self.start(self._flush())

    async def _flush(self) -> None:
        began = self.tick()
        with suppress(BockdError):
            await self.device.flush()
            self.oracle.flushed(began, self.tick())

    # -- the driver ------------------------------------------------------------------------------

    def drain(self) -> None:
        self.start(self._drain())

    async def _drain(self) -> None:
        """What was answered before a drain is below, as its snapshot would hold it."""
        began = self.tick()
        with suppress(BockdError):
            await self.device.drain()
            self.oracle.flushed(began, self.tick())
            wrong = self.oracle.misread(self.content_below(), 0, began, self.tick())
            if wrong:
                raise ViolationError(f"drained, and sectors {wrong} are not below")

    async def _ignoring(self, begin: Callable[[], Steps[None]]) -> None:
        with suppress(BockdError):
            await begin()

    def look(self) -> None:
        self.directory.look()
        self.noted = self.device.reach() or self.noted

    def switch(self) -> None:
        self.chance.choice(
            (self.device.write_back, self.device.write_back, self.device.write_through)
        )()

    # -- rules -----------------------------------------------------------------------------------

    def content_below(self) -> bytes:
        return self.below.now(0, SIZE_BYTES)

    def judge_below(self) -> None:
        """Judge what would be there, were the local disk lost now."""
        if not self.oracle.cut_ever(self.content_below(), self.tick()):
            raise ViolationError(f"at {self._now} below is what no power cut could have left")

    # -- random lives ----------------------------------------------------------------------------

    ENDS = ("kill", "kill", "power_cut", "power_cut", "lose_disk", "close")

    def play(self, steps: int) -> None:
        """Live for some steps."""
        for _ in range(steps):
            kind = self.chance.random()
            if kind < 0.66:
                request = self.chance.choice(self.REQUESTS)
                self.request("flush" if self.chance.random() < self.flushing else request)
            elif kind < 0.78:
                self.look()
            elif kind < 0.80:
                self.drain()
            elif kind < 0.83:
                self.switch()
            elif kind < 0.86:
                self.below.failing = self.chance.choice((0.0, 0.0, 0.0, 0.2))
                self.unheard = self.chance.choice((0.0, 0.0, 0.3))
            elif kind < 0.865:
                self.disk.failing = self.chance.choice((0.0, 0.0, 0.1))
            elif kind < 0.92:
                getattr(self, self.chance.choice(self.ENDS))()
            self.advance(self.chance.choice((0, 1, 2, 5, 20)))
            self.judge_below()
            if self.device.way.failed:
                raise ViolationError(self.device.way.failed)
            if (log := self.device.way.log) is not None:
                self.counts["broken"] += bool(log.broken)
                self.counts["dirty"] += not log.clean
        self.below.failing = self.unheard = self.disk.failing = 0.0
        self.device.write_back()
        self.finish()
        self.settle()
        self.start(self.device.drain())
        self.finish()
        if self.record is not None:
            raise ViolationError("all was drained, and the record says that something is dirty")
        if wrong := self.oracle.misread(self.content_below(), 0, self.tick(), self.tick()):
            raise ViolationError(f"all was drained, and sectors {wrong} are not below")
