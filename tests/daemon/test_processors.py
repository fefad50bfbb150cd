"""What control groups grant of the processors' time, and that the daemon keeps to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.config import Settings
from bockd.daemon import lifecycle
from bockd.daemon.localbackend import LocalBackend
from bockd.daemon.logs import LineCounts
from bockd.processors import granted_cores

MOST = 8


def grant(groups: Path, group: str, text: str) -> None:
    """Write a group's `cpu.max`, as the kernel does."""
    directory = groups / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cpu.max").write_text(f"{text}\n")


@pytest.fixture
def own_group(tmp_path: Path) -> Path:
    """The process is in system.slice/bockd.service; there are groups of the old kind, too."""
    own = tmp_path / "cgroup"
    own.write_text("4:cpu,cpuacct:/elsewhere\n0::/system.slice/bockd.service\n")
    return own


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", MOST),
        ("100000 100000", 1),
        ("150000 100000", 1),
        ("200000 100000", 2),
        ("50000 10000", 5),
        ("20000 100000", 1),
        ("1600000 100000", MOST),
        ("something new", MOST),
    ],
)
def test_a_quota_grants_whole_cores(tmp_path: Path, own_group: Path, text: str, cores: int) -> None:
    """At least one."""
    grant(tmp_path, "system.slice/bockd.service", text)
    grant(tmp_path, "elsewhere", "100000 100000")
    assert granted_cores(MOST, tmp_path, own_group) == cores


def test_the_groups_around_count_as_well(tmp_path: Path, own_group: Path) -> None:
    grant(tmp_path, "system.slice/bockd.service", "400000 100000")
    grant(tmp_path, "system.slice", "300000 100000")
    assert granted_cores(MOST, tmp_path, own_group) == 3
    grant(tmp_path, "", "200000 100000")  # of a container, whose root is no root
    assert granted_cores(MOST, tmp_path, own_group) == 2


@pytest.mark.parametrize("text", ["", "3:cpu:/elsewhere\n", "0::/\n", "0::/../beside\n"])
def test_without_a_quota_all_are_granted(tmp_path: Path, own_group: Path, text: str) -> None:
    own_group.write_text(text)
    grant(tmp_path, "elsewhere", "100000 100000")
    assert granted_cores(MOST, tmp_path, own_group) == MOST
    assert granted_cores(MOST, tmp_path, tmp_path / "absent") == MOST


def test_the_daemon_keeps_to_what_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "granted_cores", lambda most: min(3, most))
    daemon = lifecycle._Daemon(LocalBackend, Settings(), None, LineCounts())
    assert daemon._server._limits.lane_threads == 3
