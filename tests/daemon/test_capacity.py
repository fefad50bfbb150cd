"""The daemon says how full the pool's file system is, and warns when it fills."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from .filesystems import mounted
from .process import Bockd, serving

MIB = 1 << 20

LOOK_SECONDS = 60.0
"""The first look comes with the start; the machine may be busy."""


def wait_for_log(daemon: Bockd, text: str) -> None:
    """Return when the daemon has logged `text`."""
    deadline = time.monotonic() + LOOK_SECONDS
    while text not in daemon.log.read_text():
        assert time.monotonic() < deadline, daemon.log.read_text()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_file_system_that_others_fill_is_warned_of(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path, 320 * MIB) as root:
        found = os.statvfs(root)
        whole = (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize
        wanted = int(found.f_blocks * found.f_frsize * 0.83)
        with (root / "others").open("wb") as others:
            os.posix_fallocate(others.fileno(), 0, wanted)
        with serving(root / "pool", log=tmp_path / "log") as daemon:
            wait_for_log(daemon, f"the file system of {daemon.data_dir} is ")
            shown = daemon.bock("pool", "show")
        assert shown["others_bytes"] >= wanted
        assert shown["size_bytes"] == whole
        assert shown["free_bytes"] < shown["size_bytes"] * 0.2
        assert (shown["volumes_bytes"], shown["promised_bytes"]) == (0, 0)


def test_no_threshold_no_warning(tmp_path: Path) -> None:
    """A daemon with other thresholds says nothing of these."""
    config = tmp_path / "bockd.toml"
    config.write_text("[pool]\nwarn_percent = []\n")
    with mounted("tmpfs", tmp_path, 192 * MIB) as root:
        with (root / "others").open("wb") as others:
            os.posix_fallocate(others.fileno(), 0, 144 * MIB)
        with serving(root / "pool", log=tmp_path / "log", config=config) as daemon:
            assert daemon.bock("pool", "show")["warn_percent"] == []
        assert "the file system of" not in daemon.log.read_text()
