"""What of an image is removed in the background while its volume is taken, or is deleted, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.drivers.rbd import removals  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.claims import RbdClaim  # noqa: E402
from bockd.drivers.rbd.images import remove_snap  # noqa: E402
from tests.drivers.rbd.pools import images, record, snaps  # noqa: E402


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


@pytest.fixture
def known(here: RbdDriver) -> tuple[VolumeId, SnapshotId, str]:
    """A volume that nobody has, with a snapshot, and its image."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
    return volume, snapshot, record(here, volume).image


class Removing:
    """The removal of a snap that has the lock of its image, and waits."""

    def __init__(self) -> None:
        self.has_lock = threading.Event()
        self.go_on = threading.Event()
        self.opened = 0


@pytest.fixture
def removing(monkeypatch: pytest.MonkeyPatch) -> Removing:
    one, open_image = Removing(), rbd.Image

    @contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        with open_image(*arguments) as image:
            one.opened += 1
            if one.opened == 1:
                image.write(image.read(0, 512), 0)  # takes the lock
                one.has_lock.set()
                one.go_on.wait()
            yield image

    def remove(cluster: Any, ioctx: Any, name: str, snap: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rbd, "Image", opened)
            remove_snap(cluster, ioctx, name, snap)

    monkeypatch.setattr("bockd.drivers.rbd.snapshots.remove_snap", remove)
    return one


def begin_to_remove(driver: RbdDriver, snapshot: SnapshotId, removing: Removing) -> None:
    run_inline(driver.pool.delete_snapshot(snapshot))
    driver._background.run()
    removing.has_lock.wait()


def test_who_takes_the_volume_here_shuts_out_no_removal(
    here: RbdDriver,
    known: tuple[VolumeId, SnapshotId, str],
    removing: Removing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, snapshot, image = known
    monkeypatch.setattr(removals, "KEPT_OFF_SECONDS", 60.0)
    monkeypatch.setattr(RbdClaim, "break_lock", None)  # nobody is shut out
    begin_to_remove(here, snapshot, removing)
    changed = here.rbd.session.removals._changed
    wait_for = changed.wait_for

    def going_on(*arguments: Any) -> Any:
        removing.go_on.set()
        return wait_for(*arguments)

    monkeypatch.setattr(changed, "wait_for", going_on)
    assert here.of_volume(volume) == b"then"
    assert (snaps(here, image), removing.opened) == ([], 1)


def test_what_another_gateway_shuts_out_is_removed_nevertheless(
    here: RbdDriver,
    there: RbdDriver,
    known: tuple[VolumeId, SnapshotId, str],
    removing: Removing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    volume, snapshot, image = known
    begin_to_remove(here, snapshot, removing)
    there.rbd.index.refresh()
    assert there.of_volume(volume) == b"then"
    removing.go_on.set()
    here.rbd.session.removals.wait()
    assert (snaps(here, image), removing.opened) == ([], 2)
    there.write(volume, 0, b"now")
    assert there.of_volume(volume) == b"now"
    assert "put off" not in caplog.text


def test_an_image_goes_with_the_last_of_what_was_deleted_at_once(
    here: RbdDriver, known: tuple[VolumeId, SnapshotId, str]
) -> None:
    """The volume's image is removed while the snap is there still, for which it stays."""
    volume, snapshot, image = known
    run_inline(here.pool.delete_snapshot(snapshot))
    run_inline(here.pool.delete_volume(volume))
    here.rbd.session.removals.wait()
    assert images(here) == {image}
    here._background.run()
    here.rbd.session.removals.wait()
    assert images(here) == set()
