"""A volume's own limits of I/O, and its device profile, stay with it, in any kind of pool, whatever
is done to it."""

from __future__ import annotations

import pytest

from bockd.errors import NotFoundError
from bockd.model import MIB, NO_IO_LIMITS, DeviceProfile, IoLimits, IoRate, VolumeId
from bockd.pool.nodes import Nodes
from bockd.profiles.builtin import BUILT_IN
from tests.pool.opendriver import OpenDriver

LIMITS = IoLimits(iops=IoRate(500, burst=2000, burst_seconds=30), write_bps=IoRate(MIB))


def limit(driver: OpenDriver, volume: VolumeId, limits: IoLimits | None) -> None:
    driver.pool.index.update(lambda txn: Nodes(txn).limit_volume(volume, limits))


def limits(driver: OpenDriver, volume: VolumeId) -> IoLimits | None:
    with driver.pool.nodes() as nodes:
        return nodes.volume(volume).limits


def test_limits_stay_while_it_is_used_and_changed(driver: OpenDriver) -> None:
    """Written to, snapshotted, grown, reverted; a clone has none, and a deleted one's are gone."""
    volume = driver.volume("one", MIB).id
    assert limits(driver, volume) is None
    driver.write(volume, 0, b"data", flush=True)
    limit(driver, volume, LIMITS)
    driver.write(volume, 1, b"data", flush=True)
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 2, b"data")
    driver.run(driver.pool.extend_volume(volume, 2 * MIB))
    driver.run(driver.pool.revert_volume(volume, snapshot))
    assert limits(driver, volume) == LIMITS
    clone = driver.run(driver.pool.create_volume("two", None, snapshot)).id
    assert limits(driver, clone) is None
    limit(driver, volume, NO_IO_LIMITS)
    assert limits(driver, volume) == NO_IO_LIMITS
    limit(driver, volume, None)
    assert limits(driver, volume) is None
    driver.run(driver.pool.delete_volume(volume))
    with pytest.raises(NotFoundError):
        limit(driver, volume, LIMITS)


def give(driver: OpenDriver, volume: VolumeId, profile: DeviceProfile | None) -> None:
    driver.pool.index.update(lambda txn: Nodes(txn).profile_volume(volume, profile))


def profile(driver: OpenDriver, volume: VolumeId) -> DeviceProfile | None:
    with driver.pool.nodes() as nodes:
        return nodes.volume(volume).profile


def test_profile_stays_while_it_is_used_and_changed(driver: OpenDriver) -> None:
    """A clone has none."""
    volume = driver.volume("one", MIB).id
    assert profile(driver, volume) is None
    for found in BUILT_IN.values():
        give(driver, volume, found)
        driver.write(volume, 1, b"data", flush=True)
        assert profile(driver, volume) == found
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.run(driver.pool.extend_volume(volume, 2 * MIB))
    driver.run(driver.pool.revert_volume(volume, snapshot))
    if driver.pool.features.durable:
        driver.die_and_open()
    assert profile(driver, volume) == BUILT_IN["dying"]
    clone = driver.run(driver.pool.create_volume("two", None, snapshot)).id
    assert profile(driver, clone) is None
    give(driver, volume, None)
    assert profile(driver, volume) is None


def test_limits_outlive_the_process(driver: OpenDriver) -> None:
    if not driver.pool.features.durable:
        return
    volume = driver.volume("one", MIB).id
    driver.write(volume, 0, b"data")
    limit(driver, volume, LIMITS)
    driver.write(volume, 1, b"data")
    driver.die_and_open()
    assert limits(driver, volume) == LIMITS
    assert driver.of_volume(volume, 1) == b"data"
    assert limits(driver, volume) == LIMITS
