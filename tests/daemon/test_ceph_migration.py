"""`bock volume migrate` from a local pool to one in Ceph, and back; also while it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.nbd.client import Export
from tests.daemon.livewriting import Writer, die, press_ctrl_c, run_live
from tests.daemon.migrating import Two, killed, read, show
from tests.daemon.process import Bockd, serving
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.running import configuration


@pytest.fixture
def gateway(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[Bockd]:
    config, data_dir = tmp_path / "bockd.toml", tmp_path / "gateway"
    config.write_text(configuration(replace(rbd_namespace, gateway="gw1"), data_dir))
    with serving(data_dir, config=config) as running:
        yield running


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bockd]:
    with serving(tmp_path / "local") as running:
        yield running


@pytest.fixture
def assert_nothing_left(ceph: Cluster, rbd_namespace: RbdSettings) -> Callable[[], None]:
    """No image is left to the sweep, which comes hours later."""

    def ask() -> None:
        # Only where Ceph's modules are.
        from bockd.drivers.rbd.imagestore import RbdImageStore

        with closing(RbdImageStore(rbd_namespace)) as store:
            ceph.wait_for(lambda: not store.names())

    return ask


def test_there_and_back_with_a_death_each_time(
    local: Bockd, gateway: Bockd, assert_nothing_left: Callable[[], None]
) -> None:
    there = Two(local, gateway, str(gateway.data_dir))
    back = Two(gateway, local, str(local.data_dir))
    content = there.fill("disk")
    for one in (there, back):
        assert killed(lambda one=one: one.migrate("disk"), Export, "write", 2, "after")  # type: ignore[misc]
        assert (show(one.here, "disk").hold or "").startswith("migration ")
        one.migrate("disk")
        one.assert_moved("disk", content)
        one.here.wait_until_unused("disk")
        with one.here.storage() as storage:
            storage.delete_volume(storage.find_volume("disk").id)
        assert one.here.check()["volumes"] == 0
        one.there.wait_until_unused("disk")
    assert read(local, "disk") == content
    assert local.check()["volumes"] == 1
    assert_nothing_left()


def test_there_and_back_while_it_is_used(
    local: Bockd, gateway: Bockd, assert_nothing_left: Callable[[], None]
) -> None:
    there = Two(local, gateway, str(gateway.data_dir))
    back = Two(gateway, local, str(local.data_dir))
    content = there.fill("disk")
    for one in (there, back):
        one.here.expect_in_log("is held")
        writer = Writer(one.here, "disk", content)
        assert run_live(one, "disk", writer, (Export, "write"), 2, die) == -9
        assert show(one.here, "disk").status == "available"
        writer.write()
        assert run_live(one, "disk", writer, (Export, "write"), 0, die) == 0
        content = bytes(writer.content)
        one.assert_moved("disk", content)
        one.here.wait_until_unused("disk")
        with one.here.storage() as storage:
            storage.delete_volume(storage.find_volume("disk").id)
        assert one.here.check()["volumes"] == 0
        one.there.wait_until_unused("disk")
    assert read(local, "disk") == content
    assert local.check()["snapshots"] == 0
    assert_nothing_left()


def test_from_ceph_after_a_revert(local: Bockd, gateway: Bockd) -> None:
    """The volume is another image then, and what was copied may all be different."""
    back = Two(gateway, local, str(local.data_dir))
    content = back.fill("disk")
    gateway.bock("snapshot", "create", "disk", "disk-then")
    with gateway.connected("disk") as client:
        client.pwrite(b"forgotten" * 1000, 4096)
        with pytest.raises(KeyboardInterrupt):
            back.migrate("disk", live=True, tell=press_ctrl_c)
    gateway.wait_until_unused("disk")
    gateway.bock("snapshot", "revert", "disk-then")
    back.migrate("disk", live=True)
    gateway.bock("snapshot", "delete", "disk-then")
    back.assert_moved("disk", content)
