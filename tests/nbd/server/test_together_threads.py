"""The threads of a turn that several connections take together: how many there are, and when the
one that calls goes back to the loop."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from struct import Struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from bockd.model import MIB
from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments
from bockd.nbd.server.limits import MAX_LANE_THREADS, SHARE_NS
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.together import Together
from tests.nbd.server.serving import in_trio
from tests.nbd.server.sides import Line
from tests.nbd.server.turns import SECOND_NS, Lane, LaneMember, several_sides

two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="there is no helper on one core"
)


@contextmanager
def all_threads_at_work() -> Iterator[None]:
    """Keep all threads that there may be from taking anything up for a while."""
    fd, length = os.open("/dev/urandom", os.O_RDONLY), 2 * MIB
    # Slot, descriptor, offset, byte in the file, length, place, cookie: Missed, _fastlane_missed.h.
    missed = Struct("=IiQQIIQ").pack(0, fd, 0, 0, length, 16, 1)
    begin = cast(Any, fastlane.compiled).begin_missed
    running = [begin(missed, memoryview(bytearray(length + 64)), 0) for _ in range(40)]
    yield
    for one in running:
        while one.wait(-1, -1, SECOND_NS) == -1:
            pass
    os.close(fd)


@contextmanager
def idle_lanes() -> Iterator[list[Lane]]:
    """Of two volumes, so that a turn asks for a helper where there are two cores."""
    with several_sides(structured=False, extended=False) as pairs, ExitStack() as lines:
        lanes = [Lane(one, lines.enter_context(closing(Line(4 * MIB)))) for one, _ in pairs]
        for lane in lanes:
            lane.hear(b"", 0)
        yield lanes


def turn_with(
    lanes: list[Lane],
    loop: int = -1,
    poll_ns: int = 0,
    turn_ns: int = 60 * SECOND_NS,
    threads: int = MAX_LANE_THREADS,
) -> list[int]:
    """Take one turn. Return how often each lane was looked at."""
    assert fastlane.compiled is not None
    arguments = [lane.arguments() for lane in lanes]
    looks = list[int]()
    for result in fastlane.compiled.serve_together(
        arguments, loop, poll_ns, turn_ns, SHARE_NS, threads
    ):
        assert not isinstance(result, BaseException), result
        looks.append(result[2])
    return looks


def has_helpers() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


def in_a_child(check: Callable[[], bool]) -> bool:
    """What a forked child finds, which has none of its parent's threads."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os._exit(0 if check() else 3)
        os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 3)
    return code == 0


@two_cores
def test_a_forked_child_has_helpers_though_its_parent_waited_for_some() -> None:
    def check() -> bool:
        turn_with(lanes)
        return has_helpers()

    with idle_lanes() as lanes, all_threads_at_work():
        for _ in range(20):
            turn_with(lanes)
        assert in_a_child(check)


@pytest.mark.parametrize("threads", [1, 2])
@two_cores
def test_a_turn_has_no_more_threads_than_it_may(threads: int) -> None:
    def check() -> bool:
        for _ in range(20):
            turn_with(lanes, threads=threads)
        return has_helpers()

    with idle_lanes() as lanes:
        assert in_a_child(check) == (threads > 1)


@two_cores
def test_what_no_helper_can_be_asked_for_is_served_by_the_caller() -> None:
    """There is no descriptor that a helper's end could be told with."""

    def check() -> bool:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        looks = turn_with(lanes)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return all(looks) and not has_helpers()

    with idle_lanes() as lanes:
        assert in_a_child(check)


def test_a_turn_is_over_when_there_is_something_for_the_loop() -> None:
    """After one look, though there are time and patience for many."""
    with idle_lanes() as lanes:
        loop = os.eventfd(1, os.EFD_NONBLOCK)
        assert turn_with(lanes[:1], loop, SECOND_NS, SECOND_NS // 20) == [1]
        os.close(loop)


@in_trio
async def test_what_comes_for_the_loop_that_runs_ends_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the end of a thread, or a signal, does."""
    compiled = cast(Any, fastlane.compiled)
    looks = list[int]()

    def serve_together(
        lanes: list[LaneArguments], loop: int, poll_ns: int, _: int, *rest: int
    ) -> object:
        trio.lowlevel.current_trio_token().run_sync_soon(int)
        results = compiled.serve_together(lanes, loop, poll_ns, SECOND_NS // 20, *rest)
        looks.extend(one[2] for one in results)
        return results

    with idle_lanes() as lanes, monkeypatch.context() as patch:
        patch.setattr(fastlane, "compiled", SimpleNamespace(serve_together=serve_together))
        await trio.testing.wait_all_tasks_blocked()  # also the one that such calls wake
        await Together(Pace(), SECOND_NS).join(LaneMember(lanes[0], 1, lambda: 0))
    assert looks == [1]
