"""SIGKILL where there is no pool yet; the command itself dies, and refuses what is no failpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.failpoints import VARIABLE, Failpoint

from ...daemon.process import Bockd, environment_without_a_cloud, program
from ..rest import Rest
from .run import WITHOUT_POOL, assert_clean, start
from .scenario import credentials


def assert_dies_without_pool(pool: Path, log: Path, point: Failpoint, starts: int) -> None:
    """Where there is no pool yet; what is left must do for the next start, and the one after."""
    for number in range(starts):
        daemon = start(pool, log, point)
        died = daemon.stop() if daemon.ready else daemon.died()
        assert died or number, f"nothing comes to {point}"
    daemon = start(pool, log)
    assert daemon.ready, log.read_text()
    rest = Rest(daemon.api_port)
    rest.authenticate(credentials(pool))
    assert rest.get("/volumes") == {"volumes": []}
    rest.close()
    assert not daemon.stop()
    assert_clean(pool)


@pytest.fixture
def empty(work: Path) -> Iterator[Path]:
    yield work / "new"
    shutil.rmtree(work / "new")


@pytest.mark.parametrize("starts", [1, 2])
@pytest.mark.parametrize("point", sorted(WITHOUT_POOL))
def test_killed_where_there_was_no_pool(
    empty: Path, work: Path, point: Failpoint, starts: int
) -> None:
    assert_dies_without_pool(empty, work / "new.log", point, starts)


def test_the_command_itself_dies_there(work: Path) -> None:
    """Not only a process that a test has forked."""
    environment = {
        **environment_without_a_cloud(),
        "BOCKD_CONFIG": os.devnull,
        "BOCKD_DATA": str(work / "real"),
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": "none",
        VARIABLE: Failpoint.POOL_ESTABLISHED,
    }
    ended = subprocess.run(
        [program("bockd"), "serve"], env=environment, capture_output=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (-9, b"")


@pytest.mark.parametrize("text", ["", "write", "write.data:", "write.data:0", "write.data:x", ":1"])
def test_a_failpoint_that_is_none_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    refusal = Bockd(work / "refused", work / "refused.log").refusal_to_start()
    assert f"BOCKD_FAILPOINT='{text}' is not NAME or NAME:HIT" in refusal
    assert not (work / "refused").exists()
