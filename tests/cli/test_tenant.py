"""`bock limits` and `bock adopt`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bockd.drivers.local.pool import LocalPool
from bockd.model import MIB
from bockd.runtime.steps import Background, run_inline

from .daemon import Daemon, running_daemon


def test_limits(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "pool") as daemon:
        check_limits(daemon)


def check_limits(daemon: Daemon) -> None:
    """What is counted, and where it ends."""
    daemon.bock("volume", "create", "other", "--size", "1M")
    before = daemon.bock_json("limits")
    daemon.bock("volume", "create", "counted", "--size", "1025M")
    daemon.bock("snapshot", "create", "counted", "counted-then")
    after = daemon.bock_json("limits")
    assert after["totalVolumesUsed"] - before["totalVolumesUsed"] == 1
    assert after["totalGigabytesUsed"] - before["totalGigabytesUsed"] == 2
    assert after["totalSnapshotsUsed"] - before["totalSnapshotsUsed"] == 1
    used, most = after["totalGigabytesUsed"], after["maxTotalVolumeGigabytes"]
    assert re.search(rf"^gigabytes +{used} +{most} *$", daemon.bock("limits"), re.MULTILINE)
    # The default quota is 64 TiB, of which 3 GiB are used.
    for number in range(3):
        daemon.bock("volume", "create", f"large-{number}", "--size", "16T")
    told = daemon.refusal("volume", "create", "large-3", "--size", "16T")
    assert "Volume quota exceeded" in told
    told = daemon.refusal("volume", "extend", "counted", "--size", "16T")
    assert "Volume quota exceeded" in told
    assert daemon.bock_json("volume", "show", "counted")["size_bytes"] == 1025 << 20


@pytest.fixture
def old_pool(tmp_path: Path) -> Path:
    """A pool as an older version left it: a volume and a snapshot of nobody."""
    background = Background()
    pool = LocalPool.open(tmp_path / "pool", background.spawn)
    volume = run_inline(pool.create_volume("old", 2 * MIB))
    run_inline(pool.create_snapshot(volume.id, "old-then"))
    run_inline(pool.close_all())
    pool.release()
    return tmp_path / "pool"


@pytest.mark.needs("files")  # a local pool that an older version has left
def test_adopting_what_an_older_version_made(old_pool: Path) -> None:
    with running_daemon(old_pool) as daemon:
        assert daemon.names() == set()
        info = daemon.bock_json("info")
        assert (info["unowned_volumes"], info["unowned_snapshots"]) == (["old"], ["old-then"])
        assert re.search(r"^volumes of no tenant +old \(", daemon.bock("info"), re.MULTILINE)
        assert daemon.bock("adopt", "volume", "old") == "adopted volume old\n"
        daemon.bock("adopt", "snapshot", "old-then")
        assert "belongs to tenant" in daemon.refusal("adopt", "volume", "old")
        assert "no volume 'none'" in daemon.refusal("adopt", "volume", "none")
        shown = daemon.bock_json("volume", "show", "old")
        assert (shown["size_bytes"], shown["status"]) == (2 * MIB, "available")
        daemon.bock("snapshot", "revert", "old-then")
        assert "no tenant" not in daemon.bock("info")
        assert daemon.bock_json("limits")["totalGigabytesUsed"] == 1
