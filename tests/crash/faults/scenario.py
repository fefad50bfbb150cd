"""Everything that is done to a pool, once, one thing at a time, with a fault at one position of it.

What must hold then is in subject.py.
"""

from __future__ import annotations

from bockd.drivers.local.integrity.check import check_open_pool
from bockd.model import BLOCK_SIZE, KIB
from bockd.runtime.steps import run_inline
from tests.crash.faults.mounted import Fault, FaultyDisk
from tests.crash.faults.operations import Operations
from tests.crash.faults.subject import Outcome, Subject
from tests.crash.powercut.known import SECTOR, KnownVolume, There

SIZE = 1024 * KIB + 64 * KIB
"""Two leaves of the block map, the second one small."""

BOOT = "1".zfill(36)
NEXT_BOOT = "2".zfill(36)


class Play:
    """One run of the scenario."""

    def __init__(self, disk: FaultyDisk, life: str, fault: Fault | None) -> None:
        self.subject = Subject(disk, life, fault)
        self.world = self.subject.world
        self.do = Operations(self.subject)

    def run(self) -> Outcome:
        """All of it. AssertionError when a promise is broken, and whatever is no BockdError."""
        try:
            self.subject.disk.inject(self.subject.life, self.subject.fault)
            self.subject.open(BOOT)
            self.chapters()
            if self.subject.fault is None:
                self.subject.outcome.positions = self.subject.disk.positions()
            self.subject.clear()
            self.go_on()
            self.after_death()
        except BaseException as error:
            error.add_note(f"{self.subject.fault}; {self.subject.outcome.refused}")
            raise
        return self.subject.outcome

    # -- chapters ----------------------------------------------------------------------------

    def chapters(self) -> None:
        """Everything, once."""
        v, w = self.do.make_surely("v", SIZE), self.do.make_surely("w", 1024 * KIB)
        self.writing(v, w)
        self.freezing(v)
        self.growing(v)
        self.layers(v)
        self.going_back(v)
        self.deleting()
        self.emptying(v)
        self.packing(v)
        self.closing(v, w)
        self.dying(v, w)

    def writing(self, v: KnownVolume, w: KnownVolume) -> None:
        """Redirects, overwrites, parts of blocks, trims, zeros, flushes, FUA, a checkpoint."""
        self.do.write(v, 0, 20 * BLOCK_SIZE)
        self.do.write(w, 0, 3 * BLOCK_SIZE)
        self.do.flush(v)
        self.do.write(v, 2 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.write(v, 3 * BLOCK_SIZE + SECTOR, 3 * SECTOR)
        self.do.write(v, 40 * BLOCK_SIZE + SECTOR, SECTOR)
        self.do.write(v, 300 * KIB, 160 * KIB)
        self.do.write(v, 1020 * KIB, 2 * BLOCK_SIZE)
        self.do.trim(v, 5 * BLOCK_SIZE, 6 * BLOCK_SIZE)
        self.do.zero(v, 12 * BLOCK_SIZE + SECTOR, 3 * BLOCK_SIZE, allocate=False)
        self.do.zero(v, 300 * KIB, 2 * BLOCK_SIZE, allocate=True)
        self.do.zero(v, 400 * KIB + SECTOR, 160 * KIB, allocate=True)
        self.do.trim(v, 1024 * KIB, 64 * KIB)
        self.do.write_through(v, 6 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.flush(w)
        self.do.checkpoint(v)
        for number in range(24):
            self.do.write(v, (64 + 2 * number) * BLOCK_SIZE, BLOCK_SIZE)

    def freezing(self, v: KnownVolume) -> None:
        """A snapshot, writes into what it froze, a clone of it."""
        self.do.snapshot(v, "s1")
        self.do.write(v, 0, BLOCK_SIZE)
        self.do.write(v, BLOCK_SIZE + SECTOR, SECTOR)
        self.do.trim(v, 2 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.flush(v)
        shot = self.do.ready("s1")
        if shot is not None:
            self.do.make("c", SIZE, shot)
        c = self.world.volumes.get("c")
        if c is not None and c.there is There.YES:
            self.do.write(c, 8 * KIB, 3 * BLOCK_SIZE)
            self.do.write(c, 100 * KIB + SECTOR, SECTOR)
            self.do.flush(c)

    def growing(self, v: KnownVolume) -> None:
        """An extension while it is open."""
        self.do.extend(v, SIZE + 16 * BLOCK_SIZE)
        self.do.write(v, v.size - 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)

    def layers(self, v: KnownVolume) -> None:
        """Snapshots that come and go: their layers are punched, merged and unlinked."""
        for number in range(2, 5):
            self.do.write(v, (30 + 2 * number) * BLOCK_SIZE, 2 * BLOCK_SIZE)
            self.do.snapshot(v, f"s{number}")
        self.do.write(v, 34 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.snapshot(v, "s5")
        for number in range(2, 5):
            self.do.delete_snapshot(f"s{number}")
        self.do.reclaim()

    def going_back(self, v: KnownVolume) -> None:
        """A revert, and writes after it."""
        self.do.flush(v)
        self.do.revert(v, "s5")
        self.do.write(v, 0, 2 * BLOCK_SIZE)
        self.do.flush(v)
        self.do.reclaim()

    def deleting(self) -> None:
        """A clone, and snapshots, and all that is left of them."""
        self.do.delete("c")
        self.do.delete_snapshot("s5")
        self.do.delete_snapshot("s1")
        self.do.reclaim()

    def emptying(self, v: KnownVolume) -> None:
        """A trim of a whole group of leaves, where layers of deleted snapshots are at home."""
        self.do.trim(v, 0, 1024 * KIB)
        self.do.checkpoint(v)
        self.do.write(v, 4 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.reclaim()

    def packing(self, v: KnownVolume) -> None:
        """From here on new heads are packed. One is written, trimmed, refilled where it was
        trimmed, rotated, and settled; then its snapshot goes, and it is written again."""
        self.subject.packs = True
        self.do.snapshot(v, "s7")
        self.do.write(v, 20 * BLOCK_SIZE, 40 * BLOCK_SIZE)
        self.do.write(v, 4 * BLOCK_SIZE + SECTOR, 2 * BLOCK_SIZE)
        self.do.write(v, 5 * BLOCK_SIZE, 20 * BLOCK_SIZE)
        self.do.zero(v, 58 * BLOCK_SIZE, 6 * BLOCK_SIZE, allocate=True)
        self.do.flush(v)
        self.do.trim(v, 22 * BLOCK_SIZE, 20 * BLOCK_SIZE)
        for _ in range(2):  # cells are free after the checkpoint that follows the punch
            self.do.checkpoint(v)
        self.do.write(v, 100 * BLOCK_SIZE, 12 * BLOCK_SIZE)
        self.do.trim(v, 30 * BLOCK_SIZE, 80 * BLOCK_SIZE)
        self.do.flush(v)
        for number in range(3):
            self.do.write(v, (70 + 40 * number) * BLOCK_SIZE, 40 * BLOCK_SIZE)
            self.do.write(v, (256 + 3 * number) * BLOCK_SIZE, BLOCK_SIZE)
        self.do.checkpoint(v)
        self.do.trim(v, 75 * BLOCK_SIZE, 4 * BLOCK_SIZE)
        self.do.write(v, 200 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        self.do.settle()
        self.do.delete_snapshot("s7")
        self.do.reclaim()
        self.do.write(v, 70 * BLOCK_SIZE, 8 * BLOCK_SIZE)

    def closing(self, v: KnownVolume, w: KnownVolume) -> None:
        """What was open is closed, changed while it is, and opened again."""
        self.do.write(v, 50 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.close(v)
        self.do.close(w)
        self.do.extend(w, w.size + 4 * BLOCK_SIZE)
        self.do.snapshot(w, "s6")
        self.do.write(v, 51 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.write(w, 0, BLOCK_SIZE + SECTOR)

    def dying(self, v: KnownVolume, w: KnownVolume) -> None:
        """A death, recovery, and an orderly end."""
        self.subject.death()
        self.subject.open(BOOT)
        self.do.write(v, 52 * BLOCK_SIZE, BLOCK_SIZE)
        self.do.write(w, BLOCK_SIZE, BLOCK_SIZE)
        self.subject.attempt("close everything", lambda: run_inline(self.subject.pool.close_all()))

    # -- afterwards --------------------------------------------------------------------------

    def go_on(self) -> None:
        """The cause is gone: everything works; what has failed says so until it is reopened."""
        self.subject.resolve()
        self.subject.verify()
        self.subject.reopen_failed()
        for number, volume in enumerate(self.world.volumes.values()):
            before = len(self.subject.outcome.refused)
            self.do.write(volume, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE)
            self.do.write(volume, 7 * BLOCK_SIZE + SECTOR, SECTOR)
            self.do.flush(volume)
            self.do.snapshot(volume, f"after-{number}")
            self.do.write(volume, 3 * BLOCK_SIZE, BLOCK_SIZE)
            self.do.checkpoint(volume)
            self.do.delete_snapshot(f"after-{number}")
            assert len(self.subject.outcome.refused) == before, "it does not go on"
        # A dead map waits for as long as several live ones fall through to it.
        for name in list(self.world.snapshots):
            self.do.delete_snapshot(name)
        self.do.delete("c")
        self.do.reclaim()
        self.do.settle()  # to its end, where it had begun
        self.do.reclaim()
        self.subject.background.run()
        self.subject.verify()
        report = check_open_pool(
            self.subject.pool.registry.store,
            live=frozenset(self.subject.pool.registry.volumes),
            repair=False,
        )
        assert report.clean, report.problems
        assert report.pending_reclaim == 0

    def after_death(self) -> None:
        """Two restarts: after a death, and after an orderly end."""
        for volume in self.world.volumes.values():
            self.do.write(volume, 9 * BLOCK_SIZE, BLOCK_SIZE)
        self.subject.death()
        self.subject.open(BOOT)
        self.subject.compare()
        run_inline(self.subject.pool.close_all())
        self.subject.background.run()
        self.subject.pool.release()
        assert not self.subject.open_files(), self.subject.open_files()
        self.subject.open(NEXT_BOOT)
        self.subject.compare()
