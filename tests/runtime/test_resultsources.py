"""Results that somebody must take: the loop that runs operations, or a thread of the source's."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress

import pytest
import trio
import trio.testing

from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Completion, run_inline
from tests.nbd.server.serving import in_trio


class Source:
    """A `ResultSource` whose results are said by the test."""

    def __init__(self) -> None:
        self.watched = False
        self.attended = 0
        """How often a thread was asked for; there is none."""
        self.takers: list[threading.Thread] = []
        """Who has taken results, one after the other."""
        self.descriptors: list[int] = []
        """What was given to those who watch."""
        self._events = os.eventfd(0, os.EFD_NONBLOCK)
        self._results: deque[Completion[int]] = deque()
        self._closed = False

    def completion(self) -> Completion[int]:
        """Make one whose result will come out here."""
        completion = Completion[int]()
        completion.source = self
        return completion

    def say(self, *completions: Completion[int]) -> None:
        """Have results to take."""
        self._results.extend(completions)
        os.eventfd_write(self._events, 1)

    def close(self) -> None:
        """Say that nothing comes any more."""
        self._closed = True
        os.eventfd_write(self._events, 1)

    def watch(self) -> int | None:
        if self.watched or self._closed:
            return None
        self.watched = True
        self.descriptors.append(os.dup(self._events))
        return self.descriptors[-1]

    def unwatch(self) -> None:
        self.watched = False

    def take(self) -> bool:
        if self._closed:
            return False
        with suppress(BlockingIOError):
            os.eventfd_read(self._events)
        self.takers.append(threading.current_thread())
        while self._results:
            self._results.popleft().finish(7)
        return True

    def attend(self) -> None:
        self.attended += 1


async def wait_for(completion: Completion[int]) -> int:
    return await completion


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@in_trio
async def test_the_loop_takes_the_results_of_what_it_runs() -> None:
    source, runner, found = Source(), StepRunner(), list[int]()

    async def run(completion: Completion[int]) -> None:
        found.append(await runner.run(wait_for(completion)))

    before = tasks()
    async with trio.open_nursery() as nursery:
        completions = [source.completion() for _ in range(3)]
        for completion in completions:
            nursery.start_soon(run, completion)
        await trio.testing.wait_all_tasks_blocked()
        assert (source.watched, source.attended) == (True, 0)
        source.say(*completions[:2])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert found == [7, 7]
        await trio.to_thread.run_sync(source.say, completions[2])
    assert found == [7, 7, 7]
    assert set(source.takers) == {threading.current_thread()}
    source.close()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert tasks() == before
    assert not source.watched
    assert [is_open(one) for one in source.descriptors] == [False]


def test_one_loop_after_the_other_watches() -> None:
    source, runner = Source(), StepRunner()

    async def run() -> int:
        completion = source.completion()
        threading.Timer(0.01, source.say, (completion,)).start()
        return await runner.run(wait_for(completion))

    for _ in range(2):
        assert trio.run(run) == 7
        assert not source.watched
    assert [is_open(one) for one in source.descriptors] == [False, False]
    assert source.attended == 0


@in_trio
async def test_what_ends_elsewhere_wakes_nonetheless() -> None:
    """A result that somebody else has taken, as one who closes the source."""
    source, runner = Source(), StepRunner()
    completion = source.completion()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, wait_for(completion))
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(completion.finish, 7)


def test_without_a_loop_a_thread_is_asked_for() -> None:
    source = Source()
    completion = source.completion()
    source.say(completion)
    # The thread that should come does not: whoever waits helps itself.
    assert run_inline(wait_for(completion)) == 7
    assert source.attended == 1


@in_trio
async def test_one_who_is_woken_and_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    source, runner = Source(), StepRunner()
    completions = [source.completion() for _ in range(2)]

    def fail() -> None:
        raise AssertionError("out of order")

    woken = trio.Event()
    runner.endings().subscribe(completions[0], fail)
    runner.endings().subscribe(completions[1], woken.set)
    source.say(*completions)
    await woken.wait()
    assert "out of order" in caplog.text
