"""The three ways to run an operation give it the same: results, errors, and its own thread."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from bockd.errors import NoSpaceError
from bockd.runtime import syncing
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import (
    Completion,
    Signal,
    Steps,
    Within,
    blocking,
    call_blocking,
    run_inline,
)
from bockd.runtime.syncing import Syncing
from nbd_plugin.owner import Owner


def under_trio(steps: Steps[Any]) -> Any:
    return trio.run(StepRunner().run, steps)


def under_nbdkit(steps: Steps[Any]) -> Any:
    return Owner().run(steps)


@pytest.fixture(params=[under_trio, under_nbdkit, run_inline])
def run(request: pytest.FixtureRequest) -> Callable[[Steps[Any]], Any]:
    runner: Callable[[Steps[Any]], Any] = request.param
    return runner


def later(call: Callable[..., None], *arguments: Any) -> threading.Thread:
    """What another library does: it calls in a thread of its own, some time from now."""

    def wait_and_call() -> None:
        time.sleep(0.05)
        call(*arguments)

    thread = threading.Thread(target=wait_and_call)
    thread.start()
    return thread


def divide(dividend: int, *, by: int) -> float:
    return dividend / by


def test_arguments_go_in_and_a_result_comes_back(run: Callable[[Steps[Any]], Any]) -> None:
    assert run(call_blocking(divide, 7, by=2)) == 3.5


def test_an_error_is_raised_where_it_is_awaited(run: Callable[[Steps[Any]], Any]) -> None:
    async def steps() -> str:
        try:
            await blocking(divide, 7, by=0)
        except ZeroDivisionError:
            return "caught"
        return "missed"

    assert run(steps()) == "caught"


@pytest.mark.parametrize("early", [True, False], ids=["before it is awaited", "after"])
def test_a_completion_gives_its_result_on_the_owner_thread(
    run: Callable[[Steps[Any]], Any], early: bool
) -> None:
    completion = Completion[str]()

    async def steps() -> str:
        owner = threading.current_thread()
        ending = later(completion.finish, "read")
        if early:
            ending.join()
        result = await completion
        assert threading.current_thread() is owner
        ending.join()
        return result

    assert run(steps()) == "read"


def test_a_completion_that_fails_raises(run: Callable[[Steps[Any]], Any]) -> None:
    completion = Completion[str]()

    async def steps() -> str:
        ending = later(completion.fail, NoSpaceError("full"))
        try:
            return await completion
        finally:
            ending.join()

    with pytest.raises(NoSpaceError, match="full"):
        run(steps())


@pytest.mark.parametrize("native", [True, False], ids=["compiled thread", "call"])
def test_a_sync_succeeds_or_raises_what_the_system_said(
    run: Callable[[Steps[Any]], Any], native: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not native:
        monkeypatch.setattr(syncing, "compiled", None)
    called: list[int] = []

    async def sync(*descriptors: int) -> None:
        def call() -> None:
            for fd in descriptors:
                called.append(fd)
                os.fdatasync(fd)

        await Syncing(call, descriptors)

    with (tmp_path / "file").open("wb") as file, pipe() as cannot_be_synced:
        good = file.fileno()
        run(sync(good))
        run(sync(good, good))
        with pytest.raises(OSError, match="Invalid argument") as raised:
            run(sync(good, cannot_be_synced, good))
        assert raised.value.errno == errno.EINVAL
    in_threads = native and run is under_trio
    assert called == ([] if in_threads else [good, good, good, good, cannot_be_synced])


@contextmanager
def pipe() -> Iterator[int]:
    """A descriptor whose fdatasync fails with EINVAL."""
    reading, writing = os.pipe()
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def test_an_operation_that_waits_for_itself_cleans_up() -> None:
    done: list[str] = []

    async def steps() -> None:
        try:
            await Signal()
        finally:
            await blocking(done.append, "cleaned up")

    with pytest.raises(RuntimeError, match="waits for itself"):
        run_inline(steps())
    assert done == ["cleaned up"]


def test_a_signal_is_waited_for_with_a_limit(run: Callable[[Steps[Any]], Any]) -> None:
    never, fired = Signal(), Signal()
    fired.fire()

    async def steps() -> tuple[bool, bool, bool]:
        found = await Within(never, 0.01), await Within(fired, 3600)
        never.fire()  # nobody waits any more
        return *found, await Within(never, 0)

    assert run(steps()) == (False, True, True)
