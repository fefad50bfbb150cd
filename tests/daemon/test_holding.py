"""A volume that is held is kept from clients of every frontend."""

from __future__ import annotations

from pathlib import Path

import nbd
import pytest

from bockd.errors import InvalidStateError
from tests.daemon.process import serving


def test_no_frontend_opens_a_held_volume(tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    with serving(tmp_path / "data", mount=view) as daemon, daemon.storage() as storage:
        volume = storage.create_volume("disk", 1 << 20).id
        with daemon.connected("disk") as client:
            client.pwrite(b"x" * 4096, 0)
            with pytest.raises(InvalidStateError, match="users"):
                storage.hold_volume(volume, "moves away")
            client.pwrite(b"y" * 4096, 0)
        daemon.wait_until_unused("disk")
        with (view / "volumes" / "disk").open("rb"), pytest.raises(InvalidStateError):
            storage.hold_volume(volume, "moves away")
        daemon.wait_until_unused("disk")
        assert storage.hold_volume(volume, "moves away").hold == "moves away"
        for name in ("disk", str(volume)):
            with pytest.raises(nbd.Error, match="server policy"):
                daemon.connect(name)
        with pytest.raises(OSError, match="busy"):
            (view / "volumes" / "disk").open("rb")
        told = daemon.refusal("volume", "delete", "disk", "--yes")
        assert "is held (moves away)" in told
        assert f"bock volume release {volume}" in told
        assert "moves away" in daemon.tool("bock", "volume", "show", "disk")
        daemon.kill()
        daemon.start()
        with pytest.raises(nbd.Error, match="server policy"):
            daemon.connect("disk")
        storage.create_snapshot(volume, "then")
        with daemon.connected("snapshot/then") as client:
            assert client.pread(4096, 0) == b"y" * 4096
        assert daemon.bock("volume", "release", "disk")["status"] == "available"
        with daemon.connected("disk") as client:
            assert client.pread(4096, 0) == b"y" * 4096
        daemon.expect_in_log("is held")
