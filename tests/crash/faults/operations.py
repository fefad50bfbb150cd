"""What can be done to a pool and its volumes, once each; and what is known when it has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bockd.drivers.local.volume.volume import Volume
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import run_inline
from tests.crash.faults.subject import LASTS, Subject, content_of
from tests.crash.lane import change_in_lane
from tests.crash.powercut.known import SECTOR, KnownSnapshot, KnownVolume, There, history_of
from tests.drivers.local.schedule import History

T = TypeVar("T")


class Operations:
    """Operations on a pool that has a fault somewhere, and what is known of what they do."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.world = subject.world
        self.values = self.trims = 0

    def data(self, length: int) -> bytes:
        """Each sector names the write and its own place."""
        self.values += 1
        value = self.values.to_bytes(8, "big")
        return b"".join(
            (value + at.to_bytes(8, "big")) * (SECTOR // 16) for at in range(length // SECTOR)
        )

    def change(
        self,
        volume: KnownVolume,
        what: str,
        offset: int,
        data: bytes,
        operation: Callable[[Volume], object],
    ) -> None:
        """Whatever gives sectors another content."""
        spans = volume.history.begin(offset, data, self.subject.tick())
        done = self.subject.attempt(
            f"{what} {volume.name}", lambda: (self.subject.on(volume, operation),)
        )
        if done:
            for span in spans:
                span.end = self.subject.now

    def write(self, volume: KnownVolume, offset: int, length: int) -> None:
        data = self.data(length)

        in_lane = self.values % 2

        def write(device: Volume) -> None:
            if in_lane and change_in_lane(device, [(offset, data)]):
                return
            if device.try_write(offset, memoryview(data)):
                device.commit()
            else:
                run_inline(device.write(offset, memoryview(data)))

        self.change(volume, "write", offset, data, write)

    def write_through(self, volume: KnownVolume, offset: int, length: int) -> None:
        """A write with FUA."""
        self.write(volume, offset, length)
        self.flush(volume)

    def trim(self, volume: KnownVolume, offset: int, length: int) -> None:
        self.trims += 1
        in_lane = self.trims % 2

        def trim(device: Volume) -> None:
            if in_lane and change_in_lane(device, [(offset, length)]):
                return
            if device.try_trim(offset, length):
                device.commit()
            else:
                run_inline(device.trim(offset, length))

        self.change(volume, "trim", offset, bytes(length), trim)

    def zero(self, volume: KnownVolume, offset: int, length: int, *, allocate: bool) -> None:
        self.change(
            volume,
            "zero",
            offset,
            bytes(length),
            lambda d: run_inline(d.zero(offset, length, allocate=allocate)),
        )

    def flush(self, volume: KnownVolume) -> None:
        began = self.subject.tick()
        flushed = self.subject.attempt(
            f"flush {volume.name}",
            lambda: (self.subject.on(volume, lambda d: run_inline(d.flush())),),
        )
        if flushed:
            volume.flushed = began

    def checkpoint(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        number = volume.id
        self.subject.attempt(
            f"checkpoint {volume.name}",
            lambda: run_inline(self.subject.pool.registry.checkpoint(number)),
        )

    def close(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        number = volume.id
        self.subject.attempt(
            f"close {volume.name}",
            lambda: run_inline(self.subject.pool.registry.close_idle_volume(number)),
        )

    # -- of the catalogue --------------------------------------------------------------------

    def insist(self, what: str, call: Callable[[], T], missing: Callable[[], bool]) -> T | None:
        """An operation; if it failed, was not done, and the cause is gone, once more."""
        result = self.subject.attempt(what, call)
        if result is None and self.subject.cleared:
            self.subject.resolve()
            if missing():
                result = self.subject.attempt(f"{what} again", call)
        return result

    def make(self, name: str, size: int, source: KnownSnapshot | None = None) -> None:
        content = bytes(size)
        if source is not None and source.content is not None:
            content = source.content
        known = KnownVolume(name, history_of(content))
        parent = None if source is None else source.id

        def make() -> VolumeRecord:
            self.world.volumes[name] = known
            return run_inline(self.subject.pool.create_volume(name, len(content), parent))

        if name in self.world.volumes:
            return  # it may be there: that is found out when the cause is gone
        made = self.insist(f"create {name}", make, lambda: name not in self.world.volumes)
        if made is not None:
            known.id, known.there = made.id, There.YES

    def make_surely(self, name: str, size: int) -> KnownVolume:
        """What the scenario cannot do without: again, until the cause is gone."""
        self.make(name, size)
        while name not in self.world.volumes or self.world.volumes[name].there is not There.YES:
            self.subject.since_fault = LASTS
            self.subject.clear()
            self.subject.resolve()
            self.make(name, size)
        return self.world.volumes[name]

    def snapshot(self, volume: KnownVolume, name: str) -> None:
        assert volume.id is not None
        number = volume.id

        def make() -> SnapshotRecord:
            # Of its own: the volume may be reverted before the snapshot can be read.
            history = History(0)
            history.sectors = [list(spans) for spans in volume.history.sectors]
            known = KnownSnapshot(name, history, volume.size, began=self.subject.tick())
            self.world.snapshots[name] = known
            made = run_inline(self.subject.pool.create_snapshot(number, name))
            known.there, known.id, known.ended = There.YES, made.id, self.subject.tick()
            return made

        made = self.insist(f"snapshot {name}", make, lambda: name not in self.world.snapshots)
        if made is not None:
            shot = self.world.snapshots[name]
            self.subject.attempt(f"read {name}", lambda: self.subject.read_snapshot(shot))

    def delete(self, name: str) -> None:
        def delete() -> tuple[()]:
            volume = self.world.volumes[name]
            volume.there = There.GOING
            assert volume.id is not None
            run_inline(self.subject.pool.delete_volume(volume.id))
            del self.world.volumes[name]
            return ()

        if name in self.world.volumes and self.world.volumes[name].there is There.YES:
            self.insist(f"delete {name}", delete, lambda: name in self.world.volumes)

    def delete_snapshot(self, name: str) -> None:
        def delete() -> tuple[()]:
            shot = self.world.snapshots[name]
            shot.there = There.GOING
            assert shot.id is not None
            run_inline(self.subject.pool.delete_snapshot(shot.id))
            del self.world.snapshots[name]
            return ()

        if self.ready(name):
            self.insist(f"delete {name}", delete, lambda: name in self.world.snapshots)

    def ready(self, name: str) -> KnownSnapshot | None:
        shot = self.world.snapshots.get(name)
        return shot if shot and shot.there is There.YES and shot.content is not None else None

    def revert(self, volume: KnownVolume, name: str) -> None:
        shot = self.ready(name)
        if shot is None:
            return
        assert volume.id is not None
        assert shot.id is not None
        assert shot.content is not None
        number, source = volume.id, shot.id
        instead = shot.content.ljust(volume.size, b"\0")

        def revert() -> VolumeRecord:
            volume.instead = instead
            return run_inline(self.subject.pool.revert_volume(number, source))

        done = self.insist(
            f"revert {volume.name}", revert, lambda: self.subject.on(volume, content_of) != instead
        )
        if done is not None:
            volume.history.sectors[:] = history_of(instead).sectors
            volume.flushed, volume.instead = -1, None

    def extend(self, volume: KnownVolume, size: int) -> None:
        assert volume.id is not None
        number = volume.id

        def extend() -> VolumeRecord:
            volume.growing = size
            return run_inline(self.subject.pool.extend_volume(number, size))

        done = self.insist(f"extend {volume.name}", extend, lambda: volume.size < size)
        if done is not None:
            volume.history.sectors += history_of(bytes(size - volume.size)).sectors
            volume.growing = 0

    def settle(self) -> None:
        """All that is frozen and scattered, as far as it goes."""

        def settle() -> None:
            for _ in range(2):
                run_inline(self.subject.settler.look())
            while run_inline(self.subject.settler.step()).more:
                run_inline(self.subject.reclaimer.run())

        self.subject.attempt("settle", settle)

    def reclaim(self) -> None:
        self.subject.attempt("reclaim", lambda: run_inline(self.subject.reclaimer.run()))
