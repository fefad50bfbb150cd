"""A daemon that is killed at a failpoint, and what must hold then.

It starts on a pool that another one has left in the middle of things, armed with one failpoint, and
a client does everything that can be done (scenario.py) until it dies. After a start without it: the
pool is in order; every write that was acknowledged is there; every request that was answered with
success is wholly done, and the one under way wholly or not at all; snapshots are what they were;
and the pool goes on.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bockd.cli.checking import check_pool
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.journal import RECORD_BYTES
from bockd.drivers.local.integrity.scrubbing import scrub_pool
from bockd.drivers.local.pool import LocalPool
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE, GIB, MIB, NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Background, run_inline

from ...daemon.process import ABOUT_THE_MACHINE, environment_without_a_cloud
from ..forked import ForkedDaemon
from .content import Disk
from .scenario import GONE, ROUNDS, Client, Scenario, World, credentials

WITHOUT_POOL = frozenset(
    {
        Failpoint.BALLAST_WRITTEN,
        Failpoint.SPARE_WRITTEN,
        Failpoint.CREDENTIALS_WRITTEN,
        Failpoint.ACCOUNTS_COMMITTED,
    }
)
"""What only the first start comes to."""

OF_PACKED_HEADS = frozenset(
    {
        Failpoint.CELLS_APPENDED,
        Failpoint.CELLS_FREED,
        Failpoint.ROTATE_LAYER,
        Failpoint.ROTATE_CHANGED,
        Failpoint.ROTATE_COMMITTED,
        Failpoint.SWEEP_PUNCHED,
        Failpoint.SETTLE_COPIED,
        Failpoint.SETTLE_SYNCED,
        Failpoint.SETTLE_LED,
        Failpoint.SETTLE_MOVED,
    }
)
"""What daemons come to by chance; test_packed_heads.py does surely."""

OF_THE_SHARED_INDEX = frozenset(
    {
        Failpoint.SHARED_CHANGED,
        Failpoint.SHARED_UNANSWERED,
        Failpoint.SHARED_SETTLED,
        Failpoint.SHARED_APPENDED,
        Failpoint.SHARED_COMMITTED,
        Failpoint.SHARED_LOADED,
        Failpoint.DUMP_BEGUN,
        Failpoint.DUMP_PIECE,
        Failpoint.DUMP_WRITTEN,
        Failpoint.DUMP_SWUNG,
        Failpoint.DUMP_CLAIMED,
        Failpoint.DUMP_PIECE_REMOVED,
        Failpoint.DUMP_REMOVED,
    }
)
"""Of pools in Ceph, which no daemon serves yet; tests/drivers/rbd/test_dying.py comes to them."""

OF_TAKING = frozenset(
    {
        Failpoint.TAKE_OPENED,
        Failpoint.TAKE_ASKED,
        Failpoint.TAKE_BROKEN,
        Failpoint.TAKE_LOCKED,
        Failpoint.TAKE_RECORDED,
        Failpoint.GIVE_BACK_CLOSED,
    }
)
"""Of the same pools; tests/drivers/rbd/test_gateways.py comes to them."""

OF_IMAGES = frozenset({Failpoint.IMAGE_MADE, Failpoint.IMAGE_NAMED, Failpoint.IMAGE_FORGOTTEN})
"""Of the same pools; tests/drivers/rbd/test_pool_dying.py comes to them."""

OF_LEFTOVERS = frozenset(
    {
        Failpoint.GATEWAY_ENTERED,
        Failpoint.GENERATION_BEGUN,
        Failpoint.LEFTOVER_CLAIMED,
        Failpoint.LEFTOVER_REMOVED,
        Failpoint.IMAGE_FLATTENED,
    }
)
"""Of the same pools; tests/drivers/rbd/test_leftovers.py comes to them."""

OF_THE_CACHE = frozenset(
    {
        Failpoint.CACHE_SYNCED,
        Failpoint.CACHE_MAP_WRITTEN,
        Failpoint.CACHE_MAP_NAMED,
        Failpoint.CACHE_MAP_REMOVED,
    }
)
"""Of the cache in front of such pools; tests/drivers/cache/test_keeping.py comes to them."""

OF_WRITE_BACK = frozenset(one for one in Failpoint if one.value.startswith("writeback."))
"""Of write-back in front of such pools; tests/drivers/writeback/test_dying.py comes to them."""

OF_THE_TRASH = frozenset(
    {
        Failpoint.TRASH_CLOSED,
        Failpoint.TRASH_CHANGED,
        Failpoint.TRASH_COMMITTED,
        Failpoint.RESTORE_CHANGED,
        Failpoint.RESTORE_COMMITTED,
        Failpoint.API_TRASHED,
        Failpoint.API_RESTORED,
        Failpoint.API_TRASH_FORGOTTEN,
    }
)
"""Of daemons that keep what is deleted; test_trash.py comes to them."""

OF_THE_TRASH_IN_CEPH = frozenset({Failpoint.TRASH_FORMAT})
"""Of pools in Ceph; tests/drivers/rbd/test_trash_dying.py comes to it, and to all of the above."""

NOT_HERE = (
    OF_PACKED_HEADS
    | OF_THE_SHARED_INDEX
    | OF_TAKING
    | OF_IMAGES
    | OF_LEFTOVERS
    | OF_THE_CACHE
    | OF_WRITE_BACK
    | OF_THE_TRASH
    | OF_THE_TRASH_IN_CEPH
)

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


def make_ground(work: Path) -> Ground:
    """Make a pool whose daemon was killed: volumes in use, with journals that are torn at their
    ends, and one half deleted. Then one whole run of the scenario."""
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
    opened = LocalPool.open(pool, Background().spawn)

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
        client.delete_twins()
        client.until_reclaimed()
