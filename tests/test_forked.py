"""A forked program does what the program does (`forked.py`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import forked
from tests.daemon.process import PROGRAM_SECONDS, environment_without_a_cloud, program

LINES = [
    ("bock", "--version"),
    ("bock", "volume", "create", "x"),
    ("bock", "limits", "--json"),
    ("bockd", "init", "a new pool"),
    ("bockd", "check", "missing"),
]


@pytest.mark.parametrize("line", LINES)
def test_forked_program_ends_and_prints_as_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    name, *arguments = line
    results = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        data = tmp_path / place / "data"
        environment = {**environment_without_a_cloud(), "BOCKD_DATA": str(data)}
        if place == "a":
            ended = subprocess.run(
                [program(name), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            result = (ended.returncode, ended.stdout, ended.stderr)
        else:
            result = forked.run(name, arguments, environment, PROGRAM_SECONDS)
        made = sorted(os.listdir())
        results.append(([part.replace(f"/{place}/", "/") for part in map(str, result)], made))
    assert results[0] == results[1]


def test_all_processes_are_forked_from_one_that_has_imported_both_programs() -> None:
    """multiprocessing has one for all contexts, and it imports what the first of them names."""
    chooses = "set_forkserver_preload" + "("
    tests = Path(__file__).parent
    choosing = [path.name for path in tests.rglob("*.py") if chooses in path.read_text()]
    assert choosing == [Path(forked.__file__).name]


def test_forked_program_that_hangs_is_ended(tmp_path: Path) -> None:
    """Standard output is a pipe that nobody ends before the program does."""
    environment = {**environment_without_a_cloud(), "BOCKD_DATA": str(tmp_path / "pool")}
    with pytest.raises(TimeoutError, match="it hangs"):
        forked.run("bockd", ["serve"], environment, 0.0)
