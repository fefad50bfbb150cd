"""What goes on in a pool during one life: operations chosen at random, begun while others go on.

The power fails in the middle of it; what was acknowledged before is kept in what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Steps
from tests.crash.lane import change_in_lane
from tests.crash.powercut.known import (
    SECTOR,
    KnownSnapshot,
    KnownVolume,
    There,
    World,
    history_of,
)
from tests.crash.powercut.mounted import PowerCutDisk
from tests.drivers.local.schedule import Span, Task, UnevenScheduler

SIZE = MIB + 128 * 1024
"""Two leaves of the block map, the second one small."""

HOT = 8 * BLOCK_SIZE
MAX_VOLUMES = 3
MAX_SNAPSHOTS = 5


class PowerFailedError(Exception):
    """In the middle of what goes on."""


@dataclass
class Draw:
    """What a history draws at random, from its beginning to its end."""

    random: Random
    values: int = 0
    """Names and data that were given out."""

    def value(self) -> int:
        """Return a number that was not given out before."""
        self.values += 1
        return self.values

    def span(self, volume: KnownVolume, alignment: int, most: int) -> tuple[int, int]:
        """Return an offset and a length. Half of all operations meet in one small place."""
        room = HOT if self.random.random() < 0.5 else volume.size
        length = self.random.randrange(1, min(room, most) // alignment + 1) * alignment
        return self.random.randrange((room - length) // alignment + 1) * alignment, length

    def data(self, length: int) -> bytes:
        """Make data whose sectors name the write and their own place; but one write in five has
        zeros, in all of it or in a part."""
        value = self.value().to_bytes(8, "big")
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


@dataclass
class Operations:
    """Operations on an open pool, and what is known of what they do.

    Raises PowerFailedError when the power is found to have failed.
    """

    disk: PowerCutDisk
    pool: LocalPool
    scheduler: UnevenScheduler
    scrubber: Scrubber
    settler: Settler | None
    """None in histories without packed heads."""
    world: World
    draw: Draw
    settling: bool = False
    """A piece of it is under way."""

    def work(self, operations: int) -> None:
        """Begin operations at random, and let them go on."""
        for _ in range(operations):
            self.begin()
            self.advance(self.draw.random.randrange(10))

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
        if not usable or self.draw.random.random() < 0.04:
            self.make()
            return
        kinds = {
            self.write: 8.0,
            self.fast: 8.0,
            self.in_lane: 8.0,
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
        if self.settler is not None:
            kinds[self.settle] = 4.0
        operation = self.draw.random.choices(list(kinds), list(kinds.values()))[0]
        operation(self.draw.random.choice(usable))
        if self.disk.cut:
            raise PowerFailedError

    def start(
        self, volume: KnownVolume, steps: Steps[None], acknowledged: Callable[[], None]
    ) -> Task:
        """An operation, acknowledged when it ends with the power on."""

        def end() -> None:
            volume.active -= 1
            if not self.disk.cut:
                acknowledged()

        volume.active += 1
        return self.scheduler.start(steps, end)

    def device(self, volume: KnownVolume) -> Volume:
        assert volume.id is not None
        return self.pool.registry.volumes[volume.id].volume

    def tick(self) -> int:
        self.scheduler.now += 1
        return self.scheduler.now

    def write(self, volume: KnownVolume) -> None:
        most = self.draw.random.choice((SECTOR, 2 * BLOCK_SIZE, 200_000))
        offset, length = self.draw.span(volume, SECTOR, most)
        data = self.draw.data(length)
        spans = volume.history.begin(offset, data, self.tick())
        steps = self.device(volume).write(offset, memoryview(data))
        self.start(volume, steps, self._end(spans))

    def fast(self, volume: KnownVolume) -> None:
        """As the server does it when nothing is in the way: several writes and trims, and one
        commit."""
        began = self.tick()
        device = self.device(volume)
        written = []
        for _ in range(self.draw.random.randrange(1, 5)):
            alignment = self.draw.random.choice((SECTOR, BLOCK_SIZE))
            offset, length = self.draw.span(volume, alignment, 3 * BLOCK_SIZE)
            data = self.draw.data(length)
            done = device.try_write(offset, memoryview(data))
            if self.draw.random.random() < 0.015:
                if done:
                    written.append(volume.history.begin(offset, data, began))
                    began = self.tick()
                offset, length = self.whole_leaves(volume)
                data, done = bytes(length), device.try_trim(offset, length)
            if done:
                # One after the other, and all acknowledged after the last.
                written.append(volume.history.begin(offset, data, began))
                began = self.tick()
        device.commit()
        ended = self.tick()
        if not self.disk.cut:
            for spans in written:
                for span in spans:
                    span.end = ended

    def in_lane(self, volume: KnownVolume) -> None:
        """Writes and trims as the server does them in the fast lane. What that hands back is done
        after it."""
        changes: list[tuple[int, bytes | int]] = []
        for _ in range(self.draw.random.randrange(1, 5)):
            trims = self.draw.random.random() < 0.2
            alignment = self.draw.random.choice((SECTOR, BLOCK_SIZE, BLOCK_SIZE))
            alignment = BLOCK_SIZE if trims else alignment
            offset, length = self.draw.span(volume, alignment, 3 * BLOCK_SIZE)
            changes.append((offset, length if trims else self.draw.data(length)))
        began = self.tick()
        spans = [
            volume.history.begin(offset, bytes(what) if isinstance(what, int) else what, began)
            for offset, what in changes
        ]
        device = self.device(volume)
        acknowledged = change_in_lane(device, changes)
        ended = self.tick()
        for number, (offset, what) in enumerate(changes):
            if number not in acknowledged:
                steps = (
                    device.trim(offset, what)
                    if isinstance(what, int)
                    else device.write(offset, memoryview(what))
                )
                self.start(volume, steps, self._end(spans[number]))
            elif not self.disk.cut:
                for span in spans[number]:
                    span.end = ended

    def _end(self, spans: list[Span]) -> Callable[[], None]:
        def ended() -> None:
            for span in spans:
                span.end = self.scheduler.now

        return ended

    def write_through(self, volume: KnownVolume) -> None:
        """A write with FUA: a write, and a flush that covers it."""
        offset, length = self.draw.span(volume, SECTOR, 2 * BLOCK_SIZE)
        data = self.draw.data(length)
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
        offset, length = self.draw.span(volume, BLOCK_SIZE, 300_000)
        if self.draw.random.random() < 0.08:  # seldom: what is gone shows no other fault
            offset, length = self.whole_leaves(volume)
        self.erase(volume, offset, self.device(volume).trim(offset, length), length)

    def whole_leaves(self, volume: KnownVolume) -> tuple[int, int]:
        """Return an offset and a length that cover whole leaves, which are whole groups here. The
        last one ends with the volume."""
        offset = self.draw.random.choice((0, 0, MIB))
        return offset, self.draw.random.choice((MIB, volume.size)) - offset or volume.size - offset

    def zero(self, volume: KnownVolume) -> None:
        allocate = self.draw.random.random() < 0.4
        offset, length = self.draw.span(volume, SECTOR, 100_000)
        steps = self.device(volume).zero(offset, length, allocate=allocate)
        self.erase(volume, offset, steps, length)

    def erase(self, volume: KnownVolume, offset: int, steps: Steps[None], length: int) -> None:
        spans = volume.history.begin(offset, bytes(length), self.tick())

        def ended() -> None:
            for span in spans:
                span.end = self.scheduler.now

        self.start(volume, steps, ended)

    def flush(self, volume: KnownVolume) -> Task:
        began = self.tick()

        def ended() -> None:
            volume.flushed = max(volume.flushed, began)

        return self.start(volume, self.device(volume).flush(), ended)

    def burst(self, volume: KnownVolume) -> None:
        """Flushes and writes on each other's heels, from several clients; half of the time beside a
        slow checkpoint, so that flushes rest on a segment that is sealed and not yet applied; half
        of the time with slow flushes, so that writes come between their syncs."""
        if self.draw.random.random() < 0.5:
            self.scheduler.paces[self.checkpoint(volume)] = UnevenScheduler.SLOWEST
        slow = self.draw.random.random() < 0.5
        for _ in range(self.draw.random.randrange(2, 5)):
            flush = self.flush(volume)
            if slow:
                self.scheduler.paces[flush] = UnevenScheduler.SLOW
            self.advance(self.draw.random.randrange(8))
            self.draw.random.choice((self.write, self.fast))(volume)
            self.advance(self.draw.random.randrange(4))
        self.flush(volume)

    def checkpoint(self, volume: KnownVolume) -> Task:
        assert volume.id is not None
        return self.start(volume, self.pool.registry.checkpoint(volume.id), lambda: None)

    def scrub(self, volume: KnownVolume) -> None:
        """A piece of the first reading, and of a pass; who reads a volume waits for neither."""

        async def steps() -> None:
            await self.scrubber.read_on()
            if self.draw.random.random() < 0.3:
                await self.scrubber.begin_pass()
            await self.scrubber.verify_on()

        self.start(volume, steps(), lambda: None)

    def settle(self, volume: KnownVolume) -> None:
        """Looks, and steps; as in a daemon one after the other. A life is short, so there is not
        much time between two looks."""
        settler = self.settler
        assert settler is not None
        if self.settling:
            return
        self.settling = True
        looks, moves = self.draw.random.choice(((1, 0), (0, 3), (2, 8), (2, 20)))

        async def steps() -> None:
            for _ in range(looks):
                await settler.look()
            for _ in range(moves):
                await settler.step()

        def ended() -> None:
            self.settling = False

        self.start(volume, steps(), ended)

    def extend(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        if volume.growing or volume.size >= 2 * SIZE or self.is_freezing(volume):
            return
        volume.growing = volume.size + self.draw.random.randrange(1, 40) * BLOCK_SIZE

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
        name = f"snapshot-{self.draw.value()}"
        known = KnownSnapshot(name, volume.history, volume.size, began=self.tick())
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

    def is_freezing(self, volume: KnownVolume) -> bool:
        """A snapshot was asked for, of the size that the volume has, and is not made yet."""
        return any(
            s.history is volume.history and s.there is There.COMING
            for s in self.world.snapshots.values()
        )

    def idle_snapshot(self) -> KnownSnapshot | None:
        ready = [s for s in self.world.ready() if not s.users]
        return self.draw.random.choice(ready) if ready else None

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
        source = self.idle_snapshot() if self.draw.random.random() < 0.5 else None
        content = bytes(SIZE) if source is None or source.content is None else source.content
        volume = KnownVolume(f"volume-{self.draw.value()}", history_of(content))
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
        snapshot = self.draw.random.choice(own)
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
