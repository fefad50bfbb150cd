"""Volumes of any kind of pool: created, cloned, grown, reverted, filled, frozen, deleted."""

from __future__ import annotations

import pytest

from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.model import BLOCK_SIZE, MIB, Extent, NodeKind, SnapshotId, VolumeId
from bockd.pool.nodes import Nodes
from bockd.pool.pool import nothing_more
from tests.pool.opendriver import OpenDriver

NOBODY = VolumeId(999)


def frozen_name(_nodes: Nodes, node: int) -> str:
    return f"frozen-{node}"


def test_a_new_volume_reads_as_zeros_and_is_listed(driver: OpenDriver) -> None:
    made = driver.volume("one", 2 * MIB)
    assert (made.name, made.size_bytes, made.from_snapshot, made.failed) == (
        "one",
        2 * MIB,
        None,
        None,
    )
    assert driver.of_volume(made.id, 2 * MIB // BLOCK_SIZE - 1) == b""
    with driver.pool.nodes() as nodes:
        assert [one.id for one in nodes.volumes()] == [made.id]
        assert nodes.volume(made.id).size_bytes == 2 * MIB
    assert driver.pool.find(NodeKind.VOLUME, "one") == made.id
    assert driver.pool.find(NodeKind.VOLUME, str(made.id)) == made.id


def test_a_volume_keeps_what_is_written(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 3, b"data")
    assert (driver.of_volume(volume, 3), driver.of_volume(volume, 2)) == (b"data", b"")


def test_extents_at_once_are_those_that_may_wait(driver: OpenDriver) -> None:
    """Of a volume and of its snapshot, for one extent and for several, from any byte on."""
    unit = driver.pool.features.hole_bytes
    size = max(MIB, 8 * unit)
    volume = driver.volume("one", size).id
    driver.write(volume, 3 * driver.unit_blocks, b"data")
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 4 * driver.unit_blocks, b"data")
    for kind, node, units in (
        (NodeKind.VOLUME, volume, 2),
        (NodeKind.SNAPSHOT, snapshot, 1),
    ):
        device = driver.run(driver.pool.use(kind, node))
        data = Extent(3 * unit, units * unit, hole=False)
        end = data.offset_bytes + data.length_bytes
        expected = [
            Extent(512, data.offset_bytes - 512, hole=True),
            data,
            Extent(end, size - 512 - end, hole=True),
        ]
        for limit in (1, 2, 3, 100):
            found = driver.run(device.extents(512, size - 1024, limit))
            assert found == expected[:limit]
            assert device.try_extents(512, size - 1024, limit) == found
        driver.pool.leave(kind, node)


def test_the_clock_gives_the_time_of_creation(driver: OpenDriver) -> None:
    before = driver.pool.clock()
    made = driver.volume("one")
    assert before <= made.created_at <= driver.pool.clock()


@pytest.mark.parametrize("size_bytes", [None, 0, 1, MIB - 1, MIB + 1, 1 << 60])
def test_a_size_that_no_volume_may_have_is_refused(
    driver: OpenDriver, size_bytes: int | None
) -> None:
    with pytest.raises(InvalidRequestError):
        driver.run(driver.pool.create_volume("one", size_bytes))
    assert driver.listing() == []


@pytest.mark.parametrize("name", ["", "7", "a\nb", "x" * 256])
def test_a_name_that_no_volume_may_have_is_refused(driver: OpenDriver, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        driver.volume(name)
    assert driver.listing() == []


def test_a_name_is_given_once_and_free_again_after_deletion(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    with pytest.raises(ConflictError):
        driver.volume("one")
    assert len(driver.listing()) == 1
    driver.run(driver.pool.delete_volume(volume))
    assert driver.listing() == []
    driver.volume("one")


def test_a_name_may_be_chosen_when_the_id_is_known(driver: OpenDriver) -> None:
    made = driver.run(driver.pool.create_volume(frozen_name, MIB))
    assert made.name == f"frozen-{made.id}"


def test_a_clone_shows_its_snapshot_and_goes_its_own_way(driver: OpenDriver) -> None:
    origin = driver.volume("one").id
    driver.write(origin, 0, b"then")
    snapshot = driver.run(driver.pool.create_snapshot(origin, "s")).id
    clone = driver.run(driver.pool.create_volume("clone", None, snapshot))
    assert (clone.size_bytes, clone.from_snapshot) == (MIB, snapshot)
    driver.write(clone.id, 0, b"clone")
    driver.write(origin, 0, b"now")
    assert driver.of_volume(clone.id) == b"clone"
    assert driver.of_snapshot(snapshot) == b"then"
    assert driver.of_volume(origin) == b"now"
    driver.run(driver.pool.delete_volume(origin))
    driver.run(driver.pool.delete_snapshot(snapshot))
    assert driver.of_volume(clone.id) == b"clone"


def test_a_clone_may_be_larger_and_not_smaller(driver: OpenDriver) -> None:
    origin = driver.volume("one", 2 * MIB).id
    snapshot = driver.run(driver.pool.create_snapshot(origin, "s")).id
    with pytest.raises(InvalidRequestError):
        driver.run(driver.pool.create_volume("small", MIB, snapshot))
    larger = driver.run(driver.pool.create_volume("large", 3 * MIB, snapshot))
    assert driver.of_volume(larger.id, 3 * MIB // BLOCK_SIZE - 1) == b""


def test_a_clone_of_what_does_not_exist_is_refused(driver: OpenDriver) -> None:
    with pytest.raises(NotFoundError):
        driver.run(driver.pool.create_volume("clone", None, SnapshotId(999)))
    assert driver.listing() == []


@pytest.mark.parametrize("is_open", [False, True])
def test_a_volume_grows_and_keeps_its_content(driver: OpenDriver, is_open: bool) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"data")
    if not is_open:
        driver.run(driver.pool.close_idle(NodeKind.VOLUME, volume))
    device = driver.run(driver.pool.use(NodeKind.VOLUME, volume)) if is_open else None
    grown = driver.run(driver.pool.extend_volume(volume, 3 * MIB))
    assert grown.size_bytes == 3 * MIB
    if device is not None:
        assert device.size_bytes == 3 * MIB
        driver.pool.leave(NodeKind.VOLUME, volume)
    last = 3 * MIB // BLOCK_SIZE - 1
    assert (driver.of_volume(volume), driver.of_volume(volume, last)) == (b"data", b"")
    driver.write(volume, last, b"end")
    assert driver.of_volume(volume, last) == b"end"


@pytest.mark.parametrize("size_bytes", [MIB, 2 * MIB, 3 * MIB + 1])
def test_a_volume_does_not_shrink_nor_stay(driver: OpenDriver, size_bytes: int) -> None:
    volume = driver.volume("one", 2 * MIB).id
    with pytest.raises(InvalidRequestError):
        driver.run(driver.pool.extend_volume(volume, size_bytes))
    with driver.pool.nodes() as nodes:
        assert nodes.volume(volume).size_bytes == 2 * MIB


def test_a_volume_goes_back_to_its_snapshot(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"then")
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 0, b"now")
    driver.run(driver.pool.extend_volume(volume, 2 * MIB))
    beyond = MIB // BLOCK_SIZE
    driver.write(volume, beyond, b"beyond")
    reverted = driver.run(driver.pool.revert_volume(volume, snapshot))
    assert reverted.size_bytes == 2 * MIB
    assert (driver.of_volume(volume), driver.of_volume(volume, beyond)) == (b"then", b"")
    driver.write(volume, 0, b"later")
    assert driver.of_snapshot(snapshot) == b"then"


def test_a_volume_goes_back_to_its_own_snapshots_only(driver: OpenDriver) -> None:
    volume, other = driver.volume("one").id, driver.volume("other").id
    snapshot = driver.run(driver.pool.create_snapshot(other, "s")).id
    with pytest.raises(ConflictError):
        driver.run(driver.pool.revert_volume(volume, snapshot))
    with pytest.raises(NotFoundError):
        driver.run(driver.pool.revert_volume(volume, SnapshotId(999)))


def test_a_volume_is_filled_from_any_snapshot_that_fits(driver: OpenDriver) -> None:
    origin, volume = driver.volume("one", 2 * MIB).id, driver.volume("two", 2 * MIB).id
    small = driver.volume("small").id
    driver.write(origin, 0, b"image")
    driver.write(volume, 0, b"old")
    snapshot = driver.run(driver.pool.create_snapshot(origin, "s")).id
    with pytest.raises(InvalidRequestError):
        driver.run(driver.pool.fill_volume(small, snapshot, nothing_more))
    filled = driver.run(driver.pool.fill_volume(volume, snapshot, nothing_more))
    assert filled.from_snapshot == snapshot
    assert driver.of_volume(volume) == b"image"


def test_a_volume_becomes_a_snapshot(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"data")
    made = driver.run(driver.pool.freeze_volume(volume, frozen_name, nothing_more))
    assert (made.volume, made.size_bytes) == (volume, MIB)
    assert driver.of_snapshot(made.id) == b"data"
    with driver.pool.nodes() as nodes:
        assert list(nodes.volumes()) == []
    driver.volume("one")


def test_a_deleted_volume_is_gone(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.run(driver.pool.delete_volume(volume))
    with pytest.raises(NotFoundError):
        driver.pool.find(NodeKind.VOLUME, "one")
    with pytest.raises(NotFoundError):
        driver.run(driver.pool.use(NodeKind.VOLUME, volume))
    with pytest.raises(NotFoundError):
        driver.run(driver.pool.delete_volume(volume))


def test_an_id_is_never_given_again(driver: OpenDriver) -> None:
    first = driver.volume("one").id
    driver.run(driver.pool.delete_volume(first))
    assert driver.volume("one").id > first


def test_what_is_used_is_not_deleted_reverted_filled_frozen_or_reopened(
    driver: OpenDriver,
) -> None:
    volume = driver.volume("one").id
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.run(driver.pool.use(NodeKind.VOLUME, volume))
    before = driver.listing()
    for refused in (
        driver.pool.delete_volume(volume),
        driver.pool.revert_volume(volume, snapshot),
        driver.pool.fill_volume(volume, snapshot, nothing_more),
        driver.pool.freeze_volume(volume, frozen_name, nothing_more),
        driver.pool.reopen_volume(volume),
    ):
        with pytest.raises(InUseError):
            driver.run(refused)
    assert driver.listing() == before
    driver.pool.leave(NodeKind.VOLUME, volume)
    driver.run(driver.pool.delete_volume(volume))


def test_what_does_not_exist_is_refused_by_every_operation(driver: OpenDriver) -> None:
    snapshot = driver.run(driver.pool.create_snapshot(driver.volume("one").id, "s")).id
    for refused in (
        driver.pool.extend_volume(NOBODY, 2 * MIB),
        driver.pool.fill_volume(NOBODY, snapshot, nothing_more),
        driver.pool.freeze_volume(NOBODY, frozen_name, nothing_more),
        driver.pool.reopen_volume(NOBODY),
        driver.pool.delete_volume(NOBODY),
        driver.pool.create_snapshot(NOBODY, "t"),
        driver.pool.delete_snapshot(SnapshotId(999)),
        driver.pool.measure(NodeKind.VOLUME, NOBODY),
    ):
        with pytest.raises(NotFoundError):
            driver.run(refused)
