"""What is a pool's in Ceph alone: several gateways of it, images that come and go, and trouble."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import (
    BockdError,
    ConflictError,
    InUseError,
    NotFoundError,
    PoolFormatError,
    UnavailableError,
    VolumeTakenError,
)
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import nothing_more
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import Steps
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.drivers.rbd import checking, making  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.errors import ShutOutError  # noqa: E402
from bockd.drivers.rbd.images import looking_at, remove_image  # noqa: E402
from bockd.drivers.rbd.messages import Manner  # noqa: E402
from bockd.drivers.rbd.records import (  # noqa: E402
    RbdVolumeRecord,
    snapshot_record,
    volume_record,
)


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    yield one
    one.close()


@pytest.fixture
def there(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="there"), tmp_path / "there")
    yield one
    one.close()


def record(driver: RbdDriver, volume: VolumeId) -> RbdVolumeRecord:
    """The record as it is now."""
    driver.rbd.index.refresh()
    with driver.rbd.index.reading() as txn:
        return volume_record(txn, volume)


def images(driver: RbdDriver) -> set[str]:
    """The images that there are."""
    with driver.rbd.session.images.use() as (_, ioctx):
        return set(rbd.RBD().list(ioctx))


def snaps(driver: RbdDriver, image: str) -> list[str]:
    """The snaps of an image."""
    with (
        driver.rbd.session.images.use() as (_, ioctx),
        looking_at(ioctx, image) as opened,
    ):
        return [one["name"] for one in opened.list_snaps()]


def snap_of(driver: RbdDriver, snapshot: SnapshotId) -> str:
    with driver.rbd.index.reading() as txn:
        return snapshot_record(txn, snapshot).snap


def problems(driver: RbdDriver) -> tuple[str, ...]:
    return driver.run(driver.pool.check()).problems


# -- several gateways ------------------------------------------------------------------------


def test_gateways_see_each_others_volumes(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    assert there.pool.find(NodeKind.VOLUME, "one") == volume
    with pytest.raises(ConflictError):
        there.volume("one")
    assert there.volume("two").id != volume
    here.rbd.index.refresh()
    assert here.listing() == there.listing()
    assert here.rbd.identity.gateway == "here"
    assert here.rbd.identity.run != there.rbd.identity.run


def test_an_idle_volume_moves_to_who_opens_it(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    assert record(there, volume).holder == "here"
    assert there.of_volume(volume) == b"here"
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    assert (record(here, volume).holder, record(here, volume).epoch) == ("there", 2)
    there.run(there.pool.close_idle(NodeKind.VOLUME, volume))
    assert record(here, volume).holder is None


def test_a_volume_in_use_moves_only_to_who_is_firm(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    with pytest.raises(InUseError, match="gateway here"):
        there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert here.pool.users(NodeKind.VOLUME, volume) == 1
    asked: list[tuple[VolumeId, Manner]] = []

    async def note(one: VolumeId, manner: Manner) -> None:
        asked.append((one, manner))

    here.rbd.on_asked = note
    taken = there.run(there.pool.use(NodeKind.VOLUME, volume, firm=True))
    assert asked == [(volume, Manner.FIRM)]
    there.run(taken.write(0, memoryview(b"there".ljust(BLOCK_SIZE, b"."))))
    for steps in (device.write(0, memoryview(b"stale")), device.flush()):
        with pytest.raises(VolumeTakenError):
            here.run(steps)
    # Who uses it here again takes it back; who has not left yet does not count as one of these.
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 0
    again = here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert again is not device
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 1
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 0
    assert here.of_volume(volume) == b"there"
    assert record(here, volume).epoch == 3


def test_a_gateway_that_was_shut_out_unasked_finds_out(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    monkeypatch.setattr(there.rbd.session.bus, "ask", lambda _image, _manner: None)
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    # By what it asks of the image...
    with pytest.raises(VolumeTakenError):
        here.run(device.read(0, memoryview(bytearray(BLOCK_SIZE))))
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    here.pool.leave(NodeKind.VOLUME, volume)
    # ... or by the record, before it is asked.
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.write(volume, 0, b"there again")
    here.rbd.index.refresh()
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"there again"


def test_a_volume_is_given_up_on_request(here: RbdDriver) -> None:
    volume = here.volume("one").id
    assert here.run(here.rbd.release_volume(volume, Manner.POLITE))
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert not here.run(here.rbd.release_volume(volume, Manner.POLITE))
    assert here.pool.is_open(NodeKind.VOLUME, volume)
    assert here.run(here.rbd.release_volume(volume, Manner.FIRM))
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    assert record(here, volume).holder is None
    here.pool.leave(NodeKind.VOLUME, volume)


def test_any_gateway_freezes_and_extends_a_volume_that_another_one_serves(
    here: RbdDriver, there: RbdDriver
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    snapshot = there.run(there.pool.create_snapshot(volume, "s")).id
    assert there.run(there.pool.extend_volume(volume, 3 * MIB)).size_bytes == 3 * MIB
    here.write(volume, 0, b"now")
    assert there.of_snapshot(snapshot) == b"then"
    assert device.size_bytes == MIB
    here.rbd.index.refresh()
    # Who joins sees its new size.
    here.write(volume, 3 * MIB // BLOCK_SIZE - 1, b"end")
    assert device.size_bytes == 3 * MIB
    assert record(here, volume).holder == "here"
    assert problems(here) == problems(there) == ()


REACHING: dict[str, Callable[[RbdDriver, VolumeId], Steps[Any]]] = {
    "extend": lambda d, v: d.pool.extend_volume(v, 2 * MIB),
    "snapshot": lambda d, v: d.pool.create_snapshot(v, "s"),
}


@pytest.mark.parametrize("change", REACHING)
def test_who_has_a_volume_and_does_not_answer_is_shut_out(
    here: RbdDriver, there: RbdDriver, change: str
) -> None:
    """It may have died, and librbd would wait for it."""
    volume = there.volume("one").id
    there.write(volume, 0, b"then")
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    there.rbd.session.bus._end_watch()
    here.run(REACHING[change](here, volume))
    assert record(here, volume).holder is None
    with pytest.raises(VolumeTakenError):
        there.run(device.write(0, memoryview(b"stale")))
    assert here.of_volume(volume) == b"then"
    there.pool.leave(NodeKind.VOLUME, volume)


def test_a_snapshot_that_is_read_at_another_gateway_is_not_deleted(
    here: RbdDriver, there: RbdDriver
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.SNAPSHOT, snapshot))
    there.rbd.index.refresh()
    with pytest.raises(InUseError, match="gateway here"):
        there.run(there.pool.delete_snapshot(snapshot))
    into = bytearray(4)
    here.run(device.read(0, memoryview(into)))
    assert into == b"then"
    here.pool.leave(NodeKind.SNAPSHOT, snapshot)
    assert here.pool.is_open(NodeKind.SNAPSHOT, snapshot)
    there.run(there.pool.delete_snapshot(snapshot))
    assert not here.pool.is_open(NodeKind.SNAPSHOT, snapshot)


def test_a_snapshot_that_was_opened_while_it_was_deleted_is_closed(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is removed, so that nobody reads zeros."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    update = there.rbd.index.update
    opened: list[Any] = []

    def late(run: Callable[[Transaction], Any]) -> Any:
        opened.append(here.run(here.pool.use(NodeKind.SNAPSHOT, snapshot)))
        return update(run)

    monkeypatch.setattr(there.rbd.index, "update", late)
    there.rbd.index.refresh()
    there.run(there.pool.delete_snapshot(snapshot))
    assert not here.pool.is_open(NodeKind.SNAPSHOT, snapshot)
    with pytest.raises(BockdError):
        here.run(opened[0].read(0, memoryview(bytearray(BLOCK_SIZE))))
    here.pool.leave(NodeKind.SNAPSHOT, snapshot)
    assert snaps(there, record(there, volume).image) == []


CHANGES: dict[str, Callable[[RbdDriver, VolumeId, SnapshotId], Steps[Any]]] = {
    "delete": lambda d, v, s: d.pool.delete_volume(v),
    "revert": lambda d, v, s: d.pool.revert_volume(v, s),
    "fill": lambda d, v, s: d.pool.fill_volume(v, s, nothing_more),
    "freeze": lambda d, v, s: d.pool.freeze_volume(v, lambda _, node: f"n-{node}", nothing_more),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_clients_use_at_another_gateway_is_not_taken_from_them(
    here: RbdDriver, there: RbdDriver, change: str
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    before, kept = there.listing(), images(there)
    with pytest.raises(InUseError, match="here"):
        there.run(CHANGES[change](there, volume, snapshot))
    assert (there.listing(), images(there)) == (before, kept)
    here.run(device.write(0, memoryview(b"now".ljust(BLOCK_SIZE, b"."))))
    here.pool.leave(NodeKind.VOLUME, volume)
    there.run(CHANGES[change](there, volume, snapshot))
    here.rbd.index.refresh()
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    if change in ("revert", "fill"):
        assert here.of_volume(volume) == b"then"
    else:
        with pytest.raises(NotFoundError):
            here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert problems(there) == ()


@pytest.mark.parametrize("change", ["delete", "revert", "fill", "freeze", "extend", "snapshot"])
def test_what_another_gateway_changes_meanwhile_is_not_passed_over(
    here: RbdDriver, there: RbdDriver, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens between the operation's look and its commit."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    update = there.rbd.index.update

    def meanwhile(run: Callable[[Transaction], Any]) -> Any:
        monkeypatch.setattr(there.rbd.index, "update", update)
        here.write(volume, 0, b"now")
        here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
        here.run(here.pool.revert_volume(volume, snapshot))
        return update(run)

    monkeypatch.setattr(there.rbd.index, "update", meanwhile)
    kept = images(there)
    changes: dict[str, Callable[[RbdDriver, VolumeId, SnapshotId], Steps[Any]]] = {
        **CHANGES,
        "extend": lambda d, v, s: d.pool.extend_volume(v, 2 * MIB),
        "snapshot": lambda d, v, s: d.pool.create_snapshot(v, "t"),
    }
    with pytest.raises(InUseError, match="another gateway has just"):
        there.run(changes[change](there, volume, snapshot))
    assert there.of_volume(volume) == b"then"
    assert len(images(there)) == len(kept) + 1
    assert snaps(there, next(iter(kept))) == [snap_of(there, snapshot)]


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
    monkeypatch.setattr(making, "MAKING_SECONDS", -1.0)
    with pytest.raises(UnavailableError, match="took more than"):
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
    monkeypatch.setattr("bockd.drivers.rbd.settings.INDEX_TIMEOUT_SECONDS", 1)
    here = RbdDriver(rbd_namespace, tmp_path / "here")
    volume = here.volume("one").id
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    before = here.listing()
    with ceph.hanging():
        for steps in (
            here.pool.create_volume("new", MIB),
            here.pool.delete_volume(volume),
            here.pool.delete_snapshot(snapshot),
        ):
            with pytest.raises(UnavailableError):
                here.run(steps)
    with ceph.hanging("mon.a"), pytest.raises(UnavailableError):
        here.run(here.pool.create_snapshot(volume, "t"))
    here.rbd.index.refresh()
    assert here.listing() == before
    here.write(volume, 0, b"goes on")
    here.close()


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
