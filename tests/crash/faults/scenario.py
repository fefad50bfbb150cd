"""Everything that is done to a pool, once, one thing at a time, with a fault at one position of it.

An operation that fails must fail with a BockdError. It counts as neither done nor undone: what it
wrote may be there or not, sector by sector; a snapshot, a clone, a revert, as a whole. Everything
else is as in `known.py` of the power-cut laboratory: what was acknowledged can be read at any time,
and of a volume whose sync failed, what was flushed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import Pool
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import BockdError, NoSpaceError, VolumeFailedError
from bockd.model import BLOCK_SIZE, KIB, SnapshotId, VolumeId
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import Background, run_inline
from tests.crash.faults.mounted import Fault, FaultyDisk, How
from tests.crash.powercut.known import (
    SECTOR,
    KnownSnapshot,
    KnownVolume,
    There,
    World,
    history_of,
)
from tests.drivers.local.process import die
from tests.drivers.local.schedule import History

T = TypeVar("T")

SIZE = 1024 * KIB + 64 * KIB
"""Two leaves of the block map, the second one small."""

LASTS = 6
"""Operations that fail or may fail before the cause of a lasting fault is gone."""

BOOT = "1".zfill(36)
NEXT_BOOT = "2".zfill(36)


@dataclass
class Outcome:
    """What a run has come to."""

    positions: list[str]
    """Their kinds, if nothing was to fail."""
    refused: list[str] = field(default_factory=list)
    """Operations that failed, with the error's name."""
    failed_volumes: set[str] = field(default_factory=set)
    """Volumes whose sync, or journal, failed."""


class Play:
    """One run of the scenario."""

    def __init__(self, disk: FaultyDisk, life: str, fault: Fault | None) -> None:
        self.disk = disk
        self.fault = fault
        self.world = World()
        self.outcome = Outcome([])
        self.life = life
        self.now = 0
        self.values = 0
        self.since_fault = 0
        """Operations since the fault was met."""
        self.cleared = fault is None
        self.failed: set[str] = set()
        """Volumes that have failed and were not reopened."""
        self.alive = False
        """The pool is open."""
        self.died_failing = False
        """The last death came before the cause was gone."""

    def run(self) -> Outcome:
        """All of it. AssertionError when a promise is broken, and whatever is no BockdError."""
        try:
            self.disk.inject(self.life, self.fault)
            self.open(BOOT)
            self.chapters()
            if self.fault is None:
                self.outcome.positions = self.disk.positions()
            self.clear()
            self.go_on()
            self.after_death()
        except BaseException as error:
            error.add_note(f"{self.fault}; {self.outcome.refused}")
            raise
        return self.outcome

    @property
    def path(self) -> Path:
        return self.disk.path(self.life)

    # -- operations --------------------------------------------------------------------------

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """An operation, which may fail by name; then everything acknowledged is there."""
        result: T | None = None
        self.tick()
        try:
            result = call()
        except BockdError as error:
            self.refused(what, error)
        self.background.run()
        self.tick()
        if self.fault is not None and not self.cleared and self.disk.failed:
            self.since_fault += 1
            if self.alive:
                self.verify()
            if self.fault.how in (How.EIO_ONCE, How.ENOSPC_ONCE) or self.since_fault >= LASTS:
                self.clear()
                if self.alive and self.fault.at % 2:
                    self.reopen_failed()
        return result

    def refused(self, what: str, error: BockdError) -> None:
        """Only what a fault explains is refused."""
        assert self.fault is not None, (what, error)
        assert str(error), what
        self.outcome.refused.append(f"{what}: {type(error).__name__}")
        explained = isinstance(error, VolumeFailedError) or not self.cleared or self.since_fault
        assert explained, f"{what}: {error}"
        if self.fault.how is How.FULL:
            assert isinstance(error, NoSpaceError), f"on a full disk, {what}: {error!r}"

    def clear(self) -> None:
        """The cause is gone."""
        if not self.cleared:
            self.cleared = True
            self.disk.inject(self.life, None)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def data(self, length: int) -> bytes:
        """Each sector names the write and its own place."""
        self.values += 1
        value = self.values.to_bytes(8, "big")
        return b"".join(
            (value + at.to_bytes(8, "big")) * (SECTOR // 16) for at in range(length // SECTOR)
        )

    # -- the pool ----------------------------------------------------------------------------

    def open(self, boot: str) -> None:
        """Open the pool and recover it; if that fails, again when the cause is gone."""
        self.background = Background()

        def attempt() -> Pool:
            return Pool.open(self.path, self.background.spawn, boot=boot)

        pool = self.attempt("open the pool", attempt)
        if pool is None:
            self.since_fault = LASTS
            self.clear()
            pool = self.attempt("open the pool again", attempt)
        assert pool is not None, "it cannot be opened any more"
        self.pool, self.alive = pool, True
        self.reclaimer = Reclaimer(pool.registry)
        pool.registry.clock = lambda: 1.0
        pool.registry.on_garbage = lambda: self.background.spawn(self.reclaimer.run())
        self.attempt("recover", lambda: run_inline(pool.registry.recover_volumes()))
        for name in self.failed & set(self.world.volumes):
            volume = self.world.volumes[name]
            if not self.has_failed(volume):
                # Nobody could write down that it had failed: it died before the cause was gone.
                assert self.died_failing, f"{name}: its failure is forgotten"
                content = self.on(volume, content_of)
                volume.verify(content, volume.flushed, self.tick())
                volume.confirm(content, durable=True)
                self.failed.remove(name)

    def resolve(self) -> None:
        """Find out what operations that failed have come to. The cause is gone."""
        volumes, snapshots = self.listing()
        world = self.world
        world.verify_listing(set(volumes), set(snapshots))
        world.volumes = {n: v for n, v in world.volumes.items() if n in volumes}
        world.snapshots = {n: s for n, s in world.snapshots.items() if n in snapshots}
        for name, shot in world.snapshots.items():
            shot.id, shot.there = snapshots[name], There.YES
            if shot.ended is None:
                shot.ended = self.tick()
            self.read_snapshot(shot)
        for name, volume in world.volumes.items():
            volume.id, volume.there = volumes[name], There.YES
            unsettled = volume.instead is not None or volume.growing
            if unsettled and not self.has_failed(volume):
                self.confirm(volume, durable=False)

    def listing(self) -> tuple[dict[str, VolumeId], dict[str, SnapshotId]]:
        with self.pool.registry.catalogue() as catalogue:
            return (
                {volume.name: volume.id for volume in catalogue.volumes()},
                {shot.name: shot.id for shot in catalogue.snapshots()},
            )

    def confirm(self, volume: KnownVolume, *, durable: bool) -> None:
        """What it holds is what it holds."""
        content = self.on(volume, content_of)
        volume.verify(content, self.since(volume), self.tick())
        volume.confirm(content, durable=durable)

    def since(self, volume: KnownVolume) -> int:
        """Acknowledged before this, it must be there."""
        return volume.flushed if volume.name in self.failed else self.now

    def verify(self) -> None:
        """Of every open volume, everything acknowledged can be read; those that have failed say
        so."""
        for volume in self.world.volumes.values():
            opened = None if volume.id is None else self.pool.registry.volumes.get(volume.id)
            if opened is None:
                continue
            if opened.volume.durability.failed is not None and volume.name not in self.failed:
                self.failed.add(volume.name)
                self.outcome.failed_volumes.add(volume.name)
            content = content_of(opened.volume)
            # What the sync has lost may read as anything until recovery sorts it out.
            if volume.name not in self.failed:
                volume.verify(content, self.since(volume), self.tick())
        for shot in self.world.ready():
            assert shot.id is not None
            if shot.id in self.pool.registry.snapshots:
                shot.verify(content_of(self.pool.registry.snapshots[shot.id].snapshot), self.tick())

    def read_snapshot(self, shot: KnownSnapshot) -> None:
        """It holds what it held, or what it was made of."""
        assert shot.id is not None
        opened = run_inline(self.pool.registry.use_snapshot(shot.id))
        content = content_of(opened.snapshot)
        self.pool.registry.leave_snapshot(shot.id)
        shot.verify(content, self.tick())
        shot.content = content

    # -- of a volume -------------------------------------------------------------------------

    def on(self, volume: KnownVolume, operation: Callable[[Volume], T]) -> T:
        """As a client that connects, does one thing, and leaves. BockdError."""
        assert volume.id is not None
        opened = run_inline(self.pool.registry.use_volume(volume.id))
        try:
            return operation(opened.volume)
        finally:
            self.pool.registry.leave_volume(volume.id)

    def change(
        self,
        volume: KnownVolume,
        what: str,
        offset: int,
        data: bytes,
        operation: Callable[[Volume], object],
    ) -> None:
        """Whatever gives sectors another content."""
        spans = volume.history.begin(offset, data, self.tick())
        done = self.attempt(f"{what} {volume.name}", lambda: (self.on(volume, operation),))
        if done:
            for span in spans:
                span.end = self.now

    def write(self, volume: KnownVolume, offset: int, length: int) -> None:
        data = self.data(length)

        def write(device: Volume) -> None:
            if device.try_write(offset, memoryview(data)):
                device.commit()
            else:
                run_inline(device.write(offset, memoryview(data)))

        self.change(volume, "write", offset, data, write)

    def trim(self, volume: KnownVolume, offset: int, length: int) -> None:
        self.change(
            volume, "trim", offset, bytes(length), lambda d: run_inline(d.trim(offset, length))
        )

    def zero(self, volume: KnownVolume, offset: int, length: int, *, allocate: bool) -> None:
        self.change(
            volume,
            "zero",
            offset,
            bytes(length),
            lambda d: run_inline(d.zero(offset, length, allocate=allocate)),
        )

    def flush(self, volume: KnownVolume) -> None:
        began = self.tick()
        flushed = self.attempt(
            f"flush {volume.name}", lambda: (self.on(volume, lambda d: run_inline(d.flush())),)
        )
        if flushed:
            volume.flushed = began

    def checkpoint(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        number = volume.id
        self.attempt(
            f"checkpoint {volume.name}", lambda: run_inline(self.pool.registry.checkpoint(number))
        )

    def close(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        number = volume.id
        self.attempt(
            f"close {volume.name}", lambda: run_inline(self.pool.registry.close_idle_volume(number))
        )

    # -- of the catalogue --------------------------------------------------------------------

    def insist(self, what: str, call: Callable[[], T], missing: Callable[[], bool]) -> T | None:
        """An operation; if it failed, was not done, and the cause is gone, once more."""
        result = self.attempt(what, call)
        if result is None and self.cleared:
            self.resolve()
            if missing():
                result = self.attempt(f"{what} again", call)
        return result

    def make(self, name: str, size: int, source: KnownSnapshot | None = None) -> None:
        content = bytes(size)
        if source is not None and source.content is not None:
            content = source.content
        known = KnownVolume(name, history_of(content))
        parent = None if source is None else source.id

        def make() -> VolumeRecord:
            self.world.volumes[name] = known
            return run_inline(self.pool.create_volume(name, len(content), parent))

        if name in self.world.volumes:
            return  # it may be there: that is found out when the cause is gone
        made = self.insist(f"create {name}", make, lambda: name not in self.world.volumes)
        if made is not None:
            known.id, known.there = made.id, There.YES

    def make_surely(self, name: str, size: int) -> KnownVolume:
        """What the scenario cannot do without: again, until the cause is gone."""
        self.make(name, size)
        while name not in self.world.volumes or self.world.volumes[name].there is not There.YES:
            self.since_fault = LASTS
            self.clear()
            self.resolve()
            self.make(name, size)
        return self.world.volumes[name]

    def snapshot(self, volume: KnownVolume, name: str) -> None:
        assert volume.id is not None
        number = volume.id

        def make() -> SnapshotRecord:
            # Of its own: the volume may be reverted before the snapshot can be read.
            history = History(0)
            history.sectors = [list(spans) for spans in volume.history.sectors]
            known = KnownSnapshot(name, history, volume.size, began=self.tick())
            self.world.snapshots[name] = known
            made = run_inline(self.pool.create_snapshot(number, name))
            known.there, known.id, known.ended = There.YES, made.id, self.tick()
            return made

        made = self.insist(f"snapshot {name}", make, lambda: name not in self.world.snapshots)
        if made is not None:
            shot = self.world.snapshots[name]
            self.attempt(f"read {name}", lambda: self.read_snapshot(shot))

    def delete(self, name: str) -> None:
        def delete() -> tuple[()]:
            volume = self.world.volumes[name]
            volume.there = There.GOING
            assert volume.id is not None
            run_inline(self.pool.delete_volume(volume.id))
            del self.world.volumes[name]
            return ()

        if name in self.world.volumes and self.world.volumes[name].there is There.YES:
            self.insist(f"delete {name}", delete, lambda: name in self.world.volumes)

    def delete_snapshot(self, name: str) -> None:
        def delete() -> tuple[()]:
            shot = self.world.snapshots[name]
            shot.there = There.GOING
            assert shot.id is not None
            run_inline(self.pool.delete_snapshot(shot.id))
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
            return run_inline(self.pool.revert_volume(number, source))

        done = self.insist(
            f"revert {volume.name}", revert, lambda: self.on(volume, content_of) != instead
        )
        if done is not None:
            volume.history.sectors[:] = history_of(instead).sectors
            volume.flushed, volume.instead = -1, None

    def extend(self, volume: KnownVolume, size: int) -> None:
        assert volume.id is not None
        number = volume.id

        def extend() -> VolumeRecord:
            volume.growing = size
            return run_inline(self.pool.extend_volume(number, size))

        done = self.insist(f"extend {volume.name}", extend, lambda: volume.size < size)
        if done is not None:
            volume.history.sectors += history_of(bytes(size - volume.size)).sectors
            volume.growing = 0

    def reclaim(self) -> None:
        self.attempt("reclaim", lambda: run_inline(self.reclaimer.run()))

    # -- chapters ----------------------------------------------------------------------------

    def chapters(self) -> None:
        """Everything, once."""
        v, w = self.make_surely("v", SIZE), self.make_surely("w", 1024 * KIB)
        self.writing(v, w)
        self.freezing(v)
        self.growing(v)
        self.layers(v)
        self.going_back(v)
        self.deleting()
        self.closing(v, w)
        self.dying(v, w)

    def writing(self, v: KnownVolume, w: KnownVolume) -> None:
        """Redirects, overwrites, parts of blocks, trims, zeros, flushes, FUA, a checkpoint."""
        self.write(v, 0, 20 * BLOCK_SIZE)
        self.write(w, 0, 3 * BLOCK_SIZE)
        self.flush(v)
        self.write(v, 2 * BLOCK_SIZE, BLOCK_SIZE)
        self.write(v, 3 * BLOCK_SIZE + SECTOR, 3 * SECTOR)
        self.write(v, 40 * BLOCK_SIZE + SECTOR, SECTOR)
        self.write(v, 300 * KIB, 160 * KIB)
        self.write(v, 1020 * KIB, 2 * BLOCK_SIZE)
        self.trim(v, 5 * BLOCK_SIZE, 6 * BLOCK_SIZE)
        self.zero(v, 12 * BLOCK_SIZE + SECTOR, 3 * BLOCK_SIZE, allocate=False)
        self.zero(v, 300 * KIB, 2 * BLOCK_SIZE, allocate=True)
        self.write_through(v, 6 * BLOCK_SIZE, BLOCK_SIZE)
        self.flush(w)
        self.checkpoint(v)
        for number in range(24):
            self.write(v, (64 + 2 * number) * BLOCK_SIZE, BLOCK_SIZE)

    def write_through(self, volume: KnownVolume, offset: int, length: int) -> None:
        """A write with FUA."""
        self.write(volume, offset, length)
        self.flush(volume)

    def freezing(self, v: KnownVolume) -> None:
        """A snapshot, writes into what it froze, a clone of it."""
        self.snapshot(v, "s1")
        self.write(v, 0, BLOCK_SIZE)
        self.write(v, BLOCK_SIZE + SECTOR, SECTOR)
        self.trim(v, 2 * BLOCK_SIZE, BLOCK_SIZE)
        self.flush(v)
        shot = self.ready("s1")
        if shot is not None:
            self.make("c", SIZE, shot)
        c = self.world.volumes.get("c")
        if c is not None and c.there is There.YES:
            self.write(c, 8 * KIB, 3 * BLOCK_SIZE)
            self.write(c, 100 * KIB + SECTOR, SECTOR)
            self.flush(c)

    def growing(self, v: KnownVolume) -> None:
        """An extension while it is open."""
        self.extend(v, SIZE + 16 * BLOCK_SIZE)
        self.write(v, v.size - 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)

    def layers(self, v: KnownVolume) -> None:
        """Snapshots that come and go: their layers are punched, merged and unlinked."""
        for number in range(2, 5):
            self.write(v, (30 + 2 * number) * BLOCK_SIZE, 2 * BLOCK_SIZE)
            self.snapshot(v, f"s{number}")
        self.write(v, 34 * BLOCK_SIZE, BLOCK_SIZE)
        self.snapshot(v, "s5")
        for number in range(2, 5):
            self.delete_snapshot(f"s{number}")
        self.reclaim()

    def going_back(self, v: KnownVolume) -> None:
        """A revert, and writes after it."""
        self.flush(v)
        self.revert(v, "s5")
        self.write(v, 0, 2 * BLOCK_SIZE)
        self.flush(v)
        self.reclaim()

    def deleting(self) -> None:
        """A clone, and snapshots, and all that is left of them."""
        self.delete("c")
        self.delete_snapshot("s5")
        self.delete_snapshot("s1")
        self.reclaim()

    def closing(self, v: KnownVolume, w: KnownVolume) -> None:
        """What was open is closed, changed while it is, and opened again."""
        self.write(v, 50 * BLOCK_SIZE, BLOCK_SIZE)
        self.close(v)
        self.close(w)
        self.extend(w, w.size + 4 * BLOCK_SIZE)
        self.snapshot(w, "s6")
        self.write(v, 51 * BLOCK_SIZE, BLOCK_SIZE)
        self.write(w, 0, BLOCK_SIZE + SECTOR)

    def dying(self, v: KnownVolume, w: KnownVolume) -> None:
        """A death, recovery, and an orderly end."""
        self.death()
        self.open(BOOT)
        self.write(v, 52 * BLOCK_SIZE, BLOCK_SIZE)
        self.write(w, BLOCK_SIZE, BLOCK_SIZE)
        self.attempt("close everything", lambda: run_inline(self.pool.close_all()))

    # -- afterwards --------------------------------------------------------------------------

    def go_on(self) -> None:
        """The cause is gone: everything works; what has failed says so until it is reopened."""
        self.resolve()
        self.verify()
        self.reopen_failed()
        for number, volume in enumerate(self.world.volumes.values()):
            before = len(self.outcome.refused)
            self.write(volume, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE)
            self.write(volume, 7 * BLOCK_SIZE + SECTOR, SECTOR)
            self.flush(volume)
            self.snapshot(volume, f"after-{number}")
            self.write(volume, 3 * BLOCK_SIZE, BLOCK_SIZE)
            self.checkpoint(volume)
            self.delete_snapshot(f"after-{number}")
            assert len(self.outcome.refused) == before, "it does not go on"
        # A dead map waits for as long as several live ones fall through to it.
        for name in list(self.world.snapshots):
            self.delete_snapshot(name)
        self.delete("c")
        self.reclaim()
        self.background.run()
        self.verify()
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems
        assert report.pending_reclaim == 0

    def reopen_failed(self) -> None:
        """What has failed says so, and then the operator accepts the loss. The cause is gone."""
        for volume in self.world.volumes.values():
            if volume.id is not None and volume.there is There.YES and self.has_failed(volume):
                self.stays_refused(volume)
                self.reopen(volume)

    def has_failed(self, volume: KnownVolume) -> bool:
        with self.pool.registry.catalogue() as catalogue:
            assert volume.id is not None
            failed = self.pool.failure(catalogue.volume(volume.id)) is not None
        if failed:
            self.failed.add(volume.name)
            self.outcome.failed_volumes.add(volume.name)
        return failed

    def stays_refused(self, volume: KnownVolume) -> None:
        """After a failed sync nothing is acknowledged, above all no flush."""
        assert volume.id is not None
        number = volume.id
        block = memoryview(bytes(BLOCK_SIZE))

        def write(device: Volume) -> None:
            if device.try_write(0, block):
                device.commit()
            else:
                run_inline(device.write(0, block))

        for what, call in (
            ("a flush", lambda: self.on(volume, lambda d: run_inline(d.flush()))),
            ("a write", lambda: self.on(volume, write)),
            ("a trim", lambda: self.on(volume, lambda d: run_inline(d.trim(0, BLOCK_SIZE)))),
            ("a snapshot", lambda: run_inline(self.pool.create_snapshot(number, "refused"))),
        ):
            refusal = ""
            try:
                call()
            except VolumeFailedError as error:
                refusal = str(error)
            assert "bock volume reopen" in refusal, f"{what} after a failed sync: {refusal!r}"

    def reopen(self, volume: KnownVolume) -> None:
        assert volume.id is not None
        run_inline(self.pool.reopen_volume(volume.id))
        content = self.on(volume, content_of)
        volume.verify(content, volume.flushed, self.tick())
        volume.confirm(content, durable=True)
        self.failed.remove(volume.name)

    def after_death(self) -> None:
        """Two restarts: after a death, and after an orderly end."""
        for volume in self.world.volumes.values():
            self.write(volume, 9 * BLOCK_SIZE, BLOCK_SIZE)
        self.death()
        self.open(BOOT)
        self.compare()
        run_inline(self.pool.close_all())
        self.background.run()
        self.pool.release()
        assert not self.open_files(), self.open_files()
        self.open(NEXT_BOOT)
        self.compare()

    def compare(self) -> None:
        """The pool is in order and has everything."""
        assert not self.pool.registry.refusals, self.pool.registry.refusals
        report = check_open_pool(self.pool.registry.store, live=frozenset(), repair=False)
        assert report.clean, report.problems
        # Where a sync has lost data, blocks without any are what is left.
        assert report.hollow_blocks == 0 or self.outcome.failed_volumes
        self.resolve()
        for volume in self.world.volumes.values():
            self.confirm(volume, durable=False)

    def death(self) -> None:
        """As the kernel ends a process. What it knew of failures it had said when it was asked,
        and had written down when it was asked after the cause was gone."""
        for volume in self.world.volumes.values():
            there = volume.id is not None and volume.there is There.YES
            if there and self.has_failed(volume) and self.cleared:
                self.stays_refused(volume)
                self.background.run()
        self.background = Background()
        self.alive, self.died_failing = False, not self.cleared
        die(self.pool)
        self.close_files()

    def close_files(self) -> None:
        for fd in self.open_files():
            os.close(fd)

    def open_files(self) -> dict[int, str]:
        """Descriptors of the pool's files."""
        found = {}
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # the one that lists
                path = os.readlink(f"/proc/self/fd/{fd}")
                if Path(path).is_relative_to(self.path):
                    found[fd] = path
        return found


def content_of(reader: Reader) -> bytes:
    found = bytearray(reader.size_bytes)
    run_inline(reader.read(0, memoryview(found)))
    return bytes(found)
