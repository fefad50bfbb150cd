"""A pool with one volume on the power-cut laboratory's disk, whose operations a test conducts."""

from __future__ import annotations

from collections.abc import Iterator

from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, MIB, SnapshotId
from bockd.runtime.steps import run_inline
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.scenarios.conductor import Conductor
from tests.drivers.local.named import volume_named
from tests.drivers.local.process import close_everything_below, die

SIZE = 2 * MIB
"""Two leaves of the block map."""

CUTS = 24
"""States of the disk that are looked at after one power cut."""

SECTOR = 512


def block_of(value: bytes) -> bytes:
    """A block that names itself in each sector."""
    return b"".join(value.ljust(8, b".") + b"%08d" % n for n in range(BLOCK_SIZE // 16))


class Stage:
    """One life of the pool. `boot` names the time since the machine started."""

    def __init__(self, disk: PowerCutDisk, life: str | None = None, boot: int = 1) -> None:
        self.disk = disk
        self.life = disk.new() if life is None else life
        self._boot = boot
        disk.arm(self.life, 0)
        self._open()
        if life is None:
            run_inline(self.pool.create_volume("v", SIZE))
        self.volume = volume_named(self.pool, "v")
        run_inline(self.pool.registry.recover_volumes())
        assert not self.pool.registry.refusals, self.pool.registry.refusals
        report = check_open_pool(self.pool.registry.store, live=frozenset(), repair=False)
        assert report.clean, report.problems

    def _open(self) -> None:
        self.conductor = Conductor()
        path = self.disk.path(self.life)
        self.pool = LocalPool.open(path, self.conductor.spawn, boot=f"{self._boot:036}")
        self.reclaimer = Reclaimer(self.pool.registry)
        self.pool.registry.on_garbage = lambda: self.conductor.spawn(self.reclaimer.run())

    @property
    def device(self) -> Volume:
        """The open volume."""
        if self.volume not in self.pool.registry.volumes:
            run_inline(self.pool.registry.use_volume(self.volume))
        return self.pool.registry.volumes[self.volume].volume

    # -- what is acknowledged when it returns --------------------------------------------------

    def write(self, block: int, value: bytes) -> None:
        run_inline(self.device.write(block * BLOCK_SIZE, memoryview(block_of(value))))

    def flush(self) -> None:
        run_inline(self.device.flush())

    def snapshot(self, name: str) -> SnapshotId:
        return run_inline(self.pool.create_snapshot(self.volume, name)).id

    def leave(self) -> None:
        """The volume's only client has gone."""
        self.pool.registry.leave_volume(self.volume)

    def read(self, block: int, node: Reader | None = None) -> bytes:
        buffer = bytearray(BLOCK_SIZE)
        run_inline((node or self.device).read(block * BLOCK_SIZE, memoryview(buffer)))
        return bytes(buffer)

    def assert_block(self, block: int, *values: bytes, zeros: bool = False) -> None:
        """Every sector of it is one of these values', or zeros if it may be."""
        found = self.read(block)
        possible = [block_of(value) for value in values] + [bytes(BLOCK_SIZE)] * zeros
        for at in range(0, BLOCK_SIZE, SECTOR):
            sector = found[at : at + SECTOR]
            allowed = [whole[at : at + SECTOR] for whole in possible]
            assert sector in allowed, f"block {block}, byte {at}: {sector[:16]!r}, not of {values}"

    # -- ends --------------------------------------------------------------------------------

    def end(self) -> None:
        """The process dies as by SIGKILL."""
        self.conductor.die()
        die(self.pool)
        close_everything_below(self.disk.path(self.life))

    def after_death(self) -> Stage:
        """The next life, after this one was killed."""
        self.end()
        return Stage(self.disk, self.life, self._boot)

    def after_power_cut(self) -> Iterator[Stage]:
        """Lives that may follow when the power fails now; each is over when the next one is asked
        for."""
        self.end()
        for number in range(CUTS):
            life = self.disk.restore(self.life, f"{self.life} {number}".replace(" ", "-"))
            stage = Stage(self.disk, life, self._boot + 1)
            yield stage
            stage.end()
            self.disk.drop(life)
        self.drop()

    def drop(self) -> None:
        """Nothing is wanted of it any more."""
        self.disk.drop(self.life)
