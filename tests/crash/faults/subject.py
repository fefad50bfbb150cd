"""A pool that has a fault at one position of its life, and what is known of it.

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
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import BockdError, NoSpaceError, VolumeFailedError
from bockd.model import BLOCK_SIZE, SnapshotId, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.crash.faults.mounted import Fault, FaultyDisk, How
from tests.crash.powercut.known import KnownSnapshot, KnownVolume, There, World
from tests.drivers.local.process import die

T = TypeVar("T")

LASTS = 6
"""Operations that fail or may fail before the cause of a lasting fault is gone."""


@dataclass
class Outcome:
    """What a run has come to."""

    positions: list[str]
    """Their kinds, if nothing was to fail."""
    refused: list[str] = field(default_factory=list)
    """Operations that failed, with the error's name."""
    failed_volumes: set[str] = field(default_factory=set)
    """Volumes whose sync, or journal, failed."""


class Subject:
    """The pool, opened and killed as the scenario says, and compared with what is known of it."""

    def __init__(self, disk: FaultyDisk, life: str, fault: Fault | None) -> None:
        self.disk = disk
        self.fault = fault
        self.world = World()
        self.outcome = Outcome([])
        self.life = life
        self.packs = False
        """Heads of snapshots, clones and reverts are packed from now on."""
        self.now = 0
        self.since_fault = 0
        """Operations since the fault was met."""
        self.cleared = fault is None
        self.failed: set[str] = set()
        """Volumes that have failed and were not reopened."""
        self.alive = False
        """The pool is open."""
        self.died_failing = False
        """The last death came before the cause was gone."""

    @property
    def path(self) -> Path:
        return self.disk.path(self.life)

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

    # -- the pool ----------------------------------------------------------------------------

    def open(self, boot: str) -> None:
        """Open the pool and recover it; if that fails, again when the cause is gone."""
        self.background = Background()

        def attempt() -> LocalPool:
            return LocalPool.open(self.path, self.background.spawn, boot=boot)

        pool = self.attempt("open the pool", attempt)
        if pool is None:
            self.since_fault = LASTS
            self.clear()
            pool = self.attempt("open the pool again", attempt)
        assert pool is not None, "it cannot be opened any more"
        self.pool, self.alive = pool, True
        self.reclaimer = Reclaimer(pool.registry)
        self.settler = Settler(pool.registry)
        pool.registry.clock = lambda: 1.0
        pool.registry.pack = lambda: self.packs
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

    def on(self, volume: KnownVolume, operation: Callable[[Volume], T]) -> T:
        """As a client that connects, does one thing, and leaves. BockdError."""
        assert volume.id is not None
        opened = run_inline(self.pool.registry.use_volume(volume.id))
        try:
            return operation(opened.volume)
        finally:
            self.pool.registry.leave_volume(volume.id)

    # -- volumes that have failed ------------------------------------------------------------

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

    # -- its end, and the next start ---------------------------------------------------------

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
