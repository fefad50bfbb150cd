"""What `bock du` says of a pool in Ceph: `rbd du` agrees, and what is to return does return."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.model import MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.lineage import Key
from bockd.pool.reports import FamilyUsage, NodeUsage, Space
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.pooldriver import RbdDriver
from tests.drivers.rbd.sweeping import MAX_DEPTH

need_modules()

from bockd.drivers.rbd.extents import OBJECT_BYTES  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.imagestore import RbdImageStore  # noqa: E402
from bockd.drivers.rbd.sweep import FULL_LOOK_EVERY, Patience, Sweep  # noqa: E402
from bockd.drivers.rbd.usage import measure_usage  # noqa: E402
from tests.drivers.rbd.pools import images, record  # noqa: E402

OBJECTS = 4
VOLUME, SNAPSHOT = NodeKind.VOLUME, NodeKind.SNAPSHOT


class Pool:
    """A pool whose volumes have a few objects."""

    def __init__(self, driver: RbdDriver) -> None:
        self.driver = driver
        self.store = RbdImageStore(driver.settings)
        driver.rbd.session.table.enter()
        self._number = 0

    def close(self) -> None:
        self.store.close()
        self.driver.close()

    def volume(self, source: SnapshotId | None = None) -> VolumeId:
        self._number += 1
        size = OBJECTS * OBJECT_BYTES if source is None else None
        made = self.driver.pool.create_volume(f"n{self._number}", size, source)
        return self.driver.run(made).id

    def snapshot(self, volume: VolumeId) -> SnapshotId:
        self._number += 1
        return self.driver.run(self.driver.pool.create_snapshot(volume, f"n{self._number}")).id

    def write(self, volume: VolumeId, *objects: int) -> None:
        for number in objects:
            self.driver.write(volume, number * self.driver.unit_blocks, b"x")

    def delete(self, kind: NodeKind, node: int) -> None:
        """And have removed what nothing needs any more."""
        pool = self.driver.pool
        if kind is VOLUME:
            self.driver.run(pool.close_idle(kind, node))
            self.driver.run(pool.delete_volume(VolumeId(node)))
        else:
            self.driver.run(pool.delete_snapshot(SnapshotId(node)))
        sweep = Sweep(self.driver.rbd.index, self.store, MAX_DEPTH, Patience(0.0, 0.0))
        for _ in range(FULL_LOOK_EVERY + 1):
            assert sweep.look()

    def families(self) -> tuple[FamilyUsage, ...]:
        return self.driver.run(measure_usage(self.driver.rbd.session, {}))

    def nodes(self) -> dict[Key, NodeUsage]:
        return {(one.kind, one.id): one for family in self.families() for one in family.nodes}

    def total(self) -> int:
        return sum(family.total_bytes for family in self.families())


@pytest.fixture
def pool(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[Pool]:
    one = Pool(RbdDriver(rbd_namespace, tmp_path / "pool"))
    yield one
    one.close()


def figures(node: NodeUsage) -> tuple[int, int, int | None, int]:
    """Exclusive, shared, freed, and with all below, in objects."""
    freed = None if node.freed_bytes is None else node.freed_bytes // OBJECT_BYTES
    space, below = node.space, node.with_below_bytes // OBJECT_BYTES
    return space.exclusive_bytes // OBJECT_BYTES, space.shared_bytes // OBJECT_BYTES, freed, below


def used_by_rbd_du(settings: RbdSettings, image: str) -> int:
    """What Ceph's own command says that an image takes with all its snaps."""
    said = subprocess.run(
        [
            *("rbd", "--conf", str(settings.conf_file), "--keyring", str(settings.keyring_file)),
            *("--id", settings.user, "--format", "json", "du"),
            f"{settings.pool}/{settings.namespace}/{image}",
        ],
        check=True,
        capture_output=True,
    )
    return sum(int(one["used_size"]) for one in json.loads(said.stdout)["images"])


def test_a_tree_of_a_volume_its_snapshots_and_a_clone(pool: Pool) -> None:
    web = pool.volume()
    pool.write(web, 0, 1, 2)
    first = pool.snapshot(web)
    pool.write(web, 0)
    second = pool.snapshot(web)
    pool.write(web, 0, 3)
    copy = pool.volume(first)
    pool.write(copy, 0)
    (family,) = pool.families()
    found = {(one.kind, one.id): figures(one) for one in family.nodes}
    assert found == {
        # Object 0 as it was last, and 3; its snapshots have the rest; the image stays for them.
        (VOLUME, web): (2, 2, 0, 7),
        # A clone hangs on it, so nobody knows what is its own, and nothing goes with it alone.
        (SNAPSHOT, first): (0, 3, 0, 2),
        (SNAPSHOT, second): (1, 2, 1, 1),
        (VOLUME, copy): (1, 2, 1, 1),
    }
    assert family.total_bytes == 7 * OBJECT_BYTES
    assert family.hidden_snaps == 0
    assert [one.made_of for one in family.nodes] == [
        None,
        (VOLUME, web),
        (VOLUME, web),
        (SNAPSHOT, first),
    ]
    assert sum(used_by_rbd_du(pool.driver.settings, one) for one in images(pool.driver)) == (
        family.total_bytes
    )
    pool.delete(SNAPSHOT, first)
    (family,) = pool.families()
    assert family.hidden_snaps == 1
    assert {figures(one)[:2] for one in family.nodes if one.id == copy} == {(1, 2)}


def test_what_a_trim_takes_away_is_in_the_snapshot_only(pool: Pool) -> None:
    web = pool.volume()
    pool.write(web, 0, 1)
    first = pool.snapshot(web)
    driver = pool.driver
    device = driver.run(driver.pool.use(VOLUME, web))
    driver.run(device.trim(0, OBJECT_BYTES))
    driver.pool.leave(VOLUME, web)
    found = pool.nodes()
    assert figures(found[SNAPSHOT, first]) == (1, 1, 1, 1)
    assert figures(found[VOLUME, web]) == (0, 1, 0, 2)


def test_an_image_without_its_volume_goes_with_its_last_snapshot(pool: Pool) -> None:
    web = pool.volume()
    pool.write(web, 0)
    first = pool.snapshot(web)
    pool.write(web, 0, 1)
    second = pool.snapshot(web)
    pool.write(web, 1)
    image = record(pool.driver, web).image
    pool.delete(VOLUME, web)
    assert pool.total() == 4 * OBJECT_BYTES
    assert figures(pool.nodes()[SNAPSHOT, first])[2] == 1
    pool.delete(SNAPSHOT, first)
    # What the volume has written after it, too.
    assert figures(pool.nodes()[SNAPSHOT, second]) == (2, 0, 3, 3)
    assert image in images(pool.driver)
    pool.delete(SNAPSHOT, second)
    assert images(pool.driver) == set()
    assert pool.families() == ()


def test_a_volume_whose_image_is_missing_takes_nothing(pool: Pool) -> None:
    lost, other = pool.volume(), pool.volume()
    pool.write(other, 0)
    driver = pool.driver
    driver.run(driver.pool.close_idle(VOLUME, other))
    pool.store.remove(record(driver, lost).image)
    found = pool.nodes()
    assert found[VOLUME, lost].space == Space(0, 0)
    assert figures(found[VOLUME, other]) == (1, 0, 1, 1)


@pytest.mark.parametrize("seed", range(2))
def test_what_is_said_to_return_does_return(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    nodes: list[Key] = []
    for _ in range(14):
        volumes = [VolumeId(node) for kind, node in nodes if kind is VOLUME]
        snapshots = [SnapshotId(node) for kind, node in nodes if kind is SNAPSHOT]
        what = chance.choice(["write", "write", "snapshot", "copy", "new"])
        if what == "new" or not volumes:
            nodes.append((VOLUME, pool.volume()))
        elif what == "write":
            pool.write(chance.choice(volumes), chance.randrange(OBJECTS))
        elif what == "snapshot":
            nodes.append((SNAPSHOT, pool.snapshot(chance.choice(volumes))))
        elif snapshots:
            nodes.append((VOLUME, pool.volume(chance.choice(snapshots))))
    while nodes:
        total, kind_and_node = pool.total(), chance.choice(nodes)
        hidden = sum(family.hidden_snaps for family in pool.families())
        freed = pool.nodes()[kind_and_node].freed_bytes
        assert freed is not None
        pool.delete(*kind_and_node)
        nodes.remove(kind_and_node)
        left = pool.total()
        still_hidden = sum(family.hidden_snaps for family in pool.families())
        print(f"seed {seed}: {kind_and_node} frees {freed // MIB} MiB of {total // MIB}")
        if hidden == still_hidden == 0:
            assert left == total - freed
        else:
            assert left <= total - freed
    assert images(pool.driver) == set()
