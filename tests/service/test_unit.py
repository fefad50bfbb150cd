"""The unit as systemd reads it: that it is right, how well it confines, and its drop-in."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from bockd.config.load import default_file, load
from tests.daemon.process import program
from tests.service.dropins import view_dropin
from tests.service.unitfile import service_of

MOST_EXPOSED = 2.0
"""Of 10, by `systemd-analyze security`."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which may fail."""
    return subprocess.run(
        [program("systemd-analyze"), "--no-pager", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def exposure(unit: Path) -> float:
    """The score."""
    judged = analyze("security", "--offline=true", unit)
    found = re.search(r"Overall exposure level for bockd\.service: ([\d.]+)", judged.stdout)
    assert found is not None, judged
    return float(found[1])


def verify(unit: Path) -> str:
    """What systemd has against a unit and its drop-ins."""
    return analyze("verify", "--man=no", unit).stderr


def test_systemd_takes_it_and_it_runs_this_bockd(unit: Path) -> None:
    assert verify(unit) == ""
    assert service_of([unit.read_text()])["ExecStart"] == [f"{program('bockd')} serve"]


def test_it_confines_well(unit: Path, tmp_path: Path) -> None:
    assert exposure(unit) <= MOST_EXPOSED
    open_wide = tmp_path / "bockd.service"
    open_wide.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(open_wide) > 9


def test_the_drop_in_for_files(unit: Path, tmp_path: Path) -> None:
    """Systemd takes the two together."""
    whole = tmp_path / "bockd.service"
    whole.write_bytes(unit.read_bytes())
    dropin = tmp_path / "bockd.service.d" / "view.conf"
    dropin.parent.mkdir()
    dropin.write_text(view_dropin().replace("/usr/local/bin/bockd", program("bockd")))
    assert verify(whole) == ""
    dropin.write_text("[Service]\nProtectSystem=nonsense\n")
    assert "nonsense" in verify(whole)


@pytest.mark.parametrize("more", [["--mount", "/nowhere"], ["--config", "/dev/null"]])
def test_it_is_printed_by_itself(more: list[str]) -> None:
    refused = subprocess.run(
        [program("bockd"), "serve", "--print-unit", *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--print-unit goes without" in refused.stderr


def test_the_paths_are_those_of_bock(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's daemon looks where root's `bock` and `bockd check` look."""
    of_root = default_file({}, as_root=True), load(Path("/dev/null"), {}).settings.data_dir
    environment = service_of([unit.read_text()])["Environment"][0].split()
    given = dict(pair.split("=", 1) for pair in environment)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    data_dir = load(Path("/dev/null"), given).settings.data_dir
    assert (default_file(given, as_root=False), data_dir) == of_root
