"""A cached volume or snapshot in a world where all takes its time, fails, or ends in the middle.

The device below is in memory: each request is carried out block by block, at moments that the
schedule chooses, and may fail before, within or after that. A step of the schedule is one event of
one operation (tests/drivers/local/schedule.py). Between two events, whenever it likes, the fast
lane reads the blocks that the view shows; and as it does, it leaves reads for a thread.

What must hold:
* A block that is a hit has, in the file, what the device below holds at that very moment.
* What a read returns was there at some moment between its beginning and its end, and no change that
  was answered before it began is missing (`History`).

The process is killed between any two events; so is the machine, which loses what was not synced
(`Disk`). Others may have the volume before it is opened again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.drivers.cache import cachefile, directory, mapfile
from bockd.drivers.cache.blockmap import FILE_SLOT, HOLE_SLOT, LEAF_BLOCKS
from bockd.drivers.cache.cachefile import CacheFile, Identity
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.memory.device import FailedError, MemoryDevice
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Steps, blocking
from tests.drivers.local.schedule import (
    GRAVEYARD,
    History,
    Scheduler,
    UnevenScheduler,
    close_buried,
)

SIZE_BYTES = 3 * MIB
SECTOR = History.SECTOR

PLACES = [0, 1, 2, *range(LEAF_BLOCKS - 3, LEAF_BLOCKS + 3), 2 * LEAF_BLOCKS - 1, 2 * LEAF_BLOCKS]
"""Blocks at which requests begin: few, that they meet, and on both sides of leaves' ends."""

_REACH = 5
"""Blocks of one request, at most."""

BLOCKS = sorted({place + n for place in PLACES for n in range(_REACH)})


class ViolationError(AssertionError):
    """A rule was broken."""


def _nothing() -> None:
    """Take a moment."""


class SlowDevice(MemoryDevice):
    """Carries requests out block by block, and lets some of them fail."""

    def __init__(self, size_bytes: int, chance: random.Random) -> None:
        super().__init__(size_bytes)
        self.immediate = False
        self.chance = chance
        self.failing = 0.0
        """How many of the requests fail."""

    async def _moments(self, offset: int, length: int, part: Callable[[int, int], None]) -> None:
        """Do `part` for each block of a range, each at a moment of its own."""
        fails_at = self.chance.randrange(5) if self.chance.random() < self.failing else -1
        await blocking(_nothing)
        end, at = offset + length, offset
        while at < end:
            stop = min(end, at - at % BLOCK_SIZE + BLOCK_SIZE)
            if fails_at == 0:
                raise FailedError("for a test")
            fails_at -= 1
            part(at, stop - at)
            if self.chance.random() < 0.5:
                await blocking(_nothing)
            at = stop
        if fails_at >= 0:
            raise FailedError("for a test")

    async def read(self, offset: int, into: memoryview) -> None:
        def part(at: int, length: int) -> None:
            self._read(at, into[at - offset : at - offset + length])

        await self._moments(offset, len(into), part)

    async def write(self, offset: int, data: memoryview) -> None:
        def part(at: int, length: int) -> None:
            self._write(at, data[at - offset : at - offset + length])

        await self._moments(offset, len(data), part)

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        def part(at: int, count: int) -> None:
            self._write(at, memoryview(bytes(count)))

        await self._moments(offset, length, part)

    async def trim(self, offset: int, length: int) -> None:
        await self._moments(offset, length, self._trim)

    def now(self, offset: int, length: int) -> bytes:
        """Return what it holds."""
        into = bytearray(length)
        self._read(offset, memoryview(into))
        return bytes(into)


class Disk:
    """The local disk as a power cut sees it: what was not synced may be gone, or back."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._unsynced: dict[int, list[tuple[int, int]]] = {}
        """Ranges of files, by inode."""
        self._maps: dict[Path, bytes] = {}
        """As they are on the disk."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of what the cache asks of the system."""
        disk, write, sync = self, CacheFile._write, CacheFile.sync

        def tracked_write(file: CacheFile, offset: int, data: memoryview) -> None:
            ranges = disk._unsynced.setdefault(os.fstat(file.first_descriptor).st_ino, [])
            ranges.append((offset, len(data)))
            write(file, offset, data)

        def tracked_sync(file: CacheFile) -> None:
            disk._unsynced.pop(os.fstat(file.first_descriptor).st_ino, None)
            sync(file)

        def sync_directory(path: Path) -> None:
            disk._maps = {one: one.read_bytes() for one in path.glob("*" + mapfile.SUFFIX)}

        def identity_of(found: os.stat_result) -> Identity:
            return Identity(found.st_ino, found.st_size, 0, 0)  # a cut shows in the times

        patch.setattr(CacheFile, "_write", tracked_write)
        patch.setattr(CacheFile, "sync", tracked_sync)
        patch.setattr(mapfile, "sync_directory", sync_directory)
        patch.setattr(cachefile, "identity_of", identity_of)
        patch.setattr(directory, "identity_of", identity_of)

    def cut(self, root: Path) -> None:
        """Lose some of what was not synced."""
        for path in root.glob("*.blocks"):
            with path.open("r+b") as file:
                for offset, length in self._unsynced.get(path.stat().st_ino, []):
                    if self._chance.random() < 0.5:
                        file.seek(offset)
                        file.write(bytes(length))
        if self._chance.random() < 0.8:
            for path in root.glob("*" + mapfile.SUFFIX):
                path.unlink()
            for path, content in self._maps.items():
                path.write_bytes(content)
        self._unsynced.clear()
        self._maps = {one: one.read_bytes() for one in root.glob("*" + mapfile.SUFFIX)}


class World:
    """One volume, and one machine that has it most of the time."""

    def __init__(self, seed: int, root: Path, mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
        self._buried_before = len(GRAVEYARD)
        self.chance = random.Random(seed)
        self.root = root
        self.below = SlowDevice(SIZE_BYTES, self.chance)
        self.history = History(SIZE_BYTES)
        self.frozen = self.chance.random() < 0.25
        """It is a snapshot."""
        self.places, self.reach = PLACES, _REACH
        if self.chance.random() < 0.4:  # all of them meet
            self.places, self.reach = [LEAF_BLOCKS - 1], 2
        self.epoch = 0
        self._last = self._another_range()
        self.values = 0
        self.hits = 0
        """Blocks that the lane has read."""
        self.kept = 0
        """Blocks that were hits right after an opening."""
        self._patch = pytest.MonkeyPatch()
        self.disk = Disk(self.chance)
        self.disk.install(self._patch)
        mutate(self._patch)
        self.uneven = self.chance.random() < 0.5
        """Some operations take far longer than others."""
        self.open()

    # -- openings and ends ---------------------------------------------------------------------

    def open(self) -> None:
        """Take the volume."""
        kind = UnevenScheduler if self.uneven else Scheduler
        self.scheduler = kind(random.Random(self.chance.random()))
        if self.frozen and not self.epoch:
            for _ in range(2 * len(PLACES)):
                self._write_below()
        self.cache = CacheDirectory.open(self.root, 64 * MIB, self.scheduler.spawn)
        self.epoch += 1
        opened: list[CachedDevice | None] = []

        async def begin() -> None:
            if self.frozen:
                opened.append(await self.cache.open_snapshot(self.below, "one"))
            else:
                opened.append(await self.cache.open_volume(self.below, "one", self.epoch))

        self.start(begin())
        self.scheduler.run()
        assert opened[0] is not None
        self.device = opened[0]
        self.kept += sum(self.hit(block) is not None for block in BLOCKS)
        self.judge()

    def close(self) -> None:
        """Give the volume back."""
        self.finish()
        self.start(self.cache.close_device(self.device))
        self.finish()
        self.cache.release()

    def reopen(self, *, others: bool = False, cut: bool = False) -> None:
        """Close it and take it again, when others have had it, or the power was cut."""
        self.close()
        self._between(others=others, cut=cut)

    def die(self, *, others: bool = False, cut: bool = False) -> None:
        """Have the process killed, or the machine, and take the volume again."""
        self.scheduler.die()
        os.close(self.cache._lock)
        self.device.blocks.file.close()
        self._between(others=others, cut=cut)

    def _between(self, *, others: bool, cut: bool) -> None:
        if cut:
            self.disk.cut(self.root)
        if others and not self.frozen:
            self.epoch += 1
            for _ in range(3):
                self._write_below()
        self._now = max(self._now, self.scheduler.now)
        self.open()

    def _write_below(self) -> None:
        """Write without the cache."""
        offset, length = self.range()
        data = self.value(length)
        spans = self.history.begin(offset, data, self.tick())
        self.below._write(offset, memoryview(data))
        for span in spans:
            span.end = self.tick()

    def finish(self) -> None:
        """Let everything come to its end."""
        self.scheduler.run()
        if self.scheduler.errors:
            raise self.scheduler.errors[0]
        assert not self.device.blocks._operations, "an operation was left open"

    def dispose(self) -> None:
        """End the world, whatever state it is in."""
        self.scheduler.die()
        close_buried(self._buried_before)
        self._patch.undo()
        self.device.blocks.file.close()
        with suppress(OSError):
            os.close(self.cache._lock)

    # -- time ----------------------------------------------------------------------------------

    _now = 0

    def tick(self) -> int:
        """Return a moment that is later than all before."""
        self.scheduler.now = max(self.scheduler.now, self._now) + 1
        self._now = self.scheduler.now
        return self._now

    def start(self, steps: Steps[None]) -> None:
        self.scheduler.start(steps, lambda: None)

    def advance(self, events: int) -> None:
        """Let so many events happen, and judge after each."""
        for _ in range(events):
            self.tick()
            ready = [t for t in self.scheduler.tasks if t.resume is not None or t.call is not None]
            if not ready:
                return
            self.scheduler.advance(self.scheduler.choose(ready))
            if self.scheduler.errors:
                raise self.scheduler.errors[0]
            self.judge()

    # -- requests --------------------------------------------------------------------------------

    def range(self) -> tuple[int, int]:
        """Choose what a request is about, its offset and length: often the same again."""
        if self.chance.random() > 0.4:
            self._last = self._another_range()
        return self._last

    def _another_range(self) -> tuple[int, int]:
        first = self.chance.choice(self.places)
        if self.chance.random() < 0.7:
            return first * BLOCK_SIZE, self.chance.randint(1, self.reach) * BLOCK_SIZE
        start = first * BLOCK_SIZE + SECTOR * self.chance.randrange(8)
        return start, SECTOR * self.chance.randint(1, 8 * (self.reach - 1))

    def value(self, length: int) -> bytes:
        """Return data that nothing else has; sometimes with blocks of zeros."""
        self.values += 1
        data = self.values.to_bytes(4, "big") * (length // 4)
        if self.chance.random() < 0.2:
            data = data[: length // 2] + bytes(length - length // 2)
        return data

    def read(self) -> None:
        self.start(self._read(*self.range()))

    async def _read(self, offset: int, length: int) -> None:
        began, into = self.tick(), memoryview(bytearray(length))
        with suppress(FailedError):
            if not self.device.try_read(offset, into):
                await self.device.read(offset, into)
            self.check(bytes(into), began, offset)

    def write(self) -> None:
        offset, length = self.range()
        self.start(self._change(offset, self.value(length), self.device.write, write=True))

    def zero(self) -> None:
        offset, length = self.range()

        async def zero(offset: int, data: memoryview) -> None:
            await self.device.zero(offset, len(data), allocate=False)

        self.start(self._change(offset, bytes(length), zero))

    def trim(self) -> None:
        offset, length = self.range()
        first = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
        whole = (offset + length) // BLOCK_SIZE * BLOCK_SIZE - first

        async def trim(_: int, _data: memoryview) -> None:
            await self.device.trim(offset, length)

        if whole > 0:
            self.start(self._change(first, bytes(whole), trim))

    async def _change(
        self,
        offset: int,
        data: bytes,
        change: Callable[[int, memoryview], Steps[None]],
        write: bool = False,
    ) -> None:
        spans = self.history.begin(offset, data, self.tick())
        mutable = bytearray(data)
        try:
            await change(offset, memoryview(mutable))
        except FailedError:
            return
        finally:
            mutable[:] = b"!" * len(mutable)  # whoever keeps it must have a copy
        for span in spans:
            span.end = self.tick()

    def flush(self) -> None:
        self.start(self.device.flush())

    def evict(self) -> None:
        """Evict some leaves, though there is room."""
        count = self.chance.randint(1, 3)
        self.start(self._evict(count))

    async def _evict(self, count: int) -> None:
        numbers = [number for _, number in self.cache.space.oldest(count)]
        if numbers:
            await self.device.blocks.evict(numbers)

    def cool(self) -> None:
        """Hide leaves from the lane."""
        self.cache.space._cool_some(1)

    # -- the lane --------------------------------------------------------------------------------

    def hit(self, block: int) -> bytes | None:
        """Read a block as the lane does, without asking, or as it will once its leaf is not hidden
        any more. None if it is no hit."""
        view, leaf = self.device.fast_view(), self.device.blocks.map.find(block // LEAF_BLOCKS)
        slot = None if leaf is None else leaf[block % LEAF_BLOCKS]
        if slot == HOLE_SLOT:
            return bytes(BLOCK_SIZE)
        if slot != FILE_SLOT:
            return None
        layer = view.slots[slot]
        assert layer is not None
        return os.pread(layer.first_descriptor, BLOCK_SIZE, block * BLOCK_SIZE)

    def missed_read(self) -> None:
        """Read a block as the lane does that finds its page missing: in a thread."""
        block = self.chance.choice(self.places) + self.chance.randrange(self.reach)
        view = self.device.fast_view()
        leaf = view.leaves.get(block // LEAF_BLOCKS)
        if leaf is not None and leaf[block % LEAF_BLOCKS] == FILE_SLOT:
            steps = self._missed(block)
            self.start(steps)
            # The lane begins it before anything else happens.
            task = self.scheduler.tasks[-1]
            assert task.steps is steps
            self.scheduler.advance(task)

    async def _missed(self, block: int) -> None:
        began, into = self.tick(), memoryview(bytearray(BLOCK_SIZE))
        fd, offset = self.device.blocks.file.first_descriptor, block * BLOCK_SIZE

        def read() -> None:
            assert os.preadv(fd, (into,), offset) == BLOCK_SIZE

        parts = [(FILE_SLOT, offset, offset, BLOCK_SIZE, 0)]
        try:
            await self.device.read_files(parts, into, blocking(read))
        except BockdError as error:
            raise ViolationError(f"a read of the file has failed: {error}") from error
        self.check(bytes(into), began, offset)

    def request(self, kind: str) -> None:
        """Begin a request of a kind; a read, if it must not be changed."""
        getattr(self, "read" if self.frozen and kind in self.CHANGES else kind)()

    # -- rules -----------------------------------------------------------------------------------

    def check(self, content: bytes, began: int, offset: int) -> None:
        """Judge what a read has returned."""
        wrong = self.history.violations(content, began, self.tick(), offset)
        if wrong:
            raise ViolationError(f"sectors {wrong} read from {began} to {self._now}")

    def judge(self) -> None:
        """Judge what a hit would be now."""
        for block in BLOCKS:
            found = self.hit(block)
            if found is not None:
                self.hits += 1
                if found != self.below.now(block * BLOCK_SIZE, BLOCK_SIZE):
                    raise ViolationError(f"block {block} is a hit, and is not what it should be")

    # -- random lives ----------------------------------------------------------------------------

    REQUESTS = (
        *("read", "read", "read", "write", "write", "write", "trim", "zero", "flush"),
        *("missed_read", "missed_read"),
    )
    CHANGES = ("write", "trim", "zero")
    ENDS = ("reopen", "reopen", "die")

    def play(self, steps: int) -> None:
        """Live for some steps."""
        for _ in range(steps):
            kind = self.chance.random()
            if kind < 0.55:
                self.request(self.chance.choice(self.REQUESTS))
            elif kind < 0.60:
                self.evict()
            elif kind < 0.62:
                self.cool()
            elif kind < 0.65:
                self.below.failing = self.chance.choice((0.0, 0.0, 0.3))
            elif kind < 0.68:
                end = getattr(self, self.chance.choice(self.ENDS))
                others = self.chance.random() < 0.3
                end(others=others, cut=self.chance.random() < 0.3)
            self.advance(self.chance.choice((0, 1, 2, 5, 20)))
            self.judge()
        self.finish()
        self.judge()
