"""SIGKILL of the daemon while clients write (promise D1), ten times over each way of looking.

Our own client is the stricter check. It knows of every 4 KiB block, and on a second volume of
every 512-byte sector, which values were sent and which were acknowledged, over several connections
whose operations meet; it trims, zeroes and flushes among the writes; snapshots are taken and
deleted while it writes, and each must hold what was acknowledged when it was asked for. fio, the
second check, writes each place once; what its completion log says was acknowledged must verify.
"""

from __future__ import annotations

import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bockd.cli.storage import StorageClient
from bockd.control import VolumeStatistics
from bockd.errors import BockdError

from ..daemon.process import Bockd, program, serving
from .history import History, Shot
from .load import Load, drive, read_last_replies

KILLS = 10
MAX_HANGS = 5
FIO_END_SECONDS = 20.0
CONNECTIONS = 3
KEPT_SNAPSHOTS = 4

SEED = 80


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(tmp_path_factory.mktemp("crash") / "pool") as running:
        # A record that the kill tore apart was not acknowledged; recovery says that it was there.
        running.expect_in_log("never flushed and do not count")
        yield running


class Errand(threading.Thread):
    """Something asked of the daemon while the load goes on; the daemon may die of it."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self.succeeded = False
        self._action = action
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except (BockdError, AssertionError):
            return  # the daemon was killed; whether it was done is seen afterwards
        self.succeeded = True


@dataclass
class Volume:
    """A volume under load, what it may hold, and its snapshots."""

    daemon: Bockd
    name: str
    history: History
    snapshots: list[Shot] = field(default_factory=list)
    taken: int = 0

    @property
    def size_bytes(self) -> int:
        return self.history.units * self.history.unit_bytes

    def take_snapshot(
        self, storage: StorageClient, *, by_bock: bool
    ) -> tuple[Errand, Callable[[], None]]:
        """Ask for a snapshot; the errand, and what to do when it has ended."""
        name = f"{self.name}-{self.taken}"
        self.taken += 1
        shot = self.history.begin_shot(name)
        self.snapshots.append(shot)

        def create() -> None:
            if by_bock:
                self.daemon.bock("snapshot", "create", self.name, name)
            else:
                storage.create_snapshot(storage.find_volume(self.name).id, name)

        errand = Errand(create)

        def ended() -> None:
            shot.created = errand.succeeded
            self.history.shots.remove(shot)

        return errand, ended

    def delete_snapshot(
        self, storage: StorageClient, shot: Shot
    ) -> tuple[Errand, Callable[[], None]]:
        """Ask for a snapshot's deletion, which begins background reclaim."""
        shot.deleting = True
        errand = Errand(lambda: storage.delete_snapshot(storage.find_snapshot(shot.name).id))

        def ended() -> None:
            if errand.succeeded:
                self.snapshots.remove(shot)

        return errand, ended

    def verify(self) -> int:
        """After a restart: the volume holds what was acknowledged or newer, and every snapshot
        what it held. Returns for how many units more than one value was possible."""
        with self.daemon.control() as control:
            found = {snapshot.name for snapshot in control.list_snapshots(self.name)}
        expected = {shot.name for shot in self.snapshots}
        certain = {shot.name for shot in self.snapshots if shot.created and not shot.deleting}
        assert certain <= found <= expected
        self.snapshots = [shot for shot in self.snapshots if shot.name in found]
        for shot in self.snapshots:
            self.history.verify_shot(shot, self._read(f"snapshot/{shot.name}"))
            shot.created, shot.deleting = True, False
        return self.history.verify(self._read(self.name))

    def _read(self, export: str) -> bytes:
        with self.daemon.connected(export) as client:
            return bytes(client.pread(self.size_bytes, 0))


def run_until_killed(daemon: Bockd, volumes: list[Volume], choose: random.Random) -> None:
    """Load on every volume, snapshots meanwhile, and the end of the daemon at a random moment:
    some acknowledgements after a snapshot or a deletion began, or after it was done."""
    with daemon.storage() as storage:
        storage.list_volumes()  # logged in, so that an errand reaches the daemon at once
        _run_until_killed(daemon, storage, volumes, choose)


def _run_until_killed(
    daemon: Bockd, storage: StorageClient, volumes: list[Volume], choose: random.Random
) -> None:
    loads = [
        Load(volume.history, [daemon.connect(volume.name) for _ in range(CONNECTIONS)], choose)
        for volume in volumes
    ]

    def acknowledge(more: int) -> None:
        """Drive on until that many more operations were acknowledged on every volume."""
        wanted = [load.acknowledged + more for load in loads]
        drive(
            loads,
            lambda: all(
                load.acknowledged >= count for load, count in zip(loads, wanted, strict=True)
            ),
        )

    acknowledge(choose.randint(1, 1500))
    waiting: list[Callable[[], None]] = []
    for step in range(3):
        volume = choose.choice(volumes)
        if len(volume.snapshots) > KEPT_SNAPSHOTS:
            errand, ended = volume.delete_snapshot(storage, choose.choice(volume.snapshots))
        else:
            errand, ended = volume.take_snapshot(storage, by_bock=choose.random() < 0.3)
        if step == 2 and choose.random() < 0.6:
            # Right in the middle of it.
            acknowledge(choose.randint(1, 150))
            waiting = [errand.join, ended]
        else:
            drive(loads, lambda errand=errand: not errand.is_alive())  # type: ignore[misc]
            assert errand.succeeded
            ended()
            acknowledge(choose.randint(1, 1500))
    daemon.kill()
    for load in loads:
        read_last_replies(load)
    for step_to_end in waiting:
        step_to_end()


# An errand that finds the daemon dead: httpcore leaves the socket to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
def test_what_was_acknowledged_survives_ten_kills(daemon: Bockd) -> None:
    """After each kill the pool is in order before the restart and after it, every unit holds its
    last acknowledged value or a newer one that was sent, and every snapshot is what it was."""
    print(f"seed {SEED}")
    choose = random.Random(SEED)
    # One volume in whole blocks; one in sectors, so that most writes cover parts of blocks.
    volumes = [
        Volume(daemon, "blocks", History(2048, 4096)),
        Volume(daemon, "sectors", History(4096, 512)),
    ]
    for volume in volumes:
        daemon.bock("volume", "create", volume.name, "--size", str(volume.size_bytes))
    for number in range(KILLS):
        run_until_killed(daemon, volumes, choose)
        daemon.check()
        daemon.start()
        uncertain = [volume.verify() for volume in volumes]
        report = daemon.check()
        print(f"kill {number}: units with more than one possible value {uncertain}, {report}")
    daemon.stop()
    daemon.check()


def fio_arguments(daemon: Bockd, work: Path, number: int) -> list[str]:
    return [
        "--ioengine=nbd",
        f"--uri={daemon.uri(f'fio-{number}')}",
        "--name=job",
        "--rw=randwrite",
        "--bs=4k",
        "--size=96M",
        "--iodepth=64",
        "--verify=crc32c",
        "--thread",
        f"--randseed={number + 1}",
        "--randrepeat=0",  # which would take the same seed for every run
        f"--aux-path={work}",
    ]


def places_that_fail(daemon: Bockd, work: Path, number: int) -> set[int]:
    """Run fio's verification of the job alone; the offsets at which it finds something else."""
    arguments = fio_arguments(daemon, work, number)
    result = daemon.run("fio", *arguments, "--verify_only", "--verify_state_load=1")
    return {
        int(offset)
        for offset in re.findall(r"^verify: bad .* offset (\d+), length 4096", result.err, re.M)
    }


def acknowledged_places(log: Path) -> set[int]:
    """fio's log of completions (time, latency, direction, size, offset, ...); 1 is a write."""
    fields = [line.split(", ") for line in log.read_text().splitlines()]
    return {int(entry[4]) for entry in fields if entry[2] == "1"}


def test_what_fio_was_told_survives_ten_kills(daemon: Bockd, tmp_path: Path) -> None:
    """fio writes each place of a volume once, with a checksum; all but what was under way when the
    daemon died must verify. Each kill has a volume of its own, because fio's verification takes
    what an earlier run wrote for the right thing; the one before is deleted, so that its space is
    reclaimed during the load."""
    print(f"seed {SEED + 1}")
    choose = random.Random(SEED + 1)
    kills = hangs = 0
    while kills < KILLS:
        number = kills + hangs
        daemon.bock("volume", "create", f"fio-{number}", "--size", "96M")
        if number:
            daemon.bock("volume", "delete", f"fio-{number - 1}", "--yes")
        enough = choose.randint(1 << 20, 40 << 20)
        work = tmp_path / str(number)
        work.mkdir()
        ended = write_until_killed(daemon, work, number, enough)
        daemon.check()
        daemon.start()
        if not ended:
            hangs += 1
            assert hangs <= MAX_HANGS
            continue
        acknowledged = acknowledged_places(work / "log_clat.1.log")
        assert len(acknowledged) * 4096 >= enough - (64 << 12)
        failed = places_that_fail(daemon, work, number)
        print(f"kill {kills}: {len(acknowledged)} acknowledged, {len(failed)} under way")
        assert not failed & acknowledged
        assert len(failed) <= 64
        daemon.wait_until_unused(f"fio-{number}")
        daemon.check()
        kills += 1


def write_until_killed(daemon: Bockd, work: Path, number: int, enough: int) -> bool:
    """Let fio write, and kill the daemon when `enough` bytes are written. False when fio did not
    end: fio 3.33 now and then spins on a connection that is gone, and then writes no log."""
    log = ("--log_offset=1", f"--write_lat_log={work / 'log'}", "--do_verify=0")
    with subprocess.Popen(
        [program("fio"), *fio_arguments(daemon, work, number), *log],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=work,
    ) as client:
        try:
            with daemon.control() as control:
                while written(control.statistics()) < enough:
                    assert client.poll() is None
            daemon.kill()
            assert client.wait(FIO_END_SECONDS) != 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            client.kill()
    return True


def written(statistics: list[VolumeStatistics]) -> int:
    return sum(entry.written_bytes for entry in statistics)
