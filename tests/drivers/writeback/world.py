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
  same moment or an earlier one. But for a log that has failed, and whose progress the disk did not
  take: it is replayed over what is newer, and that must not be lost until it has come so far again.
* A byte of the log is damaged, what is before that is written below, and the rest given up: the
  same holds for what is below, at any moment, but for a log of which the record says that the disk
  did not take its progress.
* While the record says that nothing is dirty, others may have the volume, and lose nothing.
* Once the volume is closed, nothing is sent below, and no file of its log is touched.
* While nothing fails but the driver's commits, no client is told of an error.
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
from bockd.drivers.writeback.log import Log
from bockd.drivers.writeback.progress import Progress, ProgressFile
from bockd.drivers.writeback.salvage import Salvage
from bockd.errors import BockdError, VolumeTakenError
from bockd.model import KIB, MIB
from bockd.pool.caches import LogReach
from bockd.runtime.steps import Steps, blocking
from tests.drivers.local.schedule import GRAVEYARD, Scheduler, UnevenScheduler, close_buried

from .below import FailedError, Image, VolatileDevice
from .clients import Clients
from .disk import DeathError, Disk
from .opened import as_new
from .oracle import Oracle, ViolationError

SIZE_BYTES = 256 * KIB
SEGMENT_BYTES = 32 * KIB
BOUND_BYTES = 5 * SEGMENT_BYTES
IMAGE = "one"


def _nothing() -> None:
    """Take a moment."""


class World:
    """One volume, and one machine that has it most of the time."""

    def __init__(self, seed: int, root: Path, mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
        self._buried_before = len(GRAVEYARD)
        self.chance = random.Random(seed)
        self.root = root / "logs"
        self.below = VolatileDevice(SIZE_BYTES, self.chance)
        self.oracle = Oracle(SIZE_BYTES)
        self.record: str | None = None
        self.noted = as_new("")
        """How far a log has come, as the record says."""
        self.unnotable = False
        """The record says that more may be below than the log says."""
        self.commits = 0
        self.unheard = 0.0
        """How many of the driver's commits fail: done or not, or done later."""
        self.late: tuple[int, str | None] | None = None
        """A commit that may be done later, if it is the next after so many."""
        self.repeating = self.chance.random() < 0.5
        """The driver commits that a log is dirty though its record says so."""
        self.clients = Clients(self)
        self.switching = self.chance.choice((0.02, 0.02, 0.15))
        """How many of the events of a life switch between the two ways."""
        self.troubles = self.chance.choice((0.01, 0.03, 0.1))
        """How many of them change what fails."""
        self.counts = dict.fromkeys(
            (
                *("kill", "cut", "loss", "damage", "close", "reopen", "others"),
                *("steps", "dirty", "broken", "full", "crowded", "failed syncs", "late"),
                *("salvaged", "unnotable"),
            ),
            0,
        )
        self._now = 0
        self._patch = pytest.MonkeyPatch()
        ids = random.Random(seed)  # the order of names on a disk is that of each run of a seed
        self._patch.setattr("secrets.token_hex", lambda size: ids.randbytes(size).hex())
        self.boot = 1
        self.disk = Disk(self.root, root / "shadow", self.chance)
        self.disk.install(self._patch)
        self._patch.setattr("bockd.drivers.writeback.recovery.boot_id", lambda: f"boot {self.boot}")
        self._patch.setattr(
            "bockd.drivers.writeback.log.MAX_MEMORY_BYTES", self.chance.choice((MIB, 3000))
        )
        self._patch.setattr("bockd.drivers.writeback.recovery.SLICE", 1 << 30)
        self._patch.setattr(
            "bockd.drivers.writeback.dirtyrecords.SLICE", self.chance.choice((1, 3, 1 << 30))
        )
        self._patch.setattr(
            "bockd.drivers.writeback.way.QUIET_LOOKS", self.chance.choice((1, 1, 4))
        )
        self.uneven = self.chance.random() < 0.5
        self.device: WriteBackDevice
        self.directory: WriteBackDirectory
        self.image: Image
        self.epoch = 0
        """Goes up with each opening: what an earlier one commits does not count."""
        self._alive = False
        self._sound = False
        """Nothing but commits has failed since the volume was opened."""
        self._lock = -1
        self._judged = -1
        """After how many changes of the device below that was right."""
        self._was_cut = False
        """Power has failed since the volume was judged last."""
        self._replayed: tuple[str, int] | None = None
        """A log that may be replayed over what is newer, and up to which sequence."""
        self._salvaging: Salvage | None = None
        self._unnoted = set[str]()
        """Logs whose disk did not take the last progress: that all of them is below, nobody may
        see."""
        self._note_unnoted()
        mutate(self._patch)
        self.open()

    # -- openings and ends ---------------------------------------------------------------------

    def open(self) -> None:
        """Take the volume. Recovery itself may be cut, and fail to sync what it has read."""
        self._begin_process()
        if self.chance.random() < 0.2:
            self.disk.dies_in = self.chance.randrange(6)
            try:
                self._take()
            except DeathError:
                self._end_process()
                self.cut()
                self._begin_process()
            else:
                self.disk.dies_in = -1
                return
        self._take()

    def _note_unnoted(self) -> None:
        write = ProgressFile.write

        def noting(file: ProgressFile, progress: Progress) -> None:
            try:
                write(file, progress)
            except BaseException:
                self._unnoted.add(progress.log)
                raise
            self._unnoted.discard(progress.log)

        self._patch.setattr(ProgressFile, "write", noting)

    def _begin_process(self) -> None:
        self._lock = -1  # the last process gave it up
        kind = UnevenScheduler if self.uneven else Scheduler
        self.scheduler = kind(random.Random(self.chance.random()))
        self.tick()
        self.disk.full = False
        self.disk.failing = 0.0
        self.directory = WriteBackDirectory.open_directory(
            self.root,
            BOUND_BYTES,
            self.scheduler.spawn,
            LoggedPool("one", "a pool", lambda _directory: self.commits),
            clock=lambda: float(self._now),
            segment_bytes=SEGMENT_BYTES,
        )
        self._lock = self.directory._lock
        self.disk.failing = self.chance.choice((0.0, 0.0, 0.0, 0.3))

    def _take(self) -> None:
        """Open the volume in the process that runs."""
        self._alive = False
        self.image = Image(self.below)
        self.epoch += 1
        epoch = self.epoch

        self.commits += 1  # that it has the volume

        async def dirty(log_id: str) -> None:
            if self.repeating or self.record != log_id:
                await self._commit(epoch, log_id)

        async def clean() -> None:
            await self._commit(epoch, None)

        async def unnotable() -> None:
            await blocking(_nothing)
            if self.chance.random() < self.unheard:
                raise FailedError("the commit")
            if epoch != self.epoch:
                raise VolumeTakenError("it was opened again since")
            self.counts["unnotable"] += 1
            self.unnotable = True

        opening = self.directory.open(self.image, IMAGE, self._reach(), dirty, clean, unnotable)
        opened: list[WriteBackDevice] = []

        async def steps() -> None:
            opened.append(await opening)

        self.start(steps())
        self._until(opened)
        for aside in self.directory.aside():
            if (log_id := aside.name.split(".")[1]) not in self._unnoted:
                raise ViolationError(f"{log_id} was put aside, and all of it was below")
            shutil.rmtree(aside, ignore_errors=True)  # one that is gone counts until it is seen
        self.device = opened[0]
        self._alive = True
        self._sound = not (self.below.failing or self.disk.failing)

    def _reach(self) -> LogReach | None:
        if self.record is None:
            return None
        return self.noted if self.noted.log == self.record else as_new(self.record)

    async def _commit(self, epoch: int, record: str | None) -> None:
        fails = self.chance.random() < self.unheard

        def commit() -> None:
            if epoch != self.epoch:
                raise VolumeTakenError("it was opened again since")
            how = self.chance.choice(("done", "never", "late")) if fails else "done"
            if how == "done":
                self._set_record(record)
            elif how == "late":
                self.late = self.commits, record

        await blocking(_nothing)
        await blocking(commit)
        if fails:
            raise FailedError("the commit")

    def _set_record(self, record: str | None) -> None:
        self.unnotable = self.unnotable and record == self.record
        self.record = record
        self.commits += 1

    def _land(self) -> None:
        """Do what was to be committed earlier, unless something else was since."""
        if self.late is not None and self.late[0] == self.commits:
            self.counts["late"] += 1
            self._set_record(self.late[1])
        self.late = None

    def kill(self) -> None:
        """Have the process killed."""
        self.counts["kill"] += 1
        self._end_process()
        if self.disk.failing and self.chance.random() < 0.5:
            self.disk.fail_unheard()
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

    def cut_in_a_sync(self) -> None:
        """Have the power fail within one of the next syncs."""
        self.disk.dies_in = self.chance.randrange(3)
        try:
            self.clients.flush()
            self.advance(40)
            self.disk.dies_in = -1
        except DeathError:
            self.power_cut()

    def cut_before_the_record(self) -> None:
        """Have the log break, and the power fail when all of it may be below, and the driver could
        not commit that."""
        for request in (self.clients.write, self.clients.flush):
            request()
            self.advance(self.chance.choice((5, 20)))
        self.fail_disk(1.0)
        self.fail_commits(1.0)
        for request in (self.clients.write, self.clients.flush, self.clients.flush):
            request()
            self.advance(self.chance.choice((20, 60)))
        self.fail_commits(0.0)
        self.power_cut()

    def two_ends(self) -> None:
        """Have one end follow soon after the other, as some only together do harm."""
        self.chance.choice((self.kill, self.power_cut))()
        for _ in range(self.chance.randrange(3)):
            self.clients.write()
            self.advance(self.chance.choice((1, 5, 20)))
        self.chance.choice((self.kill, self.power_cut))()

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
        self._was_cut, self._replayed = False, None
        self.disk = Disk(self.root, self.root.parent / "shadow", self.chance)
        self.disk.install(self._patch)
        self._set_record(None)
        self.oracle.reset(self.content_below(), self.tick(), durable=True)
        self.open()

    def lose_part(self) -> None:
        """Have a byte of the log damaged, write back what is before that, and give up the rest. The
        process may be killed, and the power fail, meanwhile."""
        self._end_process()
        if self.chance.random() < 0.5:
            self.cut()
        if self.record is None:
            self.open()
            self.settle()
            return
        self.counts["damage"] += 1
        self._damage(self.root / f"{IMAGE}.{self.record}")
        goes_on = True
        while goes_on:
            goes_on = self.chance.random() < 0.5
            self._begin_process()
            if not self.unnotable:
                self._salvage(self.chance.randrange(80) if goes_on else None)
            self._end_process()
            if self.chance.random() < 0.5:
                self.cut()
        self.below.cut()
        self._judge_salvaged()
        self._was_cut, self._replayed = False, None
        self._unnoted.add(self.record)  # it is put aside
        self._set_record(None)
        self.oracle.reset(self.content_below(), self.tick(), durable=True)
        self.open()

    def _damage(self, log: Path) -> None:
        one = self.chance.choice(sorted(log.glob("*.seg")))
        content = bytearray(one.read_bytes())
        used = len(content.rstrip(b"\0"))
        content[self.chance.choice((0, *[self.chance.randrange(used)] * 9))] ^= 0x55
        self.disk.leave(one, content)

    def _salvage(self, events: int | None) -> None:
        """Write back what is whole of the log; but let only so much happen."""
        reach, ended = self._reach(), list[bool]()
        assert reach is not None
        self.image = Image(self.below)

        async def steps() -> None:
            begun = await self.directory.salvage(self.image, IMAGE, reach)
            if begun is not None:
                self._salvaging = begun
                with suppress(BockdError):
                    await begun.drain()
                await begun.close()
                self.counts["salvaged"] += begun.result().written_bytes > 0
            ended.append(True)

        self.start(steps())
        while not ended and (events is None or events > 0):
            if not self.advance(1):
                raise ViolationError("it waits for nothing")
            self._judge_salvaged()
            events = None if events is None else events - 1
        if ended:
            self.finish()

    def _judge_salvaged(self) -> None:
        if not self.unnotable and not self.oracle.cut_ever(self.content_below(), self.tick()):
            raise ViolationError(
                f"at {self._now} a damaged log has left below what no power cut could have left"
            )

    def close(self) -> None:
        """End the process in order, and open the volume again; the power may fail before that."""
        self.counts["close"] += 1
        self._give_back()
        self.finish()
        self.directory.release()
        self._another()
        if self.chance.random() < 0.5:
            self.cut()
        self.open()
        self.settle()

    def reopen(self) -> None:
        """Close the volume, and open it again in the same process, in which something of the
        earlier opening may still go on."""
        self.counts["reopen"] += 1
        self._give_back()
        self._another()
        self._take()
        self.clients.read_all()  # others go on meanwhile, and nothing is certain

    def _give_back(self) -> None:
        """Close the volume. From then on nothing may be sent below."""
        closed: list[bool] = []

        async def steps() -> None:
            await self.device.close()
            await self.image.close()
            closed.append(True)

        log = self.device.way.log
        self.start(steps())
        self._until(closed)
        if log is not None:
            self._note_replay(log)

    def _end_process(self) -> None:
        """End as a process does that is killed."""
        self._now = max(self._now, self.scheduler.now)
        self.scheduler.die()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._alive and (log := self.device.way.log) is not None:
            self._note_replay(log)
            log._file.close()
            for segment in log._all():
                segment._close()
        self._alive = False
        if self._salvaging is not None and (damaged := self._salvaging._log) is not None:
            damaged._file.close()
            for segment in damaged._all():
                segment._close()
        self._salvaging = None

    def _note_replay(self, log: Log) -> None:
        if log.broken and log.noted < log.done and not self._is_replayed():
            self._replayed = log.id, log.done

    def _is_replayed(self) -> bool:
        """Return whether a log may be being replayed over what is newer."""
        if self._replayed is None or (log := self.device.way.log) is None:
            return False
        return log.id == self._replayed[0] and log.done < self._replayed[1]

    def _another(self) -> None:
        """Have another gateway have the volume, if it may, and write."""
        if self.record is not None or self.chance.random() < 0.5:
            return
        self.counts["others"] += 1
        self.epoch += 1
        self.commits += 1
        for _ in range(3):
            offset, length = self.clients.range()
            data = self.clients.value(length)
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
            if self.late is not None and self.chance.random() < 0.05:
                self._land()
            ready = [t for t in self.scheduler.tasks if t.resume is not None or t.call is not None]
            if not ready:
                return False
            self.scheduler.advance(self.scheduler.choose(ready))
            if self.scheduler.errors:
                error = self.scheduler.errors[0]
                if isinstance(error, ViolationError):
                    raise error
                raise ViolationError(f"unexpected: {error!r}") from error
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

    # -- the driver ------------------------------------------------------------------------------

    def drain(self) -> None:
        """Drain, perhaps several times at once."""
        for _ in range(self.chance.choice((1, 1, 3))):
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

    def look(self) -> None:
        self.directory.look()
        if (reach := self.device.reach()) is not None:
            self.noted = reach
            if self.chance.random() < 0.1:
                self.start(self.device.note_known(reach))

    def switch(self) -> None:
        self.chance.choice(
            (self.device.write_back, self.device.write_back, self.device.write_through)
        )()
        self.device.hold(held=self.chance.random() < 0.05)

    # -- rules -----------------------------------------------------------------------------------

    def judge_error(self, device: WriteBackDevice, error: BockdError) -> None:
        """Judge what a client was told."""
        way = device.way
        broken = way.log is not None and way.log.broken
        if self._sound and device is self.device and not (way._closed or broken):
            raise ViolationError(f"only commits fail, and a client is told: {error!r}") from error

    def content_below(self) -> bytes:
        return self.below.now(0, SIZE_BYTES)

    def judge_below(self) -> None:
        """Judge what would be there, were the local disk lost now."""
        if self._is_replayed() or self.below.changes == self._judged:
            return  # what could have been left once, still could
        self._judged = self.below.changes
        if not self.oracle.cut_ever(self.content_below(), self.tick()):
            raise ViolationError(f"at {self._now} below is what no power cut could have left")

    # -- random lives ----------------------------------------------------------------------------

    ENDS = (
        *("kill", "kill", "power_cut", "power_cut", "lose_disk", "close", "reopen"),
        *("two_ends", "two_ends", "cut_in_a_sync", "cut_before_the_record"),
        *("lose_part", "lose_part"),
    )

    def play(self, steps: int) -> None:
        """Live for some steps, and come to a good end."""
        for _ in range(steps):
            if self.chance.random() < self.switching:
                self.switch()
            elif self.chance.random() < self.troubles:
                self.change_troubles()
            elif (kind := self.chance.random()) < 0.8:
                self.clients.begin_any()
            elif kind < 0.92:
                self.look()
            elif kind < 0.945:
                self.drain()
            else:
                getattr(self, self.chance.choice(self.ENDS))()
            self.advance(self.chance.choice((0, 1, 2, 5, 20)))
            self.judge()
        self.end()

    def change_troubles(self) -> None:
        """Have things fail, or not any more."""
        choice = self.chance.choice
        self.fail_below(choice((0.0, 0.0, 0.0, 0.2)))
        self.fail_commits(choice((0.0, 0.0, 0.3)))
        self.fail_disk(choice((0.0, 0.0, 0.1, 0.5)))
        self.fill_disk(full=self.chance.random() < 0.1)

    def fail_below(self, share: float) -> None:
        self.below.failing = share
        self._sound &= not share

    def fail_commits(self, share: float) -> None:
        self.unheard = share

    def fail_disk(self, share: float) -> None:
        self.disk.failing = share
        self._sound &= not share

    def fill_disk(self, *, full: bool) -> None:
        self.disk.full = full

    def judge(self) -> None:
        """Judge what must hold at any moment, and count what goes on."""
        self.judge_below()
        if self.device.way.failed:
            raise ViolationError(self.device.way.failed)
        self.counts["steps"] += 1
        if (log := self.device.way.log) is not None:
            self.counts["broken"] += bool(log.broken)
            self.counts["dirty"] += not log.clean
            self.counts["full"] += bool(log.no_room)
            self.counts["crowded"] += log.crowded

    def end(self) -> None:
        """Have nothing fail any more: all that was answered comes to be below."""
        self.fail_below(0.0)
        self.fail_commits(0.0)
        self.fail_disk(0.0)
        self.fill_disk(full=False)
        self.device.write_back()
        self.device.hold(held=False)
        self.finish()
        self.settle()
        self.start(self.device.drain())
        self.finish()
        if self.record is not None:
            raise ViolationError("all was drained, and the record says that something is dirty")
        if wrong := self.oracle.misread(self.content_below(), 0, self.tick(), self.tick()):
            raise ViolationError(f"all was drained, and sectors {wrong} are not below")
        self.look()
        self.finish()  # what was put aside does not count any more
        if self.directory.images() or self.directory.space.used_bytes:
            raise ViolationError("all was drained, and a log is still there, or its room is taken")
        self.counts["failed syncs"] += self.disk.failures


class SilentIndex(World):
    """One in which hardly anything fails but the driver's commits, and the log is held often."""

    def __init__(self, seed: int, root: Path, mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
        super().__init__(seed, root, mutate)
        self.switching = self.troubles = 0.15

    def change_troubles(self) -> None:
        self.fail_commits(self.chance.choice((0.0, 0.5, 1.0)))

    def switch(self) -> None:
        self.device.hold(held=self.chance.random() < 0.5)
