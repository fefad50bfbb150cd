"""Snapshots of any kind of pool."""

from __future__ import annotations

import pytest

from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.model import MIB, NodeKind, SnapshotId
from tests.pool.opendriver import OpenDriver


@pytest.mark.parametrize("is_open", [False, True])
def test_a_snapshot_shows_what_the_volume_held(driver: OpenDriver, is_open: bool) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"then")
    if not is_open:
        driver.run(driver.pool.close_idle(NodeKind.VOLUME, volume))
    made = driver.run(driver.pool.create_snapshot(volume, "s"))
    assert (made.name, made.volume, made.size_bytes) == ("s", volume, MIB)
    driver.write(volume, 0, b"now")
    driver.write(volume, 1, b"new")
    assert (driver.of_snapshot(made.id), driver.of_snapshot(made.id, 1)) == (b"then", b"")
    assert driver.pool.find(NodeKind.SNAPSHOT, "s") == made.id


def test_a_write_that_was_answered_is_in_the_snapshot_that_follows(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    for number in range(5):
        driver.write(volume, 0, f"v{number}".encode())
        driver.run(driver.pool.create_snapshot(volume, f"s{number}"))
    found = [
        driver.of_snapshot(SnapshotId(driver.pool.find(NodeKind.SNAPSHOT, f"s{number}")))
        for number in range(5)
    ]
    assert found == [b"v0", b"v1", b"v2", b"v3", b"v4"]


def test_a_snapshot_is_read_only(driver: OpenDriver) -> None:
    snapshot = driver.run(driver.pool.create_snapshot(driver.volume("one").id, "s")).id
    device = driver.run(driver.pool.use(NodeKind.SNAPSHOT, snapshot))
    assert (device.read_only, device.size_bytes) == (True, MIB)
    driver.pool.leave(NodeKind.SNAPSHOT, snapshot)


def test_a_snapshots_name_is_given_once_and_apart_from_volumes(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.run(driver.pool.create_snapshot(volume, "one"))
    for name, refusal in (("one", ConflictError), ("12", InvalidRequestError)):
        with pytest.raises(refusal):
            driver.run(driver.pool.create_snapshot(volume, name))
    assert len(driver.listing()) == 2


def test_a_snapshot_outlives_its_volume(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"then")
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.run(driver.pool.delete_volume(volume))
    assert driver.of_snapshot(snapshot) == b"then"


def test_a_snapshot_that_is_read_is_not_deleted(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.run(driver.pool.use(NodeKind.SNAPSHOT, snapshot))
    with pytest.raises(InUseError, match="is being read; disconnect first"):
        driver.run(driver.pool.delete_snapshot(snapshot))
    driver.pool.leave(NodeKind.SNAPSHOT, snapshot)
    driver.run(driver.pool.delete_snapshot(snapshot))
    with pytest.raises(NotFoundError):
        driver.run(driver.pool.use(NodeKind.SNAPSHOT, snapshot))
    assert driver.of_volume(volume) == b""
