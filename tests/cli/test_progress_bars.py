"""Progress bars are drawn by a thread, which must not take the signals that end the program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from bockd.cli import backup, convert, scrub

BARS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "import": lambda: convert.byte_bar("importing", 1 << 20),
    "backup": lambda: backup._progress(quiet=False),
    "scrub": lambda: scrub._progress(quiet=False),
}


def blocked_by_thread() -> dict[int, set[int]]:
    """Return which signals each thread of this process blocks (`SigBlk` in proc(5))."""
    masks = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread of an earlier test ends
            text = (task / "status").read_text()
            masks[int(task.name)] = int(text.split("SigBlk:")[1].split()[0], 16)
    return {
        thread: {bit + 1 for bit in range(64) if mask >> bit & 1} for thread, mask in masks.items()
    }


@pytest.mark.parametrize("bar", BARS)
def test_the_thread_of_a_bar_takes_no_signal_that_ends_the_program(
    bar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it took one, the main thread would go on waiting for a tool, an answer or a disk."""
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    before = blocked_by_thread()
    with BARS[bar]():
        during = blocked_by_thread()
    drawing = during.keys() - before.keys()
    assert len(drawing) == 1
    assert ending <= during[drawing.pop()]
    assert not ending & signal.pthread_sigmask(signal.SIG_BLOCK, [])
