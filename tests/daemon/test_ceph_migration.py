"""`bock volume migrate` from a local pool to one in Ceph, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.nbd.client import Export
from tests.daemon.migrating import Two, killed, read, show
from tests.daemon.process import Bockd, serving
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


def test_there_and_back_with_a_death_each_time(local: Bockd, gateway: Bockd) -> None:
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
