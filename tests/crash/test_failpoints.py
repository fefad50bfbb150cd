"""SIGKILL at every failpoint of bockd/failpoints.py, at its first and at a later hit.

The daemon starts on a pool that another one has left in the middle of things, armed with one
failpoint, and a client does everything that can be done (tests/crash/scenario.py) until it dies.
After a start without it: the pool is in order; every write that was acknowledged is there; every
request that was answered with success is wholly done, and the one under way wholly or not at all;
snapshots are what they were; and the pool goes on. A failpoint that nothing reaches is an error.

    pytest tests/crash/test_failpoints.py -k transition
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bockd.cli.checking import check_pool
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.journal import RECORD_BYTES
from bockd.drivers.local.integrity.scrubbing import scrub_pool
from bockd.drivers.local.pool import Pool
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE, GIB, MIB, NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Background, run_inline

from ..daemon.process import ABOUT_THE_MACHINE, Bockd, environment_without_a_cloud, program
from .content import Disk
from .forked import ForkedDaemon
from .rest import Rest
from .scenario import GONE, ROUNDS, Client, Scenario, World, credentials

LATER = {
    Failpoint.INDEX_CHANGED: (4, 9, 16, 30, 60),
    Failpoint.INDEX_COMMITTED: (4, 9, 16, 30, 60),
    Failpoint.WRITE_BEGUN: (70,),
    Failpoint.WRITE_DATA: (75,),
    Failpoint.WRITE_PIECE: (8,),
    Failpoint.JOURNAL_APPENDED: (6,),
}
"""Hits to die at besides the first; two of most."""

WITHOUT_POOL = frozenset(
    {
        Failpoint.BALLAST_WRITTEN,
        Failpoint.SPARE_WRITTEN,
        Failpoint.CREDENTIALS_WRITTEN,
        Failpoint.ACCOUNTS_COMMITTED,
    }
)
"""What only the first start comes to."""

OF_A_CHANGE = frozenset(point for point in Failpoint if point.startswith("api-"))
"""Steps of one change that a client asked for: a later change is no different from the first."""

ONCE_A_START = frozenset({Failpoint.POOL_ESTABLISHED, Failpoint.SETTLED})
"""What no daemon comes to twice; it saves time to know."""

EXPECTED_LOG = re.compile(
    r"^INFO |differs from what it held|failed with EIO: .* is damaged|"
    r"never flushed and do not count|cannot be opened: .* is refused after an error|"
    rf"{ABOUT_THE_MACHINE}"
)


@dataclass
class Ground:
    """A pool to begin with, what is in it, and what a run without a failpoint listed."""

    pool: Path
    world: World
    listings: list[dict[str, object]] = field(default_factory=list)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failpoints")


@pytest.fixture(scope="module")
def ground(work: Path) -> Ground:
    """A pool whose daemon was killed: volumes in use, with journals that are torn at their ends,
    and one half deleted. Then one whole run of the scenario."""
    pool, log = work / "ground", work / "log"
    world = World()
    daemon = start(pool, log, Failpoint.API_DELETING_VOLUME)
    client = Client(pool, daemon, world)
    client.rest.authenticate(credentials(pool))
    world.token, world.tenant = client.rest.token, client.rest.tenant
    for name in ("left", "right", *(f"broken-{number}" for number in ROUNDS)):
        disk = world.disks[name] = Disk(1 * MIB)
        document = {"bockd": {"size_bytes": 1 * MIB}, "display_name": name}
        made = client.rest.post("/volumes", {"volume": document})["volume"]["id"]
        writer = client.connect(name)
        disk.write(writer, 0, b"%4d" % len(name) * (4 * BLOCK_SIZE // 4))
        writer.flush()
        disk.write(writer, 8 * BLOCK_SIZE, name.encode() * 1000)
        world.shots[f"shot of {name}"] = disk.frozen()
        document = {"volume_id": made, "display_name": f"shot of {name}"}
        client.rest.post("/snapshots", {"snapshot": document})
        disk.write(writer, 700, name.encode() * 1000)
    doomed = client.rest.post("/volumes", {"volume": {"size": 1, "display_name": "doomed"}})
    world.disks["doomed"] = Disk(1 << 30)
    with pytest.raises(GONE):
        client.rest.delete(f"/volumes/{doomed['volume']['id']}")
    client.close()
    assert daemon.died()
    add_what_no_client_can(pool, world)
    for segment in (pool / "journal").glob("*.*.*"):
        with segment.open("r+b") as file:  # a record that the kill tore
            file.seek(-RECORD_BYTES, os.SEEK_END)
            file.write(b"torn")
    return Ground(pool, world, whole_run(pool, work, world))


def add_what_no_client_can(pool: Path, world: World) -> None:
    """Volumes that belong to nobody, as older versions made them; and volumes that failed."""
    opened = Pool.open(pool, Background().spawn)

    def fail(txn: Transaction) -> None:
        catalogue = Catalogue(txn)
        for number in ROUNDS:
            broken = catalogue.find(NodeKind.VOLUME, f"broken-{number}")
            record = catalogue.volume(VolumeId(broken))
            catalogue.put_volume(replace(record, failed="the disk was broken"))

    try:
        for number in ROUNDS:
            name = f"nobody's-{number}"
            world.disks[name] = Disk(1 * MIB)
            run_inline(opened.create_volume(name, 1 * MIB))
        opened.index.update(fail)
    finally:
        opened.release()


def whole_run(ground: Path, work: Path, world: World) -> list[dict[str, object]]:
    """The scenario to its end, without a failpoint: the listings after each change."""
    pool = work / "whole"
    copy_pool(ground, pool)
    daemon = start(pool, work / "whole.log")
    scenario = Scenario(pool, daemon, copy.deepcopy(world), record=True)
    try:
        scenario.run()
    finally:
        scenario.close()
        died = daemon.stop()
    assert not died
    assert_clean(pool)
    shutil.rmtree(pool)
    return scenario.listings


def copy_pool(source: Path, target: Path) -> None:
    """With its holes, which recovery looks at, and its sockets."""
    subprocess.run(["cp", "-a", source, target], check=True)


def start(pool: Path, log: Path, point: Failpoint | None = None, hit: int = 1) -> ForkedDaemon:
    environment = {
        **environment_without_a_cloud(),
        "BOCKD_CONFIG": os.devnull,
        "BOCKD_DATA": str(pool),
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": "127.0.0.1:0",
    }
    if point is not None:
        environment[VARIABLE] = f"{point}:{hit}"
    return ForkedDaemon(environment, log)


def assert_clean(pool: Path) -> None:
    report = check_pool(pool, repair=False)
    assert report.clean, report.problems
    assert report.hollow_blocks == 0


@dataclass
class Run:
    """One pool, its daemons, and what should be in it."""

    pool: Path
    log: Path
    ground: Ground
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        """As if nothing had been done."""
        shutil.rmtree(self.pool, ignore_errors=True)
        self.world = copy.deepcopy(self.ground.world)
        copy_pool(self.ground.pool, self.pool)

    def dies(self, point: Failpoint, hit: int) -> bool:
        """Start it armed and play the scenario; False when it came to its end."""
        daemon = start(self.pool, self.log, point, hit)
        if not daemon.ready:
            assert daemon.died()
            return True
        with warnings.catch_warnings():
            # httpcore leaves a socket open whose connection was refused, if the daemon died between
            # two requests.
            warnings.simplefilter("ignore", ResourceWarning)
            return self._plays_until_death(daemon)

    def _plays_until_death(self, daemon: ForkedDaemon) -> bool:
        scenario = Scenario(self.pool, daemon, self.world)
        try:
            scenario.run()
        except GONE:
            assert daemon.died(), self.log.read_text()
            return True
        finally:
            scenario.close()
        return daemon.stop()

    def dies_again(self, point: Failpoint) -> None:
        """Start it armed once more, and end it if it lives."""
        daemon = start(self.pool, self.log, point)
        if daemon.ready:
            daemon.stop()
        else:
            assert daemon.died()

    def verify(self) -> None:
        """Everything is as promised, before the next start and after it; and the pool goes on."""
        if self.world.flipped is not None:
            self.world.flip(self.pool, self.world.flipped)
            scrub_pool(self.pool, GIB, restart=True, only_look=False, show=lambda _: None)
        assert_clean(self.pool)
        daemon = start(self.pool, self.log)
        assert daemon.ready, self.log.read_text()
        client = Client(self.pool, daemon, self.world)
        try:
            self._verify_listing(client)
            self._verify_content(client)
            report = client.control.check()
            assert report.clean, report.problems
            self._verify_use(client)
        finally:
            client.close()
            died = daemon.stop()
        assert not died
        assert_clean(self.pool)
        for line in self.log.read_text().splitlines():
            assert EXPECTED_LOG.search(line), f"in the daemon's log: {line}"

    def _verify_listing(self, client: Client) -> None:
        world, known = self.world, self.ground.listings
        possible = known[world.changes : world.changes + (1 if world.under_way is None else 2)]
        found = client.listing()
        assert found in possible, f"after {world.changes} changes, under way: {world.under_way}"

    def _verify_content(self, client: Client) -> None:
        for volume in client.control.list_volumes():
            if volume.error is not None:
                continue  # it has not been reopened yet
            disk = self.world.disks[volume.name]
            disk.verify(
                volume.name,
                lambda length, _, name=volume.name: client.read(name, length),  # type: ignore[misc]
            )
        for snapshot in client.control.list_snapshots():
            expected = self.world.shots[snapshot.name]
            found = client.read(f"snapshot/{snapshot.name}", len(expected))
            assert found == expected, f"snapshot {snapshot.name} has changed"

    def _verify_use(self, client: Client) -> None:
        """What follows is not hindered by what the kill has left."""
        made = client.rest.post("/volumes", {"volume": {"size": 1, "display_name": "after"}})
        disk = Disk(1 << 30)
        writer = client.connect("after")
        disk.write(writer, 5 * BLOCK_SIZE, b"after" * 2000)
        writer.flush()
        writer.shutdown()
        disk.verify("after", lambda length, _: client.read("after", length))
        client.until_unused("after")
        client.rest.delete(f"/volumes/{made['volume']['id']}")
        client.until_reclaimed()


def assert_dies_without_pool(pool: Path, log: Path, point: Failpoint, starts: int) -> None:
    """Where there is no pool yet; what is left must do for the next start, and the one after."""
    for number in range(starts):
        daemon = start(pool, log, point)
        died = daemon.stop() if daemon.ready else daemon.died()
        assert died or number, f"nothing comes to {point}"
    daemon = start(pool, log)
    assert daemon.ready, log.read_text()
    rest = Rest(daemon.api_port)
    rest.authenticate(credentials(pool))
    assert rest.get("/volumes") == {"volumes": []}
    rest.close()
    assert not daemon.stop()
    assert_clean(pool)


@pytest.fixture
def run(work: Path, ground: Ground) -> Iterator[Run]:
    pool = work / "pool"
    yield Run(pool, work / "pool.log", ground)
    shutil.rmtree(pool)
    (work / "pool.log").unlink()


@pytest.fixture
def empty(work: Path) -> Iterator[Path]:
    yield work / "new"
    shutil.rmtree(work / "new")


@pytest.mark.parametrize("point", [point for point in Failpoint if point not in WITHOUT_POOL])
def test_killed_at_the_first_hit(run: Run, point: Failpoint) -> None:
    died = run.dies(point, 1)
    run.verify()
    assert died, f"nothing comes to {point}: let tests/crash/scenario.py do what does"


@pytest.mark.parametrize(
    ("point", "hit"),
    [
        (point, hit)
        for point in Failpoint
        if point not in WITHOUT_POOL | OF_A_CHANGE
        for hit in LATER.get(point, (2,))
    ],
)
def test_killed_at_a_later_hit(run: Run, point: Failpoint, hit: int) -> None:
    """What one daemon comes to only once is killed there, and so is the next one if it comes to
    it."""
    if point in ONCE_A_START or not run.dies(point, hit):
        run.begin_again()
        assert run.dies(point, 1)
        run.dies_again(point)
    run.verify()


@pytest.mark.parametrize("starts", [1, 2])
@pytest.mark.parametrize("point", sorted(WITHOUT_POOL))
def test_killed_where_there_was_no_pool(
    empty: Path, work: Path, point: Failpoint, starts: int
) -> None:
    assert_dies_without_pool(empty, work / "new.log", point, starts)


def test_the_command_itself_dies_there(work: Path) -> None:
    """Not only a process that a test has forked."""
    environment = {
        **environment_without_a_cloud(),
        "BOCKD_CONFIG": os.devnull,
        "BOCKD_DATA": str(work / "real"),
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": "none",
        VARIABLE: Failpoint.POOL_ESTABLISHED,
    }
    ended = subprocess.run(
        [program("bockd"), "serve"], env=environment, capture_output=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (-9, b"")


@pytest.mark.parametrize("text", ["", "write", "write.data:", "write.data:0", "write.data:x", ":1"])
def test_a_failpoint_that_is_none_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    refusal = Bockd(work / "refused", work / "refused.log").refusal_to_start()
    assert f"BOCKD_FAILPOINT='{text}' is not NAME or NAME:HIT" in refusal
    assert not (work / "refused").exists()
