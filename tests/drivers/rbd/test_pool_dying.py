"""A gateway is killed at each step of each operation on a pool in Ceph: the operation is done or
not, nothing that is named is missing, and what is left over is known as such."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import NodeKind, SnapshotId, VolumeId
from tests.crash.failpoints.run import OF_IMAGES
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.dying import as_text
from tests.drivers.rbd.pooldriver import RbdDriver
from tests.drivers.rbd.pooldying import OPERATIONS, POINTS

need_modules()

from bockd.drivers.rbd import checking  # noqa: E402 - where there are the modules

DYING = (sys.executable, "-m", "tests.drivers.rbd.pooldying")
LEFT_OVER = "only takes space"


def make_ground(driver: RbdDriver) -> None:
    one = driver.volume("one").id
    driver.write(one, 0, b"then")
    driver.run(driver.pool.create_snapshot(one, "s"))
    driver.write(one, 0, b"now")
    other = driver.volume("other").id
    driver.write(other, 0, b"other")


def contents(driver: RbdDriver) -> dict[str, bytes]:
    """What everything that is named shows."""
    with driver.pool.nodes() as nodes:
        volumes = {one.name: one.id for one in nodes.volumes()}
        snapshots = {one.name: one.id for one in nodes.snapshots()}
    found = {name: driver.of_volume(VolumeId(node)) for name, node in volumes.items()}
    return found | {name: driver.of_snapshot(SnapshotId(node)) for name, node in snapshots.items()}


BEFORE = {"one": b"now", "other": b"other", "s": b"then"}
AFTER: dict[str, dict[str, bytes | None]] = {
    "create": {"new": b""},
    "clone": {"new": b"then"},
    "extend": {},
    "revert": {"one": b"then"},
    "fill": {"other": b"then"},
    "freeze": {"other": None, "frozen": b"other"},
    "delete": {"other": None},
    "snapshot": {"t": b"now"},
    "delete snapshot": {"s": None},
}


def test_each_failpoint_is_come_to() -> None:
    assert {point for points in POINTS.values() for point in points} == OF_IMAGES


@pytest.mark.parametrize(
    ("operation", "point"), [(name, point) for name in OPERATIONS for point in POINTS[name]]
)
def test_killed_at_a_step_the_pool_is_whole(
    rbd_namespace: RbdSettings,
    tmp_path: Path,
    operation: str,
    point: Failpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = RbdDriver(rbd_namespace, tmp_path / "before")
    make_ground(before)
    before.close()
    died = subprocess.run(
        [*DYING, as_text(rbd_namespace), tmp_path / "dying", operation],
        env={**os.environ, VARIABLE: point},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    after = RbdDriver(rbd_namespace, tmp_path / "after")
    assert after.run(after.pool.check()).problems == ()
    done = {name: one for name, one in (BEFORE | AFTER[operation]).items() if one is not None}
    assert contents(after) == (BEFORE if point is Failpoint.IMAGE_MADE else done)
    # Young or not: nothing that is named is missing.
    monkeypatch.setattr(checking, "YOUNG_SECONDS", -1e9)
    left = after.run(after.pool.check()).problems
    assert all(LEFT_OVER in problem for problem in left)
    made = point is Failpoint.IMAGE_MADE and operation != "extend"
    assert bool(left) == (made or (point is Failpoint.IMAGE_FORGOTTEN and operation != "revert"))
    assert after.pool.users(NodeKind.VOLUME, 1) == 0
    after.close()
