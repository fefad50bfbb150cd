"""An operation that nobody waits for never runs: `make check` finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WAITED_FOR = """
import os
from bockd.pool.device import BlockDevice
from bockd.runtime.waiting import Mutex
from bockd.runtime.steps import Completion, blocking

async def operation(device: BlockDevice, mutex: Mutex, end: Completion[int]) -> None:
    await mutex.acquire()
    await blocking(os.sync)
    await device.flush()
    await end
"""

FORGOTTEN = {
    "await mutex.acquire()": "unused-coroutine",
    "await device.flush()": "unused-coroutine",
    "await blocking(os.sync)": "unused-awaitable",
    "await end": "unused-awaitable",
}


def complaints(directory: Path, text: str) -> str:
    """What the type checker says, as `make check` calls it."""
    module = directory / "module.py"
    module.write_text(text)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert checked.returncode in (0, 1), checked
    return checked.stdout if checked.returncode else ""


def test_what_is_waited_for_passes(tmp_path: Path) -> None:
    assert complaints(tmp_path, WAITED_FOR) == ""


@pytest.mark.parametrize("line", FORGOTTEN)
def test_one_await_left_out_is_an_error(tmp_path: Path, line: str) -> None:
    assert line in WAITED_FOR
    said = complaints(tmp_path, WAITED_FOR.replace(line, line.removeprefix("await ")))
    assert f"[{FORGOTTEN[line]}]" in said
    assert said.count("error:") == 1
