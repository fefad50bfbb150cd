"""A storm: clients write to several volumes over several connections while the daemon, a real
process on real sockets, is killed by SIGKILL again and again, at random moments; also while it
starts and recovers.

Each client knows of every unit of its volume which values were sent and which were acknowledged
(tests/crash/history.py). Snapshots, clones and deletions go on meanwhile. After each kill the pool
must be in order as it lies there; after the next start every acknowledged write must be there (D1),
every snapshot must be what it was (D4), and the pool must be in order.

What is done follows from the seed; how far the daemon has come when it is killed does not.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from bockd.cli.checking import check_pool
from bockd.daemon import settling as daemon_settling
from bockd.daemon.settling import Settling
from bockd.drivers.local import registry
from bockd.drivers.local.maintenance import resting, settling
from tests.crash.forked import START_SECONDS, ForkedDaemon
from tests.crash.history import History, Shot
from tests.crash.load import Load, drive, read_last_replies
from tests.crash.small import enlarge_heads, enlarge_journals, sizes, small_engine
from tests.crash.storm.client import Client, Errand
from tests.crash.storm.known import (
    VALUES_OF_A_VOLUME,
    KnownVolume,
    There,
    clone_of,
    verify_listing,
)
from tests.crash.storm.mutations import Mutation, break_for_good
from tests.daemon.process import ABOUT_THE_MACHINE, environment_without_a_cloud

JOURNAL_RECORDS = 1024
"""Of a small engine. Room for four records of each request that may be under way on a volume."""

PACKED_JOURNAL_RECORDS = 4096
"""The same with packed heads, where a request may take 37."""

PACKED_SHARES = (0.5, 0.0, 1.0)
"""Of the heads of snapshots and clones, by seed: those that are packed."""

CONNECTIONS = (1, 2, 4)
"""To one volume at once."""

MAX_CLONES = 2
MAX_SHOTS = 4
"""Of one volume; of more, some are deleted."""

LOOK_SECONDS = 0.05
"""Of a small engine, from one look for layers to settle to the next."""

LOOKS_TO_SETTLE = 3
"""One may be under way, the next one sees what is frozen, and the third one settles it."""

MOST_ACTS = 4
MOST_ACKNOWLEDGED = 400
"""On each volume, between two acts of a life."""

EXPECTED_LOG = re.compile(r"^INFO |never flushed and do not count|" + ABOUT_THE_MACHINE)


@dataclass
class Counts:
    """What storms have seen."""

    kills: int = 0
    kills_at_start: int = 0
    """Of them, before the daemon said that it was ready."""
    kills_in_operation: int = 0
    """Of them, while a snapshot, a clone or a deletion was under way."""
    acknowledged: int = 0
    """Writes, trims, zeroes and flushes, all verified after the next start."""
    volumes: int = 0
    """Volumes compared in full, after each start."""
    snapshots: int = 0
    """Snapshots compared in full, after each start."""
    operations: int = 0
    """Snapshots, clones and deletions that were done."""

    def plus(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def make_small(*, packed: bool) -> None:
    """In a daemon's process, for as long as it lives."""
    for target, name, value in sizes(JOURNAL_RECORDS):
        setattr(target, name, value)
    daemon_settling.LOOK_SECONDS = LOOK_SECONDS
    setattr(settling, "WINDOW_COST_BYTES", 0)  # noqa: B010  # or some windows take a life
    setattr(resting, "GROWTH_SHARE", 1 / 64)  # noqa: B010  # there is no rest
    resting.MAX_REST_LOOKS = 1
    if packed:
        enlarge_journals(PACKED_JOURNAL_RECORDS)
        enlarge_heads()


def note_looks(file: Path) -> None:
    """In a daemon's process, for as long as it lives: write a byte to a file each time that nothing
    more is to be settled until the next look."""
    real = Settling._put_off

    def ended(self: Settling, reason: str | None) -> None:
        real(self, reason)
        with file.open("ab") as looks:
            looks.write(b".")

    setattr(Settling, "_put_off", ended)  # noqa: B010


def _prepare(
    small: bool, packed_share: float, mutation: Mutation | None, looks: Path, seed: int
) -> None:
    packing = random.Random(seed)
    registry.packs_heads = lambda: packing.random() < packed_share
    if small:
        make_small(packed=packed_share > 0)
        note_looks(looks)
    if mutation is not None:
        break_for_good(mutation)


class Storm:
    """One pool, from its making through a number of kills. `mutation` breaks each daemon's engine
    first; `small` makes it small. Of the heads that may be packed `packed_share` are."""

    def __init__(
        self,
        work: Path,
        seed: int,
        *,
        small: bool,
        packed_share: float = 0.0,
        mutation: Mutation | None = None,
    ) -> None:
        self.counts = Counts()
        self._pool = work / "pool"
        self._log = work / "log"
        self._small = small
        self._looks = work / "looks"
        self._looks.touch()
        self._settles = small and packed_share > 0
        self._prepare = partial(_prepare, small, packed_share, mutation, self._looks)
        self._random = random.Random(seed)
        self._packing = random.Random(f"packing {seed}")
        self._journal_records = PACKED_JOURNAL_RECORDS if packed_share else JOURNAL_RECORDS
        self._volumes: dict[str, KnownVolume] = {}
        self._made = 0
        self._copied = False
        self._start_seconds = 1.0

    def run(self, kills: int) -> Counts:
        """Until the daemon was killed so often. AssertionError when a promise was broken."""
        self._start()
        try:
            # Whole blocks, and sectors: there most writes cover parts of blocks.
            for units, unit_bytes in ((2048, 4096), (4096, 512)):
                self._create(units, unit_bytes)
            while self.counts.kills < kills:
                self._live()
        except BaseException:
            self._daemon.kill()
            raise
        assert not self._daemon.stop(), "the daemon was killed by somebody else"
        self._check()
        return self.counts

    def _create(self, units: int, unit_bytes: int) -> None:
        name, number = self._new_name()
        history = History(units, unit_bytes, number * VALUES_OF_A_VOLUME + 1)
        volume = self._volumes[name] = KnownVolume(name, history, There.YES)
        self._client.create(name, volume.size_bytes)

    def _new_name(self) -> tuple[str, int]:
        self._made += 1
        return f"v{self._made}", self._made

    # -- one life ----------------------------------------------------------------------------

    def _live(self) -> None:
        """From one start that was verified to the next one."""
        loads = self._loads()
        for _ in range(self._random.randint(0, MOST_ACTS)):
            self._acknowledge(loads, self._random.randint(1, MOST_ACKNOWLEDGED))
            errand, ended = self._begin(loads)
            drive(loads.values(), lambda errand=errand: not errand.is_alive())  # type: ignore[misc]
            errand.end()
            ended(done=True)
            self.counts.operations += 1
        if self._settles and self._random.random() < 0.5:
            self._let_settle()
        self._acknowledge(loads, self._random.randint(1, MOST_ACKNOWLEDGED))
        under_way = None
        if self._random.random() < 0.6:
            under_way = self._begin(loads)
            self._acknowledge(loads, self._random.choice((0, 1, 5, 30)))
            self.counts.kills_in_operation += under_way[0].is_alive()
        self._daemon.kill()
        self.counts.kills += 1
        for load in loads.values():
            read_last_replies(load)
            self.counts.acknowledged += load.acknowledged
        if under_way is not None:
            errand, ended = under_way
            ended(done=errand.end(died=True))
        self._client.close()
        self._check()
        if self._random.random() < 0.3:
            self._copy()
        while self._random.random() < 0.3:
            self._die_at_start()
        self._start()
        self._verify()

    def _loads(self) -> dict[str, Load]:
        """Connections to most volumes."""
        chosen = [
            name for name in self._volumes if name in ("v1", "v2") or self._random.random() < 0.6
        ]
        return {
            name: Load(
                self._volumes[name].history,
                [self._client.connect(name) for _ in range(self._random.choice(CONNECTIONS))],
                self._random,
            )
            for name in chosen
        }

    @staticmethod
    def _acknowledge(loads: dict[str, Load], more: int) -> None:
        """Drive on until that many more requests were acknowledged on every volume."""
        wanted = {name: load.acknowledged + more for name, load in loads.items()}
        drive(
            loads.values(),
            lambda: all(load.acknowledged >= wanted[name] for name, load in loads.items()),
        )

    def _let_settle(self) -> None:
        """Wait until what is frozen now, and due, was settled: a short life does not come to it."""
        wanted = self._looks.stat().st_size + LOOKS_TO_SETTLE
        within = time.monotonic() + START_SECONDS
        while self._looks.stat().st_size < wanted:
            assert time.monotonic() < within, "the daemon does not look for what is to be settled"
            time.sleep(LOOK_SECONDS)

    # -- operations --------------------------------------------------------------------------

    def _begin(self, loads: dict[str, Load]) -> tuple[Errand, Callable[..., None]]:
        """Ask for something; what was asked, and what to do when it has ended."""
        volume = self._random.choice(list(self._volumes.values()))
        idle = [v for name, v in self._volumes.items() if name not in loads and not v.shots]
        known = [
            (v, shot)
            for v in self._volumes.values()
            for shot in v.shots
            if shot.content is not None
        ]
        clones = len(self._volumes) - 2
        if len(volume.shots) >= MAX_SHOTS:
            return self._delete_shot(volume, self._random.choice(volume.shots))
        if idle and self._random.random() < 0.3:
            return self._delete(self._random.choice(idle))
        if known and clones < MAX_CLONES and self._random.random() < 0.3:
            return self._clone(*self._random.choice(known))
        return self._snapshot(volume)

    def _snapshot(self, volume: KnownVolume) -> tuple[Errand, Callable[..., None]]:
        shot = volume.begin_shot()
        read_at_once = self._random.random() < 0.5

        def ended(*, done: bool) -> None:
            volume.end_shot(shot, created=done)
            if done and read_at_once and self._daemon.running:
                volume.history.verify_shot(shot, self._client.read(f"snapshot/{shot.name}"))

        return Errand(self._client, lambda client: client.snapshot(volume.name, shot.name)), ended

    def _delete_shot(self, volume: KnownVolume, shot: Shot) -> tuple[Errand, Callable[..., None]]:
        shot.deleting = True

        def ended(*, done: bool) -> None:
            if done:
                volume.shots.remove(shot)

        return Errand(self._client, lambda client: client.delete_snapshot(shot.name)), ended

    def _clone(self, source: KnownVolume, shot: Shot) -> tuple[Errand, Callable[..., None]]:
        name, number = self._new_name()
        volume = self._volumes[name] = clone_of(shot, source, name, number)

        def ended(*, done: bool) -> None:
            volume.there = There.YES if done else volume.there

        def create(client: Client) -> None:
            client.create(name, volume.size_bytes, shot.name)

        return Errand(self._client, create), ended

    def _delete(self, volume: KnownVolume) -> tuple[Errand, Callable[..., None]]:
        volume.there = There.GOING

        def ended(*, done: bool) -> None:
            if done:
                del self._volumes[volume.name]

        return Errand(self._client, lambda client: client.delete(volume.name)), ended

    def _copy(self) -> None:
        """Go on with a copy of the pool, as a tool leaves it that makes holes of zeros, or not."""
        sparse = self._random.choice(("auto", "always", "never"))
        copy = self._pool.with_name("copy")
        subprocess.run(["cp", "-a", f"--sparse={sparse}", self._pool, copy], check=True)
        shutil.rmtree(self._pool)
        copy.rename(self._pool)
        self._copied = True
        self._check()

    # -- ends and beginnings -----------------------------------------------------------------

    def _launch(self, patience_seconds: float = START_SECONDS) -> ForkedDaemon:
        environment = {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": os.devnull,
            "BOCKD_DATA": str(self._pool),
            "BOCKD_NBD_LISTEN": "none",
            "BOCKD_API_LISTEN": "127.0.0.1:0",
        }
        prepare = partial(self._prepare, self._packing.getrandbits(32))
        return ForkedDaemon(
            environment, self._log, prepare=prepare, patience_seconds=patience_seconds
        )

    def _start(self) -> None:
        began = time.monotonic()
        self._daemon = self._launch()
        assert self._daemon.ready, f"the daemon did not get ready:\n{self._log.read_text()}"
        self._start_seconds = time.monotonic() - began
        self._client = Client(self._pool, self._daemon)

    def _die_at_start(self) -> None:
        """Start it, and kill it at a random moment until a little after it is ready."""
        daemon = self._launch(self._random.uniform(0, 1.1 * self._start_seconds))
        self.counts.kills += 1
        self.counts.kills_at_start += not daemon.ready
        daemon.kill()
        self._check()

    def _check(self) -> None:
        """The pool is in order, as it lies there; and the daemons had no complaints."""
        with ExitStack() as stack:
            if self._small:
                stack.enter_context(small_engine(self._journal_records))
            report = check_pool(self._pool, repair=False)
        assert report.clean, report.problems
        assert report.hollow_blocks == 0 or self._copied
        for line in self._log.read_text().splitlines():
            assert EXPECTED_LOG.search(line), f"in the daemon's log: {line}"

    def _verify(self) -> None:
        """D1 and D4, by the daemon that has just started."""
        listed = {volume.id: volume.name for volume in self._client.control.list_volumes()}
        assert not any(volume.error for volume in self._client.control.list_volumes())
        verify_listing(self._volumes, set(listed.values()))
        shots: dict[str, set[str]] = {name: set() for name in listed.values()}
        for shot in self._client.control.list_snapshots():
            shots[listed[shot.volume]].add(shot.name)
        for name, volume in self._volumes.items():
            volume.verify_listing(shots[name])
            self.counts.snapshots += volume.verify(self._client.read)
            self.counts.volumes += 1
        report = self._client.control.check()
        assert report.clean, report.problems


def is_small(seed: int) -> bool:
    """Which engine a seed has: three of four are small."""
    return seed % 4 != 0


def packed_share(seed: int) -> float:
    """Return how many of the heads that may be packed are, with a seed."""
    return PACKED_SHARES[seed % len(PACKED_SHARES)]


def play(work: Path, seed: int, kills: int) -> Counts:
    """One storm in a directory of its own below `work`, which is kept if it fails: then what is
    raised names the seed and the directory."""
    directory = work / f"storm-{seed}"
    directory.mkdir()
    storm = Storm(directory, seed, small=is_small(seed), packed_share=packed_share(seed))
    try:
        counts = storm.run(kills)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {storm.counts}; the pool is in {directory}")
        raise
    shutil.rmtree(directory)
    return counts


def play_apart(work: Path, seed: int, kills: int) -> Counts:
    """The same in a process of its own: libnbd for Python keeps the buffers of asynchronous writes
    (version 1.14), some hundred MiB of them in one storm."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as apart:
        return apart.submit(play, work, seed, kills).result()
