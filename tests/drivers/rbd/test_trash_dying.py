"""A gateway is killed at each step of what is done with the trash: all of it is there afterwards,
or none, and another gateway goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import NotFoundError
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import NodeKind, SnapshotId
from tests.crash.failpoints.run import OF_THE_TRASH, OF_THE_TRASH_IN_CEPH
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.dying import as_text
from tests.drivers.rbd.keeping import Keeping
from tests.drivers.rbd.trashdying import AFTER, BEFORE, OPERATIONS

need_modules()

from bockd.drivers.rbd.imagestore import RbdImageStore  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.sweep import FULL_LOOK_EVERY, Patience, Sweep  # noqa: E402
from tests.drivers.rbd.pools import images, snaps  # noqa: E402

DYING = (sys.executable, "-m", "tests.drivers.rbd.trashdying")

CASES = [
    (operation, point, points is AFTER)
    for points in (BEFORE, AFTER)
    for operation in points
    for point in points[operation]
]


def test_each_failpoint_is_come_to() -> None:
    met = {point for _, point, _ in CASES}
    assert met >= OF_THE_TRASH | OF_THE_TRASH_IN_CEPH


@pytest.fixture
def after(rbd_namespace: RbdSettings, tmp_path: Path) -> Keeping:
    return Keeping(rbd_namespace, tmp_path, "after")


@pytest.mark.parametrize(("operation", "point", "done"), CASES)
def test_killed_at_a_step_all_or_nothing_is_done(
    after: Keeping,
    rbd_namespace: RbdSettings,
    tmp_path: Path,
    operation: str,
    point: Failpoint,
    done: bool,
) -> None:
    volume = after.make("web", b"then")
    snapshot = after.freeze(volume, "before")
    after.write(volume, 0, b"now")
    after.run(after.pool.close_idle(NodeKind.VOLUME, volume))
    if not operation.startswith("delete"):
        after.delete(NodeKind.VOLUME, volume)
        after.delete(NodeKind.SNAPSHOT, snapshot)
    before = after.listed()
    died = subprocess.run(
        [*DYING, as_text(rbd_namespace), tmp_path, operation, str(volume), str(snapshot)],
        env={**os.environ, VARIABLE: point},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (after.listed() != before) == done
    assert after.unsound() == ()

    with suppress(NotFoundError):  # it is done
        OPERATIONS[operation](after, volume, snapshot)
    kept = after.listed()
    assert kept != before
    for node in kept:
        after.restore(node)
    if operation.startswith("expire"):
        sweep_all(after)
    (image,) = images(after)
    if operation != "expire volume":
        assert after.of_volume(volume) == b"now"
    if operation == "expire snapshot":
        assert snaps(after, image) == []
    else:
        assert after.of_snapshot(SnapshotId(snapshot)) == b"then"
    assert after.unsound() == ()
    after.close()


def sweep_all(gateway: Keeping) -> None:
    """Remove what the dead gateway has left, as the sweep does."""
    store = RbdImageStore(gateway.settings)
    sweep = Sweep(gateway.rbd.index, store, 5, Patience(0.0, 0.0))
    for _ in range(FULL_LOOK_EVERY + 1):
        sweep.look()
    store.close()
