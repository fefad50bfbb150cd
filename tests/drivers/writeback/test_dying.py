"""The process dies at each step of write-back that has a failpoint: what was answered is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE
from tests.crash.failpoints.run import OF_WRITE_BACK

from .dying import BLOCKS, open_again

OF_RECOVERY = frozenset({Failpoint.WRITEBACK_CLEARED, Failpoint.WRITEBACK_RECOVERED})
"""Those that only a process comes to that finds a log with something behind its end."""


def live(root: Path, point: str) -> None:
    """Have a process die at a failpoint."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.writeback.dying", root],
        env={**os.environ, VARIABLE: point},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"nothing comes to {point}"


def answered(root: Path) -> dict[int, int]:
    """Return the last value of each block that was answered."""
    lines = (root / "answered").read_text().split("\n") if (root / "answered").exists() else []
    return {int(block): int(value) for block, value in (line.split() for line in lines if line)}


def judge(root: Path) -> None:
    """All that was answered is there, and then below; one write may be there besides."""
    opened = open_again(root)
    expected = answered(root)
    found = {block: opened.read(block * BLOCK_SIZE)[0] for block in range(BLOCKS)}
    others = [block for block in range(BLOCKS) if found[block] != expected.get(block, 0)]
    assert len(others) <= 1, f"{others}: {found} instead of {expected}"
    for block in others:
        assert found[block] > expected.get(block, 0), "it is older than what was answered"
    opened.run(opened.device.drain())
    assert opened.record is None
    assert opened.directory.images() == []
    for block in range(BLOCKS):
        into = bytearray(BLOCK_SIZE)
        assert opened.below.try_read(block * BLOCK_SIZE, memoryview(into))
        assert into == bytes([found[block]]) * BLOCK_SIZE
    opened.close()
    opened.dispose()


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", sorted(OF_WRITE_BACK - OF_RECOVERY))
def test_killed_at_a_step_nothing_that_was_answered_is_lost(
    tmp_path: Path, point: Failpoint, hit: int
) -> None:
    once = point in (
        Failpoint.WRITEBACK_BINDING,
        Failpoint.WRITEBACK_BOUND,
        Failpoint.WRITEBACK_CREATED,
        Failpoint.WRITEBACK_ANNOUNCING,
        Failpoint.WRITEBACK_ANNOUNCED,
        Failpoint.WRITEBACK_CLEANING,
        Failpoint.WRITEBACK_CLEANED,
        Failpoint.WRITEBACK_REMOVED,
    )
    live(tmp_path, f"{point}:{1 if once else hit}")
    judge(tmp_path)


@pytest.mark.parametrize("point", sorted(OF_RECOVERY))
def test_killed_while_a_log_is_read_back_nothing_is_lost(tmp_path: Path, point: Failpoint) -> None:
    live(tmp_path, f"{Failpoint.WRITEBACK_APPENDED}:12")
    log = next(one for one in (tmp_path / "logs").iterdir() if one.is_dir())
    used = [one for one in log.glob("*.seg") if one.read_bytes()[4096:].strip(b"\0")]
    segment = max(used)  # any behind it is spare
    content = segment.read_bytes()
    end = len(content.rstrip(b"\0"))
    with segment.open("r+b") as file:  # the last record is cut off: nobody was told of it
        file.seek(end - 1024)
        file.write(bytes(1024))
    live(tmp_path, point)
    judge(tmp_path)
