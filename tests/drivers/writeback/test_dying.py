"""The process dies at each step of write-back that has a failpoint: what was answered is there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bockd.drivers.writeback.segment import FIRST_RECORD
from bockd.errors import DamagedError
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE
from tests.crash.failpoints.run import OF_WRITE_BACK

from .dying import BLOCKS, Closed, log_only, open_again
from .opened import Opened
from .salvaging import salvage

OF_RECOVERY = frozenset({Failpoint.WRITEBACK_CLEARED, Failpoint.WRITEBACK_RECOVERED})
"""Those that only a process comes to that finds a log with something behind its end."""


OF_SALVAGE = (
    Failpoint.WRITEBACK_REQUEST,
    Failpoint.WRITEBACK_SENT,
    Failpoint.WRITEBACK_FLUSHED,
    Failpoint.WRITEBACK_NOTING,
    Failpoint.WRITEBACK_NOTED,
    Failpoint.WRITEBACK_FREED,
    Failpoint.WRITEBACK_SALVAGED,
)
"""Those that a process comes to which writes back what is whole of a damaged log."""


def live(root: Path, point: str, doing: str = "write") -> None:
    """Have a process die at a failpoint."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.writeback.dying", root, doing],
        env={**os.environ, VARIABLE: point},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"nothing comes to {point}"


def last_used(log: Path) -> Path:
    """Return the last segment that has a record: any behind it is spare."""
    return max(one for one in log.glob("*.seg") if one.read_bytes()[FIRST_RECORD:].strip(b"\0"))


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
@pytest.mark.parametrize(
    "point", sorted(OF_WRITE_BACK - OF_RECOVERY - {Failpoint.WRITEBACK_SALVAGED})
)
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
    segment = last_used(log)
    content = segment.read_bytes()
    end = len(content.rstrip(b"\0"))
    with segment.open("r+b") as file:  # the last record is cut off: nobody was told of it
        file.seek(end - 1024)
        file.write(bytes(1024))
    live(tmp_path, point)
    judge(tmp_path)


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", OF_SALVAGE)
def test_killed_while_a_damaged_log_is_written_back_in_part_it_goes_on(
    tmp_path: Path, point: Failpoint, hit: int
) -> None:
    """At each moment, what is below is a state that a power cut could have left; the damage is
    found again, and the end is that of one that was not killed."""
    root = tmp_path / "killed"
    one = log_only(root)
    epochs = [dict[int, int]()]
    for value in range(1, 10):
        for block in range(5):
            one.write((value * 3 + block) % BLOCKS * BLOCK_SIZE, bytes([value]) * BLOCK_SIZE)
        one.flush()
        epochs.append(epochs[-1] | {(value * 3 + block) % BLOCKS: value for block in range(5)})
    one.die()
    segment = last_used(one.log_path())
    content = bytearray(segment.read_bytes())
    content[FIRST_RECORD + 100] ^= 0x55  # of the data of its first record
    segment.write_bytes(content)
    shutil.copytree(root, tmp_path / "not killed")
    last = point is Failpoint.WRITEBACK_SALVAGED
    freed = point is Failpoint.WRITEBACK_FREED
    live(root, f"{point}:{1 if last or freed else hit}", "salvage")
    found = state_below(root)
    assert any(
        all(
            found[block] in (all_of.get(block, 0), some_of.get(block, 0)) for block in range(BLOCKS)
        )
        for all_of, some_of in itertools.pairwise([*epochs, epochs[-1]])
    )
    for one_root in (root, tmp_path / "not killed"):
        again = Closed(one_root)
        with pytest.raises(DamagedError):
            Opened.open(again)
        result = salvage(again)
        assert result is not None
        assert result.given_up_bytes > 0
        assert (result.written_bytes == 0) == (last and one_root is root)
        again.dispose()
        again.directory.release()
    found = state_below(root)
    assert found == state_below(tmp_path / "not killed")
    assert found in [[epoch.get(block, 0) for block in range(BLOCKS)] for epoch in epochs[2:-1]]


def state_below(root: Path) -> list[int]:
    """Return the value of each block below, each in full."""
    content = (root / "below").read_bytes()
    blocks = [content[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE] for at in range(BLOCKS)]
    assert all(one == one[:1] * BLOCK_SIZE for one in blocks)
    return [one[0] for one in blocks]
