"""`bockd check`: done here, or by the daemon that has the pool. And `bockd serve`'s failures."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from bockd.cli.bockd import main
from bockd.errors import InUseError, PoolFormatError
from bockd.pool.reports import CheckReport

from .daemon import Daemon, running_daemon

CLEAN = CheckReport(
    clean=True,
    problems=(),
    repaired=("2 stray blocks punched",),
    volumes=1,
    snapshots=2,
    layers=3,
    leaves=4,
    stray_blocks=5,
    pending_reclaim=6,
)
BROKEN = dataclasses.replace(CLEAN, clean=False, problems=("layer 3 is missing",), repaired=())


class PoolCheck:
    """Stands for `bockd.cli.checking`: answers what it was given, keeps what it was asked."""

    def __init__(self, answer: CheckReport | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[Path, bool]] = []

    def check_pool(self, path: Path, *, repair: bool) -> CheckReport:
        self.asked.append((path, repair))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def pool_check(monkeypatch: pytest.MonkeyPatch, answer: CheckReport | Exception) -> PoolCheck:
    """Put a `PoolCheck` where the command will import it from."""
    stand_in = PoolCheck(answer)
    module = types.ModuleType("bockd.cli.checking")
    module.__dict__["check_pool"] = stand_in.check_pool
    monkeypatch.setitem(sys.modules, "bockd.cli.checking", module)
    return stand_in


def test_clean_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = pool_check(monkeypatch, CLEAN)
    result = CliRunner().invoke(main, ["check", str(tmp_path), "--repair"])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "repaired: 2 stray blocks punched",
        f"{tmp_path}: clean; 1 volumes, 2 snapshots, 3 layers, 4 leaves, 0 checksums, "
        "5 stray blocks, 6 waiting for reclaim",
    ]
    assert check.asked == [(tmp_path, True)]


def test_problems_are_listed_and_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = pool_check(monkeypatch, BROKEN)
    monkeypatch.setenv("BOCKD_DATA", str(tmp_path))
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 1
    assert result.output.startswith("problem: layer 3 is missing\n")
    as_json = CliRunner().invoke(main, ["check", "--json"])
    assert as_json.exit_code == 1
    assert json.loads(as_json.output)["problems"] == ["layer 3 is missing"]
    assert check.asked == [(tmp_path, False)] * 2


def test_a_pool_that_cannot_be_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool_check(monkeypatch, PoolFormatError(f"{tmp_path} is not a pool"))
    result = CliRunner().invoke(main, ["check", str(tmp_path)], prog_name="bockd")
    assert (result.exit_code, result.stderr) == (1, f"bockd: {tmp_path} is not a pool\n")


def test_the_daemon_checks_the_pool_it_has(daemon: Daemon) -> None:
    volume = daemon.bock_json("volume", "create", "checked", "--size", "1M")
    result = daemon.run("bockd", "check", "--json")
    assert (result.status, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["clean"] is True
    assert report["volumes"] >= 1
    daemon.bock("volume", "delete", str(volume["id"]))


@pytest.mark.needs("files")
def test_a_pool_in_use_is_not_repaired(daemon: Daemon) -> None:
    repair = daemon.run("bockd", "check", daemon.data_dir, "--repair")
    assert (repair.status, repair.out) == (1, "")
    assert re.fullmatch(
        f"bockd: the pool {daemon.data_dir} is in use by another bockd \\(process \\d+\\): "
        "stop it before --repair, or check without it\n",
        repair.err,
    )


@pytest.mark.needs("files")
def test_a_pool_without_a_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "pool") as daemon:
        daemon.bock("volume", "create", "kept", "--size", "1M")
    result = daemon.run("bockd", "check", "--repair")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{tmp_path / 'pool'}: clean; 1 volumes, 0 snapshots")
    absent = daemon.run("bockd", "check", tmp_path / "nowhere")
    assert (absent.status, absent.err.count("\n")) == (1, 1)


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    result = daemon.run("bockd", "serve", BOCKD_NBD_LISTEN="none")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("bockd: ")
    assert result.err.count("\n") == 1
    assert daemon.bock("info")


def test_a_pool_in_use_by_one_who_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool_check(monkeypatch, InUseError("process 7 has the pool"))
    result = CliRunner().invoke(main, ["check", str(tmp_path)])
    assert result.exit_code == 1
    assert "process 7 has the pool, and it cannot be asked" in result.stderr


def test_bad_settings_are_one_line(daemon: Daemon) -> None:
    result = daemon.run("bockd", "serve", BOCKD_NBD_LISTEN="10809")
    assert (result.status, result.out) == (1, "")
    assert result.err == "bockd: BOCKD_NBD_LISTEN: '10809' is not HOST:PORT, nor the word none\n"
    assert daemon.run("bockd", "--version").out.startswith("bockd, version ")
