"""What tests look at in a pool in Ceph. Only where Ceph's modules are."""

from __future__ import annotations

from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.images import looking_at
from bockd.drivers.rbd.records import (
    RbdVolumeRecord,
    snapshot_record,
    volume_record,
)
from bockd.model import SnapshotId, VolumeId
from tests.drivers.rbd.pooldriver import RbdDriver


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
