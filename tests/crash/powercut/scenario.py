"""A pool's random history, over many lives that end in power cuts, deaths or cleanly.

Several volumes are written, trimmed, zeroed, flushed, checkpointed, snapshotted, cloned, reverted,
extended and deleted, all interleaved (tests/drivers/local/schedule.py), while background work
punches, merges and unlinks. The power fails at a change of the disk chosen before; a quarter of the
recoveries are cut too. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bockd.drivers.local.format.checksums import all_damage
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import Pool
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Steps, run_inline
from tests.crash.powercut.known import (
    SECTOR,
    KnownSnapshot,
    KnownVolume,
    There,
    World,
    history_of,
)
from tests.crash.powercut.mounted import PowerCutDisk
from tests.drivers.local.process import close_everything_below, die
from tests.drivers.local.schedule import Scheduler, Task

SIZE = MIB + 128 * 1024
"""Two leaves of the block map, the second one small."""

HOT = 8 * BLOCK_SIZE
OPERATIONS = 70
MAX_VOLUMES = 3
MAX_SNAPSHOTS = 5

LIKELY_CHANGES = (60, 300, 900)
"""Of a life, on the disk: the power fails within a random one of them."""

OPENING_CHANGES = 40
"""About what opening a pool with recovery makes."""


class PowerFailedError(Exception):
    """In the middle of what goes on."""


@dataclass
class Counts:
    """What a run has seen."""

    cuts: int = 0
    recoveries_cut: int = 0
    kills: int = 0


@dataclass
class UnevenScheduler(Scheduler):
    """Some operations take far longer than others."""

    paces: dict[Task, float] = field(default_factory=dict)

    def choose(self, ready: list[Task]) -> Task:
        for task in ready:
            if task not in self.paces:
                self.paces[task] = self.random.choice((0.03, 0.3, 1.0))
        return self.random.choices(ready, [self.paces[task] for task in ready])[0]


class Run:
    """One random history."""

    def __init__(self, disk: PowerCutDisk, seed: int) -> None:
        self.disk = disk
        self.seed = seed
        self.random = random.Random(seed)
        self.world = World()
        self.counts = Counts()
        self.values = 0
        self.now = 0
        self.boot = 1
        self.life = disk.new()
        self.dead: str | None = None
        """How the last life ended: "cut", "kill", or None for a clean end."""

    # -- lives -------------------------------------------------------------------------------

    def play(self, cuts: int) -> Counts:
        """Live until the power has failed so many times."""
        try:
            while self.counts.cuts < cuts:
                self.live()
            self.disk.arm(self.life, 0)
            self.open()
            self.die()
        except (AssertionError, BockdError, OSError) as error:
            error.add_note(f"seed {self.seed}, after {self.counts}")
            raise
        finally:
            self.disk.drop(self.life)
        return self.counts

    def live(self) -> None:
        """One life, from its start to its end."""
        recovery_dies = self.dead is not None and self.random.random() < 0.25
        self.disk.arm(self.life, self.random.randint(1, OPENING_CHANGES) if recovery_dies else 0)
        self.open()
        if self.disk.cut:
            self.die()
            self.counts.recoveries_cut += 1
            self.cut()
            return
        self.confirm()
        how = self.random.choice(("cut", "cut", "cut", "kill"))
        after = self.random.randint(1, self.random.choice(LIKELY_CHANGES))
        # What is wrong with a sync shows best just after one.
        beyond = self.random.choice((None, 0, 0, 1, 3, 8))
        self.disk.arm(self.life, after if how == "cut" else 0, beyond)
        try:
            self.work(OPERATIONS if how == "cut" else self.random.randrange(OPERATIONS))
            if how == "cut":
                self.finish()
        except PowerFailedError:
            how = "cut"
        self.now = self.scheduler.now + 1
        self.scheduler.die()
        self.die()
        if how == "kill":
            self.counts.kills += 1
            self.dead = "kill" if self.dead != "cut" else self.dead
        else:
            self.cut()

    def die(self) -> None:
        """As the kernel ends a process: what operations under way had open is closed too."""
        die(self.pool)
        close_everything_below(self.path)

    @property
    def path(self) -> Path:
        return self.disk.path(self.life)

    def cut(self) -> None:
        """What may be left of this life is the next one."""
        self.counts.cuts += 1
        life, self.life = self.life, self.disk.restore(self.life, f"{self.seed}.{self.counts.cuts}")
        self.disk.drop(life)
        self.boot += 1
        self.dead = "cut"

    def open(self) -> None:
        """Open the pool, recover it, and compare it with what is known; unless there is a cut
        meanwhile, to no effect on what is known."""
        self.scheduler = UnevenScheduler(self.random, now=self.now)
        self.pool = Pool.open(self.path, self.scheduler.spawn, boot=f"{self.boot:036}")
        self.reclaimer = Reclaimer(self.pool.registry)
        self.scrubber = Scrubber(self.pool.registry)
        self.pool.registry.clock = lambda: 1.0
        self.pool.registry.on_garbage = lambda: self.scheduler.spawn(self.reclaimer.run())
        run_inline(self.pool.registry.recover_volumes())
        assert not self.pool.registry.refusals, self.pool.registry.refusals
        if not self.disk.cut:
            self.compare()

    def compare(self) -> None:
        """D1 to D4."""
        report = check_open_pool(self.pool.registry.store, live=frozenset(), repair=False)
        assert report.clean, report.problems
        self.verify_checksums()
        with self.pool.registry.catalogue() as catalogue:
            volumes = {volume.name: volume for volume in catalogue.volumes()}
            snapshots = {snapshot.name: snapshot for snapshot in catalogue.snapshots()}
        self.world.verify_listing(set(volumes), set(snapshots))
        self.contents: dict[str, bytes] = {}
        for name, snapshot in snapshots.items():
            known = self.world.snapshots[name]
            known.id = snapshot.id
            reader = run_inline(self.pool.registry.use_snapshot(snapshot.id)).snapshot
            self.contents[name] = content_of(reader)
            self.pool.registry.leave_snapshot(snapshot.id)
            known.verify(self.contents[name], self.now)
        for name, volume in volumes.items():
            opened = self.world.volumes[name]
            opened.id = volume.id
            device = run_inline(self.pool.registry.use_volume(volume.id)).volume
            self.contents[name] = content_of(device)
            since = opened.flushed if self.dead == "cut" else self.now
            opened.verify(self.contents[name], since, self.now)

    def verify_checksums(self) -> None:
        """None convicts an innocent block."""
        run_inline(self.scrubber.begin_pass())
        while run_inline(self.scrubber.verify_on()).more:
            pass
        with self.pool.index.reading() as txn:
            assert not all_damage(txn)

    def confirm(self) -> None:
        """What was compared is what there is. All volumes are open."""
        world, contents = self.world, self.contents
        world.volumes = {n: v for n, v in world.volumes.items() if n in contents}
        world.snapshots = {n: s for n, s in world.snapshots.items() if n in contents}
        for name, volume in world.volumes.items():
            volume.there = There.YES
            volume.confirm(contents[name], durable=self.dead == "cut")
        for name, snapshot in world.snapshots.items():
            snapshot.there, snapshot.users = There.YES, 0
            snapshot.content = contents[name]
        self.dead = None

    # -- operations --------------------------------------------------------------------------

    def work(self, operations: int) -> None:
        """Begin operations at random, and let them go on."""
        for _ in range(operations):
            self.begin()
            self.advance(self.random.randrange(10))

    def finish(self) -> None:
        """Let everything come to its end; the power fails at the latest then."""
        while self.scheduler.tasks:
            self.advance(1)

    def advance(self, events: int) -> None:
        for _ in range(events):
            self.scheduler.run(1)
            if self.disk.cut:
                raise PowerFailedError
            for error in self.scheduler.errors:
                raise error

    def begin(self) -> None:
        usable = self.world.usable()
        if not usable or self.random.random() < 0.04:
            self.make()
            return
        kinds = {
            self.write: 8.0,
            self.fast: 8.0,
            self.trim: 3.0,
            self.zero: 3.0,
            self.flush: 3.0,
            self.burst: 1.5,
            self.write_through: 2.0,
            self.checkpoint: 1.0,
            self.snapshot: 1.5,
            self.delete_snapshot: 1.0,
            self.revert: 0.5,
            self.extend: 0.4,
            self.delete: 0.15,
            self.reopen: 0.4,
            self.scrub: 1.5,
        }
        operation = self.random.choices(list(kinds), list(kinds.values()))[0]
        operation(self.random.choice(usable))
        if self.disk.cut:
            raise PowerFailedError

    def start(
        self, volume: KnownVolume, steps: Steps[None], acknowledged: Callable[[], None]
    ) -> None:
        """An operation, acknowledged when it ends with the power on."""

        def end() -> None:
            volume.active -= 1
            if not self.disk.cut:
                acknowledged()

        volume.active += 1
        self.scheduler.start(steps, end)

    def device(self, volume: KnownVolume) -> Volume:
        assert volume.id is not None
        return self.pool.registry.volumes[volume.id].volume

    def span(self, volume: KnownVolume, alignment: int, most: int) -> tuple[int, int]:
        """Half of all operations meet in one small place."""
        room = HOT if self.random.random() < 0.5 else volume.size
        length = self.random.randrange(1, min(room, most) // alignment + 1) * alignment
        return self.random.randrange((room - length) // alignment + 1) * alignment, length

    def data(self, length: int) -> bytes:
        """Each sector names the write and its own place; but one write in five has zeros, in all of
        it or in a part."""
        self.values += 1
        value = self.values.to_bytes(8, "big")
        data = bytearray(
            b"".join(
                (value + at.to_bytes(8, "big")) * (SECTOR // 16) for at in range(length // SECTOR)
            )
        )
        if self.random.random() < 0.2:
            first = self.random.choice((0, self.random.randrange(length // SECTOR))) * SECTOR
            end = self.random.choice((length, min(length, first + 2 * BLOCK_SIZE)))
            # Repeated, as in tests/crash/powercut/engine.py.
            data[first:end] = b"\0" * (end - first)
        return bytes(data)

    def tick(self) -> int:
        self.scheduler.now += 1
        return self.scheduler.now

    def write(self, volume: KnownVolume) -> None:
        most = self.random.choice((SECTOR, 2 * BLOCK_SIZE, 200_000))
        offset, length = self.span(volume, SECTOR, most)
        data = self.data(length)
        spans = volume.history.begin(offset, data, self.tick())

        def ended() -> None:
            for span in spans:
                span.end = self.scheduler.now

        self.start(volume, self.device(volume).write(offset, memoryview(data)), ended)

    def fast(self, volume: KnownVolume) -> None:
        """As the server does it when nothing is in the way: several, and one commit."""
        began = self.tick()
        device = self.device(volume)
        written = []
        for _ in range(self.random.randrange(1, 5)):
            alignment = self.random.choice((SECTOR, BLOCK_SIZE))
            offset, length = self.span(volume, alignment, 3 * BLOCK_SIZE)
            data = self.data(length)
            if device.try_write(offset, memoryview(data)):
                # One after the other, and all acknowledged after the last.
                written.append(volume.history.begin(offset, data, began))
                began = self.tick()
        device.commit()
        ended = self.tick()
        if not self.disk.cut:
            for spans in written:
                for span in spans:
                    span.end = ended

    def write_through(self, volume: KnownVolume) -> None:
        """A write with FUA: a write, and a flush that covers it."""
        offset, length = self.span(volume, SECTOR, 2 * BLOCK_SIZE)
        data = self.data(length)
        spans = volume.history.begin(offset, data, self.tick())
        device = self.device(volume)
        written = 0

        async def steps() -> None:
            nonlocal written
            await device.write(offset, memoryview(data))
            written = self.tick()
            await device.flush()

        def ended() -> None:
            for span in spans:
                span.end = written
            volume.flushed = max(volume.flushed, written + 1)

        self.start(volume, steps(), ended)

    def trim(self, volume: KnownVolume) -> None:
        offset, length = self.span(volume, BLOCK_SIZE, 300_000)
        self.erase(volume, offset, self.device(volume).trim(offset, length), length)

    def zero(self, volume: KnownVolume) -> None:
        offset, length = self.span(volume, SECTOR, 100_000)
        allocate = self.random.random() < 0.3
        steps = self.device(volume).zero(offset, length, allocate=allocate)
        self.erase(volume, offset, steps, length)

    def erase(self, volume: KnownVolume, offset: int, steps: Steps[None], length: int) -> None:
        spans = volume.history.begin(offset, bytes(length), self.tick())

        def ended() -> None:
            for span in spans:
                span.end = self.scheduler.now

        self.start(volume, steps, ended)

    def flush(self, volume: KnownVolume) -> None:
        began = self.tick()

        def ended() -> None:
            volume.flushed = max(volume.flushed, began)

        self.start(volume, self.device(volume).flush(), ended)

    def burst(self, volume: KnownVolume) -> None:
        """Flushes and writes on each other's heels, from several clients."""
        for _ in range(self.random.randrange(2, 5)):
            self.flush(volume)
            self.advance(self.random.randrange(8))
            self.random.choice((self.write, self.fast))(volume)
            self.advance(self.random.randrange(4))
        self.flush(volume)

    def checkpoint(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        self.start(volume, self.pool.registry.checkpoint(volume.id), lambda: None)

    def scrub(self, volume: KnownVolume) -> None:
        """A piece of the first reading, and of a pass; who reads a volume waits for neither."""

        async def steps() -> None:
            await self.scrubber.read_on()
            if self.random.random() < 0.3:
                await self.scrubber.begin_pass()
            await self.scrubber.verify_on()

        self.start(volume, steps(), lambda: None)

    def extend(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        if volume.growing or volume.size >= 2 * SIZE:
            return
        volume.growing = volume.size + self.random.randrange(1, 40) * BLOCK_SIZE

        async def steps() -> None:
            assert volume.id is not None
            await self.pool.extend_volume(volume.id, volume.growing)

        def ended() -> None:
            more = history_of(bytes(volume.growing - volume.size))
            volume.history.sectors += more.sectors
            volume.growing = 0

        self.start(volume, steps(), ended)

    # -- snapshots and clones ----------------------------------------------------------------

    def snapshot(self, volume: KnownVolume) -> None:
        if len(self.world.snapshots) >= MAX_SNAPSHOTS or volume.growing:
            return
        self.values += 1
        known = KnownSnapshot(
            f"snapshot-{self.values}", volume.history, volume.size, began=self.tick()
        )
        self.world.snapshots[known.name] = known

        async def steps() -> None:
            assert volume.id is not None
            known.id = (await self.pool.create_snapshot(volume.id, known.name)).id
            if self.disk.cut:
                return
            known.there, known.ended = There.YES, self.tick()
            reader = (await self.pool.registry.use_snapshot(known.id)).snapshot
            found = bytearray(reader.size_bytes)
            await reader.read(0, memoryview(found))
            self.pool.registry.leave_snapshot(known.id)
            known.verify(bytes(found), self.tick())
            known.content = bytes(found)

        self.start(volume, steps(), lambda: None)

    def idle_snapshot(self) -> KnownSnapshot | None:
        ready = [s for s in self.world.ready() if not s.users]
        return self.random.choice(ready) if ready else None

    def delete_snapshot(self, volume: KnownVolume) -> None:
        snapshot = self.idle_snapshot()
        if snapshot is None:
            return
        snapshot.there = There.GOING
        assert snapshot.id is not None
        steps = self.pool.delete_snapshot(snapshot.id)

        def ended() -> None:
            del self.world.snapshots[snapshot.name]

        self.start(volume, steps, ended)

    def make(self) -> None:
        """A blank volume or a clone."""
        if len(self.world.volumes) >= MAX_VOLUMES:
            return
        source = self.idle_snapshot() if self.random.random() < 0.5 else None
        content = bytes(SIZE) if source is None or source.content is None else source.content
        self.values += 1
        volume = KnownVolume(f"volume-{self.values}", history_of(content))
        self.world.volumes[volume.name] = volume
        if source:
            source.users += 1

        async def steps() -> None:
            made = await self.pool.create_volume(
                volume.name, None if source else SIZE, source.id if source else None
            )
            if self.disk.cut:
                return
            volume.id = made.id
            await self.pool.registry.use_volume(made.id)
            if source:
                source.users -= 1

        def ended() -> None:
            volume.there = There.YES

        self.start(volume, steps(), ended)

    # -- operations that need a volume for themselves -----------------------------------------

    def alone(self, volume: KnownVolume) -> None:
        """Let what goes on with it end, and disconnect."""
        assert volume.id is not None
        volume.reserved = True
        while volume.active:
            self.advance(1)
        self.pool.registry.leave_volume(volume.id)

    async def use_again(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        await self.pool.registry.use_volume(volume.id)
        volume.reserved = False

    def revert(self, volume: KnownVolume) -> None:
        if self.disk.cut:
            return
        own = [s for s in self.world.ready() if s.history is volume.history and not s.users]
        if not own or volume.growing:
            return
        snapshot = self.random.choice(own)
        snapshot.users += 1
        self.alone(volume)
        assert snapshot.content is not None
        volume.instead = snapshot.content.ljust(volume.size, b"\0")

        async def steps() -> None:
            assert volume.id is not None
            assert snapshot.id is not None
            await self.pool.revert_volume(volume.id, snapshot.id)
            if self.disk.cut:
                return
            assert volume.instead is not None
            # The same object: it is what other snapshots know their volume by.
            volume.history.sectors[:] = history_of(volume.instead).sectors
            volume.flushed, volume.instead = -1, None
            snapshot.users -= 1
            await self.use_again(volume)

        self.start(volume, steps(), lambda: None)

    def reopen(self, volume: KnownVolume) -> None:
        self.alone(volume)

        async def steps() -> None:
            assert volume.id is not None
            await self.pool.registry.close_idle_volume(volume.id)
            await self.use_again(volume)

        self.start(volume, steps(), lambda: None)

    def delete(self, volume: KnownVolume) -> None:
        self.alone(volume)
        volume.there = There.GOING
        assert volume.id is not None
        steps = self.pool.delete_volume(volume.id)

        def ended() -> None:
            del self.world.volumes[volume.name]

        self.start(volume, steps, ended)


def content_of(reader: Reader) -> bytes:
    found = bytearray(reader.size_bytes)
    run_inline(reader.read(0, memoryview(found)))
    return bytes(found)
