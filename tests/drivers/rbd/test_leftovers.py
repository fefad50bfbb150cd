"""The sweep and the table of gateways in a real cluster; gateways are killed at each step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import InUseError, NotFoundError, UnavailableError
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from tests.crash.failpoints.run import OF_LEFTOVERS
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.dying import as_text
from tests.drivers.rbd.pooldriver import RbdDriver
from tests.drivers.rbd.sweeping import MAX_DEPTH

need_modules()

from bockd.drivers.rbd import checking  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rados, rbd  # noqa: E402
from bockd.drivers.rbd.extents import OBJECT_BYTES  # noqa: E402
from bockd.drivers.rbd.images import create_image, new_name, open_image, take_snap  # noqa: E402
from bockd.drivers.rbd.imagestore import RbdImageStore  # noqa: E402
from bockd.drivers.rbd.records import snapshot_record, volume_record  # noqa: E402
from bockd.drivers.rbd.sweep import FULL_LOOK_EVERY, Patience, Sweep  # noqa: E402
from tests.drivers.rbd.pools import problems  # noqa: E402

IMPATIENT = Patience(0.0, 0.0)


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    one.rbd.session.table.enter()
    yield one
    one.close()


@pytest.fixture
def store(here: RbdDriver) -> Iterator[RbdImageStore]:
    one = RbdImageStore(here.settings)
    yield one
    one.close()


def volume(driver: RbdDriver, name: str, snapshot: SnapshotId | None = None) -> VolumeId:
    return driver.run(driver.pool.create_volume(name, 8 * MIB, snapshot)).id


def snapshot(driver: RbdDriver, of: VolumeId, name: str) -> SnapshotId:
    return driver.run(driver.pool.create_snapshot(of, name)).id


def write(driver: RbdDriver, to: VolumeId, value: int) -> None:
    """Fill the first block, and close the volume."""
    device = driver.run(driver.pool.use(NodeKind.VOLUME, to))
    driver.run(device.write(0, memoryview(bytes([value]) * BLOCK_SIZE)))
    driver.pool.leave(NodeKind.VOLUME, to)
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, to))


def first_byte(driver: RbdDriver, of: VolumeId) -> int:
    device = driver.run(driver.pool.use(NodeKind.VOLUME, of))
    data = bytearray(BLOCK_SIZE)
    driver.run(device.read(0, memoryview(data)))
    driver.pool.leave(NodeKind.VOLUME, of)
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, of))
    return data[0]


def stray_image(driver: RbdDriver, *, snap: bool = False) -> str:
    """An image that nothing names."""
    name = new_name()
    with driver.rbd.session.images.use() as (cluster, ioctx):
        create_image(ioctx, name, 16 * MIB)
        if snap:
            take_snap(cluster, ioctx, name, new_name())
    return name


def image_of(driver: RbdDriver, of: VolumeId) -> str:
    driver.rbd.index.refresh()
    with driver.rbd.index.reading() as txn:
        return volume_record(txn, of).image


def objects(driver: RbdDriver) -> set[str]:
    """What the namespace holds of images, and of removals that are under way."""
    with driver.rbd.session.images.use() as (_, ioctx):
        kinds = ("rbd_data.", "rbd_header.", "rbd_id.", "rbd_object_map.")
        held = {one.key for one in ioctx.list_objects() if one.key.startswith(kinds)}
        for place in ("rbd_directory", "rbd_trash"):
            with rados.ReadOpCtx() as op:
                keys, _ = ioctx.get_omap_keys(op, "", 1000)
                ioctx.operate_read_op(op, place)
                held |= {f"{place}: {key}" for key, _ in keys if key != "state"}
        return held


def cut_off_removal(driver: RbdDriver, ceph: Cluster, *, at_object: int) -> str:
    """Kill who removes an image that nothing names, when so many of its four objects are gone."""
    name = stray_image(driver)
    with (
        driver.rbd.session.images.use() as (_, ioctx),
        rbd.Image(ioctx, name) as image,
    ):
        for number in range(4):
            image.write(b"x", number * OBJECT_BYTES)
    removing = [as_text(driver.settings), name, str(at_object)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.rbd.removing", *removing],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    # Else it counts for half a minute as one that has the image open.
    ceph.command("osd blocklist", blocklistop="add", addr=done.stdout.strip().split("/v")[0])
    return name


def swept(driver: RbdDriver, store: RbdImageStore) -> set[str]:
    """Sweep; return the images that there are then."""
    sweep = Sweep(driver.rbd.index, store, MAX_DEPTH, IMPATIENT)
    for _ in range(FULL_LOOK_EVERY + 1):
        assert sweep.look()
    return set(store.names())


def test_leftovers_go_and_what_is_needed_stays(here: RbdDriver, store: RbdImageStore) -> None:
    kept, gone, origin = volume(here, "kept"), volume(here, "gone"), volume(here, "origin")
    names = {image_of(here, kept), image_of(here, gone)}
    snapshot(here, gone, "of-gone")
    cloned = snapshot(here, origin, "cloned")
    clone = volume(here, "clone", cloned)
    here.run(here.pool.delete_volume(gone))
    parent = image_of(here, origin)
    here.run(here.pool.delete_volume(origin))
    here.run(here.pool.delete_snapshot(cloned))
    stray_image(here)
    stray_image(here, snap=True)
    with here.rbd.session.images.use() as (cluster, ioctx):
        take_snap(cluster, ioctx, image_of(here, kept), new_name())
    patient = Sweep(here.rbd.index, store, MAX_DEPTH)
    patient.look()
    assert len(store.names()) == 6
    assert swept(here, store) == names | {parent, image_of(here, clone)}
    seen = store.look(image_of(here, kept))
    assert seen is not None
    assert seen.snaps == {}
    found = store.look(parent)
    assert found is not None
    assert found.is_needed
    assert abs(found.made_at - time.time()) < 600
    here.run(here.pool.delete_volume(clone))
    assert swept(here, store) == names
    assert here.run(here.pool.check()).problems == ()


@pytest.mark.parametrize("at_object", [0, 1, 3])
def test_a_removal_that_was_cut_off_is_reported_and_finished(
    here: RbdDriver,
    store: RbdImageStore,
    ceph: Cluster,
    at_object: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = volume(here, "kept")
    before = objects(here)
    name = cut_off_removal(here, ceph, at_object=at_object)
    assert any(one.startswith("rbd_trash") for one in objects(here))
    with here.rbd.session.images.use() as (_, ioctx), pytest.raises(NotFoundError):
        open_image(ioctx, name)
    assert problems(here) == ()  # it may be under way
    monkeypatch.setattr(checking, "YOUNG_SECONDS", -1e9)
    (found,) = problems(here)
    assert found.startswith(f"image {name} was removed in part")
    assert swept(here, store) == {image_of(here, kept)}
    assert objects(here) == before
    assert problems(here) == ()


def test_flattening_frees_a_clone_of_its_origin(here: RbdDriver, store: RbdImageStore) -> None:
    one = volume(here, "one")
    write(here, one, 1)
    first = snapshot(here, one, "first")
    two = volume(here, "two", first)
    second = snapshot(here, two, "second")
    three = volume(here, "three", second)
    third = snapshot(here, three, "third")
    name = image_of(here, three)
    assert store.depth(name) == 2
    sweep = Sweep(here.rbd.index, store, MAX_DEPTH, IMPATIENT)
    sweep.look()
    sweep.flatten()
    assert store.depth(name) == 0
    with here.rbd.index.reading() as txn:
        assert volume_record(txn, three).depth == 0
        assert volume_record(txn, two).depth == 1
        assert snapshot_record(txn, third).depth == 0
    for origin in (two, one):
        here.run(here.pool.delete_volume(origin))
    for taken in (second, first):
        here.run(here.pool.delete_snapshot(taken))
    assert swept(here, store) == {name}
    assert first_byte(here, three) == 1
    four = volume(here, "four", third)
    assert first_byte(here, four) == 1


def test_a_clone_in_use_is_flattened_by_whoever_has_it(
    here: RbdDriver, store: RbdImageStore, rbd_namespace: RbdSettings, tmp_path: Path
) -> None:
    """And it may be taken meanwhile."""
    one = volume(here, "one")
    write(here, one, 1)
    two = volume(here, "two", snapshot(here, one, "first"))
    three = volume(here, "three", snapshot(here, two, "second"))
    there = RbdDriver(replace(rbd_namespace, gateway="there"), tmp_path / "there")
    device = there.run(there.pool.use(NodeKind.VOLUME, three))
    sweep = Sweep(here.rbd.index, store, MAX_DEPTH, IMPATIENT)
    sweep.look()
    sweep.flatten()
    assert store.depth(image_of(here, three)) == 0
    there.run(device.write(BLOCK_SIZE, memoryview(bytes([2]) * BLOCK_SIZE)))
    there.pool.leave(NodeKind.VOLUME, three)
    there.close()
    assert first_byte(here, three) == 1


def test_killed_at_each_step_the_next_one_goes_on(here: RbdDriver, tmp_path: Path) -> None:
    one = volume(here, "one")
    write(here, one, 1)
    two = volume(here, "two", snapshot(here, one, "first"))
    three = volume(here, "three", snapshot(here, two, "second"))
    store = RbdImageStore(here.settings)
    settings = as_text(replace(here.settings, gateway="there"))
    here.rbd.session.table.leave()
    for point in (*sorted(OF_LEFTOVERS), None):
        stray_image(here, snap=True)
        environ = {**os.environ, **({VARIABLE: str(point)} if point else {})}
        done = subprocess.run(
            [sys.executable, "-m", "tests.drivers.rbd.sweeping", settings, tmp_path / "there"],
            env=environ,
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if point else 0), point
        if point is Failpoint.IMAGE_FLATTENED:
            with here.rbd.index.reading() as txn:
                assert volume_record(txn, three).depth == 2
    assert set(store.names()) == {image_of(here, node) for node in (one, two, three)}
    here.rbd.index.refresh()
    with here.rbd.index.reading() as txn:
        assert volume_record(txn, three).depth == 0
    assert here.rbd.session.table.all() == []
    assert first_byte(here, three) == 1
    store.close()
    here.rbd.session.table.enter()


def test_a_sweep_while_the_cluster_hangs_is_put_off(
    here: RbdDriver, store: RbdImageStore, ceph: Cluster
) -> None:
    stray = stray_image(here)
    sweep = Sweep(here.rbd.index, store, MAX_DEPTH, IMPATIENT)

    def is_gone() -> bool:
        try:
            sweep.look()
            return stray not in store.names()
        except UnavailableError as error:
            print(f"put off: {error}")
            return False

    with ceph.hanging(), pytest.raises(UnavailableError):
        sweep.look()
    ceph.wait_for(is_gone)


def test_who_lives_answers_on_the_bus(
    here: RbdDriver, rbd_namespace: RbdSettings, tmp_path: Path
) -> None:
    there = RbdDriver(replace(rbd_namespace, gateway="there"), tmp_path / "there")
    table = there.rbd.session.table
    table.enter()
    assert here.rbd.session.bus.is_alive(table.author)
    assert not here.rbd.session.bus.is_alive(f"there/{'0' * 16}")
    twin = RbdDriver(replace(rbd_namespace, gateway="there"), tmp_path / "twin")
    with pytest.raises(InUseError, match="a gateway named 'there' serves this pool already"):
        twin.rbd.session.table.enter()
    there.close()
    assert not here.rbd.session.bus.is_alive(table.author)
    twin.rbd.session.table.enter()
    here.rbd.index.refresh()
    assert [one.name for one in here.pool.gateways()] == ["here", "there"]
    twin.close()
