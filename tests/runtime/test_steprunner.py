"""Steps under trio."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from bockd.errors import NoSpaceError
from bockd.runtime import steprunner
from bockd.runtime.steprunner import Endings, StepRunner, running_loop
from bockd.runtime.steps import Completion, Signal, Within, blocking, blocking_apart, call_blocking
from tests.nbd.server.serving import in_trio


def thread_name() -> str:
    return threading.current_thread().name


def fail() -> None:
    raise NoSpaceError("full")


async def nothing() -> int:
    return 7


async def several(signal: Signal) -> list[object]:
    main = thread_name()
    elsewhere = await blocking(thread_name)
    assert thread_name() == main
    await signal
    await signal
    try:
        await blocking(fail)
    except NoSpaceError as error:
        return [elsewhere != main, str(error)]
    return []


@in_trio
async def test_an_operation_runs_to_its_end() -> None:
    runner, signal = StepRunner(), Signal()
    assert await runner.run(nothing()) == 7
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            assert await runner.run(several(signal)) == [True, "full"]

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        signal.fire()


@in_trio
async def test_what_an_operation_raises_is_raised() -> None:
    async def steps() -> None:
        await blocking(fail)

    with pytest.raises(NoSpaceError):
        await StepRunner().run(steps())


@in_trio
async def test_what_has_begun_is_finished_in_spite_of_cancellation() -> None:
    done = []
    signal = Signal()

    async def steps() -> None:
        await signal
        await blocking(lambda: None)
        done.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(StepRunner().run, steps())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        signal.fire()
    assert done


@in_trio
async def test_a_call_is_made_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not lost: who asked for a sync must not think that one was tried."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    assert await StepRunner().run(call_blocking(thread_name)) == thread_name()
    with pytest.raises(NoSpaceError):
        await StepRunner().run(call_blocking(fail))


@in_trio
async def test_a_runtime_error_of_the_call_itself_is_its_own() -> None:
    calls = []

    def broken() -> None:
        calls.append(1)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await StepRunner().run(call_blocking(broken))
    assert calls == [1]


@in_trio
@pytest.mark.parametrize("waits", [True, False], ids=["a signal", "a call"])
async def test_an_operation_hears_of_whatever_ends_its_step(
    monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """KeyboardInterrupt, for one: it may hold something that others wait for."""
    heard = list[BaseException]()

    async def end(_: object) -> None:
        raise KeyboardInterrupt

    async def operation() -> None:
        try:
            await (Signal() if waits else blocking(threading.get_ident))
        except BaseException as error:
            heard.append(error)
            raise

    runner = StepRunner()
    monkeypatch.setattr(steprunner, "_fired", end)
    monkeypatch.setattr(runner, "_call", end)
    with pytest.raises(KeyboardInterrupt) as raised:
        await runner.run(operation())
    assert heard == [raised.value]


@in_trio
async def test_the_loop_shows_that_something_has_come_for_it() -> None:
    """trio promises nothing about this: a release of it that hides its parts costs speed only."""
    loop = running_loop()
    assert loop is not None
    await trio.testing.wait_all_tasks_blocked()
    assert not select.select([loop.descriptor], [], [], 0)[0]
    done = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(done.set)
    assert select.select([loop.descriptor], [], [], 0)[0]
    await done.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert not select.select([loop.descriptor], [], [], 0)[0]


@in_trio
async def test_the_loop_shows_for_how_long_it_has_nothing_to_do() -> None:
    loop = running_loop()
    assert loop is not None
    await trio.testing.wait_all_tasks_blocked()
    assert loop.rest_ns(1_000) == 1_000
    with trio.move_on_after(5):
        assert 1_000_000_000 < loop.rest_ns(1 << 62) <= 5_000_000_000
    with trio.move_on_after(0.001):
        while loop.rest_ns(1_000):
            pass  # the deadline passes while the loop does not turn
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert loop.rest_ns(1_000) == 0


@in_trio
async def test_a_loop_that_shows_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio._core._run, "GLOBAL_RUN_CONTEXT", object())
    loop = running_loop()
    monkeypatch.undo()
    assert loop is None


@in_trio
async def test_what_ends_in_threads_together_is_one_message_to_the_loop() -> None:
    """The token is one that only notes what is posted."""
    posted: list[Callable[[], object]] = []

    class Token:
        def run_sync_soon(self, function: Callable[[], object]) -> None:
            posted.append(function)

    endings = Endings(Token())  # type: ignore[arg-type]
    woken: list[int] = []

    async def wait(number: int, completion: Completion[int]) -> None:
        await endings.wait(completion)
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for ended in (3, 2):
            completions = [Completion[int]() for _ in range(ended)]
            for number, completion in enumerate(completions):
                nursery.start_soon(wait, number, completion)
            await trio.testing.wait_all_tasks_blocked()
            for completion in completions:
                await trio.to_thread.run_sync(completion.finish, 7)
            assert len(posted) == 1
            posted.pop()()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(woken) == list(range(ended))
            woken.clear()


@in_trio
async def test_many_completions_of_many_threads_wake_everybody() -> None:
    runner = StepRunner()
    completions = [Completion[int]() for _ in range(400)]
    found: list[int] = []

    async def steps(completion: Completion[int]) -> int:
        return await completion

    async def wait(completion: Completion[int]) -> None:
        found.append(await runner.run(steps(completion)))

    def end(first: int) -> None:
        for number in range(first, len(completions), 4):
            completions[number].finish(number)

    async with trio.open_nursery() as nursery:
        for number, completion in enumerate(completions):
            nursery.start_soon(wait, completion)
            if number == len(completions) // 2:  # the others find them ended, or ending
                threads = [threading.Thread(target=end, args=(first,)) for first in range(4)]
                for thread in threads:
                    thread.start()
                await trio.lowlevel.checkpoint()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(len(completions)))


def test_a_runner_waits_in_one_loop_after_the_other() -> None:
    runner = StepRunner()

    async def steps() -> int:
        completion = Completion[int]()
        threading.Thread(target=completion.finish, args=(7,)).start()
        return await completion

    assert [trio.run(runner.run, steps()) for _ in range(2)] == [7, 7]


@in_trio
async def test_calls_of_a_kind_that_hang_leave_the_others_their_threads() -> None:
    runner, end = StepRunner(2), threading.Event()

    async def hang(kind: str) -> None:
        await blocking_apart(kind, end.wait)

    async def ask(kind: str) -> bool:
        return await blocking_apart(kind, end.is_set)

    async with trio.open_nursery() as nursery:
        for kind in ("one", "other") * 3:
            nursery.start_soon(runner.run, hang(kind))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            try:
                assert not await runner.run(call_blocking(end.is_set))
                assert not await runner.run(ask("third"))
            finally:
                end.set()


@in_trio
async def test_any_number_wait_with_a_limit_and_take_no_thread() -> None:
    runner, never, signal = StepRunner(2), Signal(), Signal()
    found: list[bool] = []

    async def wait(which: Signal, seconds: float) -> None:
        found.append(await Within(which, seconds))

    before = threading.active_count()
    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(runner.run, wait(signal, 3600))
        nursery.start_soon(runner.run, wait(never, 0.01))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert threading.active_count() == before
        assert found == [False]
        signal.fire()
    assert found == [False] + [True] * 300
    assert await runner.run(_answer(Within(signal, 0)))  # has fired already


async def _answer(step: Within) -> bool:
    return await step
