"""The end of a gateway waits for no cluster that hangs, and for all that does not."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from bockd.daemon import endwatch
from bockd.daemon.endwatch import EndWatch
from bockd.errors import InUseError
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import blocking
from tests.drivers.rbd.ceph import need_modules

WAIT_SECONDS = 60.0


class Watched:
    """An end, and whether the process was ended by its watch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endwatch, "END_SECONDS", 0.05)
        monkeypatch.setattr(endwatch, "LOOK_SECONDS", 0.001)
        monkeypatch.setattr(os, "_exit", lambda status: self.exits.append(status))
        self.exits: list[int] = []
        self.left = 1
        self.looks = 0
        self.failing = False
        """Switch: how much is left cannot be found out."""
        self.watch = EndWatch(self.look)

    def look(self) -> int:
        self.looks += 1
        if self.failing:
            raise RuntimeError("for a test")
        return self.left

    def look_on(self, looks: int = 200) -> None:
        """Wait for some looks, which last longer than the limit."""
        enough = self.looks + looks
        while self.looks < enough and not self.exits:
            threading.Event().wait(0.001)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def watcher() -> threading.Thread | None:
    return next((one for one in threading.enumerate() if one.name == "end"), None)


def wait_for_watcher() -> None:
    if (thread := watcher()) is not None:
        thread.join(WAIT_SECONDS)
    assert watcher() is None


def test_what_hangs_is_not_waited_for(watched: Watched) -> None:
    watched.watch.begin()
    watched.watch.begin()
    watched.watch.clients_left()
    wait_for_watcher()
    assert watched.exits == [1]


def test_what_gets_below_is_waited_for_though_nothing_gets_less(watched: Watched) -> None:
    """What is dirty gets less in whole epochs."""
    watched.watch._carried_out = lambda: watched.looks
    watched.watch.clients_left()
    watched.watch.begin()
    watched.look_on()
    assert watched.exits == []
    watched.watch._carried_out = lambda: 0
    wait_for_watcher()
    assert watched.exits == [1]


@pytest.mark.parametrize("from_the_start", [True, False])
def test_what_cannot_be_found_out_is_no_change(watched: Watched, from_the_start: bool) -> None:
    watched.failing = from_the_start
    watched.watch.begin()
    watched.failing = True
    watched.watch.end()
    wait_for_watcher()
    assert watched.exits == [1]


def test_closing_has_its_time_after_what_came_before(watched: Watched) -> None:
    """What is dirty may have stood still for most of the limit."""
    looks: list[bool] = []

    def look() -> int:
        looks.append(True)
        if len(looks) == 2:
            now[0] += 0.9 * endwatch.END_SECONDS
            watched.watch.clients_left()
        elif len(looks) == 4:
            now[0] += 0.9 * endwatch.END_SECONDS
        elif len(looks) == 6:
            watched.watch.end()
        return int(len(looks) < 6)

    now = [0.0]
    patched: Any = endwatch
    before, patched.time = (
        patched.time,
        SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _seconds: None),
    )
    try:
        watched.watch._left = look
        watched.watch._watch()
    finally:
        patched.time = before
    assert watched.exits == []


def test_clients_that_hang_are_not_waited_for(watched: Watched) -> None:
    watched.left = 0
    watched.watch.begin()
    wait_for_watcher()
    assert watched.exits == [1]


def test_what_is_not_the_clusters_is_waited_for(watched: Watched) -> None:
    watched.left = 0
    watched.watch.clients_left()
    watched.watch.begin()
    watched.look_on()
    assert watched.exits == []
    watched.watch.end()
    wait_for_watcher()
    assert watched.exits == []


def test_what_is_closed_in_the_background_is_watched_after_the_end(watched: Watched) -> None:
    watched.watch.clients_left()
    watched.watch.end()
    watched.watch.begin()
    wait_for_watcher()
    assert watched.exits == [1]


@pytest.mark.parametrize("hangs", [True, False])
def test_an_end_by_an_error_is_watched(
    watched: Watched, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has sent a signal then."""
    need_modules()
    from bockd.daemon.rbdbackend import RbdBackend

    released, left = threading.Event(), [1]

    async def close_all() -> None:
        if hangs:
            await blocking(released.wait, WAIT_SECONDS)
        left[0] = 0

    async def nothing() -> None:
        pass

    pool: Any = SimpleNamespace(close_all=close_all)
    backend = object.__new__(RbdBackend)
    parts: dict[str, Any] = {
        "pool": pool,
        "_runner": StepRunner(),
        "_work": SimpleNamespace(leave=nothing),
        "_writing_back": SimpleNamespace(end=nothing),
        "_watch": EndWatch(lambda: left[0]),
    }
    vars(backend).update(parts)

    async def main() -> None:
        try:
            raise InUseError("for a test")
        finally:
            await backend.close()

    def end_process(status: int) -> None:
        watched.exits.append(status)
        released.set()

    monkeypatch.setattr(os, "_exit", end_process)
    with pytest.raises(InUseError):
        trio.run(main)
    wait_for_watcher()
    assert watched.exits == ([1] if hangs else [])
