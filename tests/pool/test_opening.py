"""Opening: who uses what, how it ends, and volumes that have failed."""

from __future__ import annotations

import pytest

from bockd.errors import NotFoundError, VolumeFailedError
from bockd.model import NodeKind
from bockd.pool.nodes import Nodes
from tests.pool.opendriver import OpenDriver


@pytest.mark.parametrize("kind", list(NodeKind))
def test_users_are_counted_and_what_is_used_stays_open(driver: OpenDriver, kind: NodeKind) -> None:
    volume = driver.volume("one").id
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, volume))
    node = volume if kind is NodeKind.VOLUME else snapshot
    assert (driver.pool.users(kind, node), driver.pool.is_open(kind, node)) == (0, False)
    first = driver.run(driver.pool.use(kind, node))
    assert driver.run(driver.pool.use(kind, node)) is first
    assert driver.pool.users(kind, node) == 2
    driver.pool.leave(kind, node)
    driver.run(driver.pool.close_idle(kind, node))
    assert (driver.pool.users(kind, node), driver.pool.is_open(kind, node)) == (1, True)
    driver.pool.leave(kind, node)
    driver.run(driver.pool.close_idle(kind, node))
    assert not driver.pool.is_open(kind, node)


def test_what_was_closed_is_as_it_was_when_it_is_opened_again(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"data")
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, volume))
    assert driver.of_volume(volume) == b"data"


def test_nothing_is_opened_that_does_not_exist(driver: OpenDriver) -> None:
    for kind in NodeKind:
        with pytest.raises(NotFoundError):
            driver.run(driver.pool.use(kind, 999))
        with pytest.raises(NotFoundError):
            driver.pool.find(kind, "nobody")


def test_a_sound_volume_has_no_failure(driver: OpenDriver) -> None:
    made = driver.volume("one")
    driver.write(made.id, 0, b"data")
    assert driver.run(driver.pool.flush_volume(made.id)) is None
    assert (driver.pool.failure(made), driver.pool.trouble(made)) == (None, None)


def test_a_volume_that_failed_is_refused_until_it_is_reopened(driver: OpenDriver) -> None:
    made = driver.volume("one")
    driver.write(made.id, 0, b"data")
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, made.id))
    driver.pool.index.update(lambda txn: Nodes(txn).fail_volume(made.id, "the disk broke"))
    with driver.pool.nodes() as nodes:
        record = nodes.volume(made.id)
    assert record.failed == "the disk broke"
    failure = driver.pool.failure(record)
    assert failure is not None
    assert f"bock volume reopen {made.id}" in failure
    assert driver.pool.trouble(record) == failure
    assert driver.run(driver.pool.flush_volume(made.id)) == "the disk broke"
    for refused in (
        lambda: driver.pool.use(NodeKind.VOLUME, made.id),
        lambda: driver.pool.create_snapshot(made.id, "s"),
        lambda: driver.pool.extend_volume(made.id, 2 << 20),
    ):
        with pytest.raises(VolumeFailedError):
            driver.run(refused())
    assert driver.run(driver.pool.reopen_volume(made.id)).failed is None
    assert driver.of_volume(made.id) == b"data"


def test_a_volume_that_failed_can_be_deleted(driver: OpenDriver) -> None:
    made = driver.volume("one")
    driver.pool.index.update(lambda txn: Nodes(txn).fail_volume(made.id, "the disk broke"))
    driver.run(driver.pool.delete_volume(made.id))
    assert driver.listing() == []


def test_what_was_answered_is_there_after_the_process_died(driver: OpenDriver) -> None:
    if not driver.pool.features.durable:
        return
    volume = driver.volume("one").id
    driver.write(volume, 0, b"flushed", flush=True)
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 0, b"answered")
    driver.die_and_open()
    assert driver.of_volume(volume) == b"answered"
    assert driver.of_snapshot(snapshot) == b"flushed"
    report = driver.run(driver.pool.check())
    assert report.clean, report.problems
