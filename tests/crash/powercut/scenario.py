"""A pool's random history, over many lives that end in power cuts, deaths or cleanly.

Several volumes are written, trimmed, zeroed, flushed, checkpointed, snapshotted, cloned, reverted,
extended and deleted, all interleaved (tests/drivers/local/schedule.py), while background work
punches, merges, settles and unlinks. The power fails at a change of the disk chosen before; a
quarter of the recoveries are cut too. Everything follows from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from bockd.drivers.local.format.checksums import all_damage
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.reading import Reader
from bockd.errors import BockdError
from bockd.runtime.steps import run_inline
from tests.crash.powercut.known import There, World
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.powercut.operations import Draw, Operations, PowerFailedError
from tests.crash.small import enlarge_journals
from tests.drivers.local.process import close_everything_below, die
from tests.drivers.local.schedule import UnevenScheduler

PACKED_JOURNAL_RECORDS = 320
"""Of histories with packed heads."""

CUTS_OF_A_RUN = 10
"""Of each history that is played."""

OPERATIONS = 70

LIKELY_CHANGES = (60, 300, 900)
"""Of a life, on the disk: the power fails within a random one of them."""

OPENING_CHANGES = 40
"""About what opening a pool with recovery makes."""


@dataclass
class Counts:
    """What a run has seen."""

    cuts: int = 0
    recoveries_cut: int = 0
    kills: int = 0


class Run:
    """One random history."""

    def __init__(self, disk: PowerCutDisk, seed: int) -> None:
        self.disk = disk
        self.seed = seed
        self.random = random.Random(seed)
        self.draw = Draw(self.random)
        self.packing = random.Random(f"packing {seed}")
        """Decides which heads are packed: none of an even seed, half of an odd one."""
        if seed % 2:
            enlarge_journals(PACKED_JOURNAL_RECORDS)
        self.world = World()
        self.counts = Counts()
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
            self.operations.work(OPERATIONS if how == "cut" else self.random.randrange(OPERATIONS))
            if how == "cut":
                self.operations.finish()
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
        self.pool = LocalPool.open(self.path, self.scheduler.spawn, boot=f"{self.boot:036}")
        self.reclaimer = Reclaimer(self.pool.registry)
        self.scrubber = Scrubber(self.pool.registry)
        settler = Settler(self.pool.registry) if self.seed % 2 else None
        if settler is not None:
            self.pool.registry.on_frozen = settler.note_frozen
        self.operations = Operations(
            self.disk, self.pool, self.scheduler, self.scrubber, settler, self.world, self.draw
        )
        self.pool.registry.clock = lambda: 1.0
        self.pool.registry.pack = lambda: bool(self.seed % 2 and self.packing.randrange(2))
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


def content_of(reader: Reader) -> bytes:
    found = bytearray(reader.size_bytes)
    run_inline(reader.read(0, memoryview(found)))
    return bytes(found)
