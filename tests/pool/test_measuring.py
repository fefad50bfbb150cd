"""What a pool says of itself."""

from __future__ import annotations

import pytest

from bockd.errors import UnavailableError
from bockd.model import BLOCK_SIZE, MIB, NodeKind
from bockd.pool.reports import Space
from tests.pool.opendriver import OpenDriver


def total(space: Space) -> int:
    return space.exclusive_bytes + space.shared_bytes


def test_space_is_what_was_written(driver: OpenDriver) -> None:
    unit = driver.pool.features.hole_bytes
    volume = driver.volume("one", max(MIB, 16 * unit)).id
    assert total(driver.run(driver.pool.measure(NodeKind.VOLUME, volume))) == 0
    for number in (0, 7, 9):
        driver.write(volume, number * driver.unit_blocks, b"x")
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 0, b"y")
    for kind, node in ((NodeKind.VOLUME, volume), (NodeKind.SNAPSHOT, snapshot)):
        space = driver.run(driver.pool.measure(kind, node))
        assert total(space) == 3 * unit
        if driver.pool.features.shares_blocks:
            assert space == Space(unit, 2 * unit)


def test_the_pages_of_a_measurement_have_every_volume_once(driver: OpenDriver) -> None:
    unit = driver.pool.features.hole_bytes
    volumes = [driver.volume(f"v{number}", max(MIB, 4 * unit)).id for number in range(5)]
    for number, volume in enumerate(volumes):
        for written in range(number):
            driver.write(volume, written * driver.unit_blocks, b"x")
    found = {}
    after: int | None = 0
    while after is not None:
        page = driver.run(driver.pool.measure_all(after, lambda: True))
        for one in page.spaces:
            assert one.id not in found
            found[one.id] = total(one.space)
        after = page.next
    assert found == {volume: number * unit for number, volume in enumerate(volumes)}
    whole = driver.run(driver.pool.measure_all(0, lambda: False))
    assert (len(whole.spaces), whole.next) == (5, None)


def test_who_has_how_much(driver: OpenDriver) -> None:
    unit = driver.pool.features.hole_bytes
    volume = driver.volume("one", max(MIB, unit)).id
    driver.write(volume, 0, b"x")
    image = driver.run(driver.pool.create_snapshot(volume, "image")).id
    driver.write(volume, 0, b"y")
    driver.run(driver.pool.create_snapshot(volume, "s"))
    driver.write(volume, 0, b"z")
    shares = driver.run(driver.pool.shares(frozenset([image])))
    assert (shares.volumes_bytes, shares.snapshots_bytes, shares.images_bytes) == (unit,) * 3


def test_attributes_say_size_and_time(driver: OpenDriver) -> None:
    made = driver.volume("one")
    driver.write(made.id, 0, b"x", flush=True)
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, made.id))
    with driver.pool.nodes() as nodes:
        found = driver.pool.attributes(nodes, NodeKind.VOLUME, made.id)
    assert BLOCK_SIZE <= found.allocated_bytes <= made.size_bytes
    assert found.modified_at >= made.created_at
    snapshot = driver.run(driver.pool.create_snapshot(made.id, "s"))
    with driver.pool.nodes() as nodes:
        found = driver.pool.attributes(nodes, NodeKind.SNAPSHOT, snapshot.id)
    assert found.modified_at >= snapshot.created_at


def test_attributes_are_those_of_the_transaction_that_lists(driver: OpenDriver) -> None:
    """A volume that is deleted while a directory is listed is in the list still."""
    made = driver.volume("one")
    with driver.pool.nodes() as nodes:
        driver.run(driver.pool.delete_volume(made.id))
        found = driver.pool.attributes(nodes, NodeKind.VOLUME, made.id)
    assert found.modified_at >= made.created_at


def test_room_is_that_of_what_the_pool_stands_on(driver: OpenDriver) -> None:
    try:
        room = driver.pool.room()
    except UnavailableError as error:
        pytest.skip(str(error))  # the tests' Ceph cluster has nobody who knows it
    assert 0 < room.f_bavail <= room.f_blocks


def test_what_was_written_is_used(driver: OpenDriver) -> None:
    driver.write(driver.volume("one").id, 0, b"x", flush=True)
    assert driver.pool.used_bytes() >= BLOCK_SIZE


def test_a_check_counts_what_is_there_and_finds_it_clean(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"x")
    driver.run(driver.pool.create_snapshot(volume, "s"))
    report = driver.run(driver.pool.check())
    assert (report.clean, report.problems) == (True, ())
    assert (report.volumes, report.snapshots) == (1, 1)


def test_features_name_the_driver(driver: OpenDriver) -> None:
    features = driver.pool.features
    assert type(driver).__name__.lower().startswith(features.driver)
    assert features.hole_bytes >= BLOCK_SIZE
