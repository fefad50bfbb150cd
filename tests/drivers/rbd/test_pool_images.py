"""A pool in Ceph: images that come and go, its limits, its check, and its room."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import (
    BockdError,
    ConflictError,
    InUseError,
    PoolFormatError,
    UnavailableError,
)
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.pool import nothing_more
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import Steps
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.pooldriver import RbdDriver

T = TypeVar("T")

need_modules()

from bockd.drivers.rbd import checking, making  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rados, rbd  # noqa: E402
from bockd.drivers.rbd.errors import ShutOutError  # noqa: E402
from bockd.drivers.rbd.images import remove_image  # noqa: E402
from tests.drivers.rbd.pools import images, problems, record, snap_of, snaps  # noqa: E402
from tests.drivers.rbd.silence import silence_after_opening  # noqa: E402


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    yield one
    one.close()


# -- images ----------------------------------------------------------------------------------


def test_images_go_with_what_named_them(here: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    first = record(here, volume).image
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    here.run(here.pool.revert_volume(volume, snapshot))
    second = record(here, volume).image
    assert images(here) == {first, second}
    assert (record(here, volume).depth, record(here, volume).from_snapshot) == (1, None)
    here.run(here.pool.fill_volume(volume, snapshot, nothing_more))
    third = record(here, volume).image
    assert images(here) == {first, third}
    here.run(here.pool.delete_volume(volume))
    assert images(here) == {first}
    assert here.of_snapshot(snapshot) == b"then"
    here.run(here.pool.delete_snapshot(snapshot))
    assert images(here) == set()


def test_the_image_of_a_snapshot_stays_for_its_clones(here: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    frozen = here.run(here.pool.freeze_volume(volume, lambda _, node: "frozen", nothing_more))
    clone = here.run(here.pool.create_volume("clone", None, frozen.id)).id
    here.run(here.pool.delete_snapshot(frozen.id))
    assert len(images(here)) == 2
    assert here.of_volume(clone) == b"then"
    assert problems(here) == ()
    here.run(here.pool.delete_volume(clone))


def refuse(_txn: Transaction, _record: object) -> None:
    raise ConflictError("no")


MAKERS: dict[str, Callable[[RbdDriver, VolumeId, SnapshotId, Any], Steps[Any]]] = {
    "create": lambda d, v, s, also: d.pool.create_volume("new", MIB, None, also),
    "clone": lambda d, v, s, also: d.pool.create_volume("new", 2 * MIB, s, also),
    "revert": lambda d, v, s, also: d.pool.revert_volume(v, s, also),
    "fill": lambda d, v, s, also: d.pool.fill_volume(v, s, also),
    "freeze": lambda d, v, s, also: d.pool.freeze_volume(v, lambda _, node: f"n-{node}", also),
    "snapshot": lambda d, v, s, also: d.pool.create_snapshot(v, "new", also),
}


@pytest.fixture
def known(here: RbdDriver) -> tuple[VolumeId, SnapshotId, str]:
    """A volume with a snapshot, and its image."""
    volume = here.volume("one").id
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    return volume, snapshot, record(here, volume).image


@pytest.mark.parametrize("maker", MAKERS)
def test_what_was_made_in_vain_is_removed(
    here: RbdDriver, known: tuple[VolumeId, SnapshotId, str], maker: str
) -> None:
    volume, snapshot, image = known
    kept = snaps(here, image)
    with pytest.raises(ConflictError):
        here.run(MAKERS[maker](here, volume, snapshot, refuse))
    assert (images(here), snaps(here, image)) == ({image}, kept)


@pytest.mark.parametrize("maker", MAKERS)
def test_who_took_too_long_commits_nothing(
    here: RbdDriver,
    known: tuple[VolumeId, SnapshotId, str],
    maker: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, snapshot, image = known
    before = here.listing()
    monkeypatch.setattr(making, "GENERATIONS", 0)
    with pytest.raises(UnavailableError, match="counts as left over"):
        here.run(MAKERS[maker](here, volume, snapshot, nothing_more))
    assert here.listing() == before
    assert record(here, volume).image == image
    # What was made is left to the sweep, and is no problem before its time.
    assert len(images(here)) + len(snaps(here, image)) == 3
    assert problems(here) == ()
    monkeypatch.setattr(checking, "YOUNG_SECONDS", -1e9)
    (found,) = problems(here)
    assert "only takes space" in found


def test_what_the_cluster_does_not_answer_changes_nothing(
    ceph: Cluster,
    rbd_namespace: RbdSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Prepares and looks afterwards, with time enough on a busy machine.
    calm = RbdDriver(replace(rbd_namespace, gateway="calm"), tmp_path / "calm")
    volume = calm.volume("one").id
    snapshot = calm.run(calm.pool.create_snapshot(volume, "s")).id
    before = calm.listing()
    monkeypatch.setattr("bockd.drivers.rbd.settings.INDEX_TIMEOUT_SECONDS", 1)
    hasty = _in_time(lambda: RbdDriver(replace(rbd_namespace, gateway="hasty"), tmp_path / "hasty"))
    with ceph.hanging():
        for steps in (
            hasty.pool.create_volume("new", MIB),
            hasty.pool.delete_volume(volume),
            hasty.pool.delete_snapshot(snapshot),
        ):
            with pytest.raises(UnavailableError):
                hasty.run(steps)
    with ceph.hanging("mon.a"), pytest.raises(UnavailableError):
        hasty.run(hasty.pool.create_snapshot(volume, "t"))
    calm.rbd.index.refresh()
    assert calm.listing() == before
    hasty.close()
    calm.write(volume, 0, b"goes on")
    calm.close()


REACHING: dict[str, Callable[[RbdDriver, VolumeId], Steps[Any]]] = {
    "extend": lambda d, v: d.pool.extend_volume(v, 2 * MIB),
    "snapshot": lambda d, v: d.pool.create_snapshot(v, "s"),
}


@pytest.mark.parametrize(
    ("change", "silent"), [("extend", "osd.0"), ("snapshot", "osd.0"), ("snapshot", "mon.a")]
)
def test_who_has_the_image_does_not_answer_in_time(
    ceph: Cluster, here: RbdDriver, change: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster falls silent when the image is open that librbd hands the change over by."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    before = here.listing()
    monkeypatch.setattr("bockd.drivers.rbd.connection.HANDED_OVER_SECONDS", 1.0)
    with (
        silence_after_opening(ceph, silent),
        pytest.raises(UnavailableError, match="is not done after 1 s"),
    ):
        here.run(REACHING[change](here, volume))
    monkeypatch.undo()
    ceph.wait_for(lambda: not here.rbd.session.images._handed_over)
    here.rbd.index.refresh()
    assert here.listing() == before
    assert here.of_volume(volume) == b"then"
    here.pool.leave(NodeKind.VOLUME, volume)
    here.run(REACHING[change](here, volume))
    assert problems(here) == ()


def _in_time(attempt: Callable[[], T]) -> T:
    """Try until the cluster answers within a second."""
    while True:
        try:
            return attempt()
        except UnavailableError:
            continue


# -- limits, and what is no pool -------------------------------------------------------------


def test_no_more_volumes_are_open_than_may_be(rbd_namespace: RbdSettings, tmp_path: Path) -> None:
    here = RbdDriver(replace(rbd_namespace, max_open_volumes=1), tmp_path)
    one, two = here.volume("one").id, here.volume("two").id
    here.run(here.pool.use(NodeKind.VOLUME, one))
    with pytest.raises(InUseError, match="max_open_volumes"):
        here.run(here.pool.use(NodeKind.VOLUME, two))
    here.pool.leave(NodeKind.VOLUME, one)
    here.run(here.pool.close_idle(NodeKind.VOLUME, one))
    assert here.of_volume(two) == b""
    here.close()


def test_a_namespace_with_something_else_is_no_pool(
    rbd_namespace: RbdSettings, tmp_path: Path
) -> None:
    here = RbdDriver(rbd_namespace, tmp_path / "here")
    volume = here.volume("one").id
    image = record(here, volume).image
    here.rbd.session.ioctx.remove_object("index")
    with pytest.raises(PoolFormatError, match="has no index"):
        RbdDriver(rbd_namespace, tmp_path / "again")
    # One that is empty again may be a pool anew.
    with here.rbd.session.images.use() as (_, ioctx):
        remove_image(ioctx, image)
    RbdDriver(rbd_namespace, tmp_path / "again").close()
    here.close()


def test_a_connection_that_was_shut_out_is_made_anew(here: RbdDriver) -> None:
    common = here.rbd.session.images
    with common.use() as first:
        pass
    with pytest.raises(ShutOutError), common.use():
        raise ShutOutError("shut out")
    with common.use() as second:
        assert second is not first
    here.volume("one")


def test_a_snapshot_keeps_the_connection_that_it_is_open_on(here: RbdDriver) -> None:
    volume = here.volume("one").id
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.SNAPSHOT, snapshot))
    with pytest.raises(ShutOutError), here.rbd.session.snapshots.use() as old:
        raise ShutOutError("shut out")
    here.run(device.read(0, memoryview(bytearray(BLOCK_SIZE))))
    here.pool.leave(NodeKind.SNAPSHOT, snapshot)
    here.run(here.pool.close_idle(NodeKind.SNAPSHOT, snapshot))
    assert old.cluster.state == "shutdown"


def test_nothing_is_kept_of_what_was_closed(here: RbdDriver) -> None:
    """A gateway opens any number of volumes in its life."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    assert here.of_snapshot(snapshot) == b"then"
    for kind, node in ((NodeKind.VOLUME, volume), (NodeKind.SNAPSHOT, snapshot)):
        here.run(here.pool.close_idle(kind, node))
    nodes = here.rbd.open_nodes
    assert [*nodes.volumes, *nodes.snapshots, *nodes._dropped, *nodes._busy] == []


# -- the check -------------------------------------------------------------------------------


def test_a_check_names_what_is_missing(here: RbdDriver) -> None:
    volume, other = here.volume("one").id, here.volume("other").id
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    assert problems(here) == ()
    with here.rbd.session.images.use() as (_, ioctx):
        remove_image(ioctx, record(here, other).image)
        with rbd.Image(ioctx, record(here, volume).image) as image:
            image.resize(MIB // 2)
            image.remove_snap(snap_of(here, snapshot))
    found = problems(here)
    assert len(found) == 3
    assert "volume 1 (one)" in found[0]
    assert "volume 2 (other)" in found[1]
    assert f"snapshot {snapshot} (s)" in found[2]
    # What is missing can be deleted.
    here.run(here.pool.delete_volume(other))
    here.run(here.pool.delete_snapshot(snapshot))
    assert len(problems(here)) == 1


def test_a_check_goes_on_behind_a_record_that_cannot_be_read(
    here: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And calls nothing left over, which it may name."""
    monkeypatch.setattr(checking, "YOUNG_SECONDS", -1e9)
    broken, other = here.volume("broken").id, here.volume("other").id
    snapshot = here.run(here.pool.create_snapshot(broken, "s")).id

    def damage(txn: Transaction) -> None:
        txn.put(VOLUMES, id_key(broken), b"{}")
        txn.put(SNAPSHOTS, id_key(snapshot), b"no JSON")

    with here.rbd.session.images.use() as (_, ioctx):
        remove_image(ioctx, record(here, other).image)
    here.rbd.index.update(damage)
    found = problems(here)
    assert len(found) == 3
    assert "volume 2 (other): its image" in found[0]
    assert "volume 1 cannot be used" in found[1]
    assert f"snapshot {snapshot} cannot be used" in found[2]
    # Nor does it keep the others from being measured.
    assert here.run(here.pool.measure_all(0, lambda: False)).spaces == ()
    assert here.pool.used_bytes() == 0


def test_a_check_goes_on_behind_an_image_that_cannot_be_looked_at(here: RbdDriver) -> None:
    """Its header has a size that is no number; another volume's image is missing."""
    broken, other = here.volume("broken").id, here.volume("other").id
    with here.rbd.session.images.use() as (_, ioctx):
        remove_image(ioctx, record(here, other).image)
        with rbd.Image(ioctx, record(here, broken).image) as image:
            header = f"rbd_header.{image.id()}"
        with rados.WriteOpCtx() as op:
            ioctx.set_omap(op, ("size",), (b"x",))
            ioctx.operate_write_op(op, header)
    found = problems(here)
    assert len(found) == 2
    assert "volume 1 (broken)" in found[0]
    assert "cannot be looked at" in found[0]
    assert "volume 2 (other)" in found[1]
    assert "data is lost" in found[1]


def test_an_extension_that_failed_is_no_problem(here: RbdDriver) -> None:
    volume = here.volume("one").id
    with pytest.raises(BockdError):
        here.run(here.pool.extend_volume(volume, 2 * MIB, refuse))
    assert problems(here) == ()
    snapshot = here.run(here.pool.create_snapshot(volume, "s"))
    assert snapshot.size_bytes == MIB
    clone: VolumeRecord = here.run(here.pool.create_volume("c", 2 * MIB, snapshot.id))
    assert here.of_volume(clone.id, 2 * MIB // BLOCK_SIZE - 1) == b""
    assert problems(here) == ()
    with here.pool.nodes() as nodes:
        assert isinstance(nodes, Nodes)
        assert nodes.volume(volume).size_bytes == MIB


# -- room ------------------------------------------------------------------------------------


def test_room_is_what_fits_into_the_ceph_pool(
    here: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests' cluster has no manager, which knows the figures.
    with pytest.raises(UnavailableError, match="manager"):
        here.pool.room()
    stats = {"stored": 3 * MIB, "max_avail": 5 * MIB, "bytes_used": 9 * MIB, "quota_bytes": 0}
    pools = [{"name": "other", "id": 1, "stats": {}}, {"name": "rbd", "id": 2, "stats": stats}]

    def mon_command(_order: str, _data: bytes, timeout: int) -> tuple[int, bytes, str]:
        return 0, json.dumps({"stats": {}, "pools": pools}).encode(), ""

    class Monitors:
        pass

    monkeypatch.setattr(here.rbd.session, "cluster", monitors := Monitors())
    monkeypatch.setattr(monitors, "mon_command", mon_command, raising=False)
    found = here.pool.room()
    assert found.f_blocks * found.f_frsize == 8 * MIB
    assert found.f_bavail * found.f_frsize == 5 * MIB
    stats["quota_bytes"] = 4 * MIB
    found = here.pool.room()
    assert (found.f_blocks, found.f_bavail) == (4 * MIB // BLOCK_SIZE, MIB // BLOCK_SIZE)
    stats |= {"stored": 4 * MIB, "max_avail": 0}
    found = here.pool.room()
    assert (found.f_blocks, found.f_bavail) == (4 * MIB // BLOCK_SIZE, 0)
    stats["stored"] = 0  # of a pool that is not known yet
    with pytest.raises(UnavailableError):
        here.pool.room()
