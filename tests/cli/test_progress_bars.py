"""Progress bars are drawn by a thread, which must not take the signals that end the program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bockd.cli import backup, convert, scrub

BARS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "import": lambda: convert.byte_bar("importing", 1 << 20),
    "backup": lambda: backup._progress(quiet=False),
    "scrub": lambda: scrub._progress(quiet=False),
}


def blocked_by_thread() -> list[set[int]]:
    """Return which signals each thread of this process blocks (`SigBlk` in proc(5))."""
    texts = [one.read_text() for one in Path("/proc/self/task").glob("*/status")]
    masks = [int(text.split("SigBlk:")[1].split()[0], 16) for text in texts]
    return [{bit + 1 for bit in range(64) if mask >> bit & 1} for mask in masks]


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
    assert len(during) == len(before) + 1
    assert sum(ending <= one for one in during) == sum(ending <= one for one in before) + 1
    assert not ending & signal.pthread_sigmask(signal.SIG_BLOCK, [])
