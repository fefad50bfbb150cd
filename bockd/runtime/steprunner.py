"""Runs the engine's steps under trio: blocking calls in threads, all else as events.

Engine work that has begun is always finished, whatever happens to the client: driving is shielded
from cancellation.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from bockd.runtime.steps import (
    Blocking,
    CompiledCall,
    Completion,
    ResultSource,
    Signal,
    Step,
    Steps,
    Within,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

DEVICE_THREADS = 32
"""Blocking device calls at once; a disk's own queue depth."""


class Loop:
    """What the event loop that runs has to do. trio has no public names for all of it, and those it
    has cost more, the more tasks wait."""

    def __init__(self) -> None:
        """Raises AttributeError where the loop does not show it."""
        self._runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        self.descriptor: int = self._runner.io_manager._epoll.fileno()
        """Readable while something has come for it: from a socket, a thread or a signal."""
        self.rest_ns(0)

    def rest_ns(self, most: int) -> int:
        """Return for how many nanoseconds it has nothing to do unless something comes; `most` at
        most. Tasks that it has taken from its queue to run them in this turn do not show."""
        runner = self._runner
        if runner.runq:
            return 0
        rest: float = runner.clock.deadline_to_sleep_time(runner.deadlines.next_deadline())
        return int(max(0, min(rest * 1e9, most)))


def running_loop() -> Loop | None:
    """Return the loop that runs. None where it does not show what it has to do."""
    try:
        return Loop()
    except AttributeError:
        return None


class Endings:
    """Wakes those whose completions have ended: all that end while the loop is busy, a *burst*, at
    once. What ends in other threads costs one message to the loop; the results of a `ResultSource`
    the loop takes itself, in a task that lives as long as the source."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.token = token
        self._ended: deque[Callable[[], object]] = deque()
        self._posted = False
        self._at_end: list[Callable[[], object]] = []

    async def wait(self, completion: Completion[Any]) -> None:
        """Wait until a completion has ended."""
        event = trio.Event()
        self.subscribe(completion, event.set)
        await event.wait()

    def subscribe(self, completion: Completion[Any], wake: Callable[[], object]) -> None:
        """Have `wake` called by the loop once a completion has ended."""

        def ended() -> None:
            # In this order: what finds a message on its way is woken by it.
            self._ended.append(wake)
            if not self._posted:
                self._posted = True
                self.token.run_sync_soon(self._wake_all)

        completion.subscribe(ended)
        source = completion.source
        if source is not None and not source.watched:
            self._watch(source)

    def at_end_of_burst(self, call: Callable[[], object]) -> None:
        """Have `call` called when all of this burst have been woken. For those who are just
        woken."""
        self._at_end.append(call)

    def _wake_all(self) -> None:
        self._posted = False
        while self._ended:
            _call(self._ended.popleft())
        while self._at_end:
            _call(self._at_end.pop())

    def _watch(self, source: ResultSource) -> None:
        descriptor = source.watch()
        if descriptor is not None:
            trio.lowlevel.spawn_system_task(self._take_from, source, descriptor)

    async def _take_from(self, source: ResultSource, descriptor: int) -> None:
        try:
            goes_on = True
            while goes_on:
                await trio.lowlevel.wait_readable(descriptor)
                self._posted = True  # what ends now is woken here
                try:
                    goes_on = source.take()
                finally:
                    self._wake_all()
        finally:
            os.close(descriptor)
            source.unwatch()


def _call(wake: Callable[[], object]) -> None:
    try:
        wake()
    except Exception:  # one's trouble must not become another's
        log.exception("who waited for something was not woken")


class StepRunner:
    """Runs operations, with at most `threads` blocking calls of each kind at once."""

    def __init__(self, threads: int = DEVICE_THREADS) -> None:
        self._threads = threads
        self._device_threads = trio.CapacityLimiter(threads)
        self._apart: dict[str, trio.CapacityLimiter] = {}
        """Those of the kinds of `blocking_apart`."""
        self._endings: Endings | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end; raises what it raises."""
        try:
            step = steps.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        return await self.finish(steps, step)

    async def checkpoint(self) -> None:
        """Let others run between two operations. Raises trio.Cancelled if the caller is
        cancelled."""
        await trio.lowlevel.checkpoint()

    async def finish(self, steps: Steps[T], step: Step) -> T:
        """Run the rest of an operation that has yielded `step`."""
        while True:
            with trio.CancelScope(shield=True):
                result, error = await self._do(step)
            # Not in a function of its own: StopIteration cannot leave a coroutine.
            try:
                step = steps.send(result) if error is None else steps.throw(error)
            except StopIteration as done:
                value: T = done.value
                return value

    async def _do(self, step: Step) -> tuple[object, BaseException | None]:
        """Do one step; its result, or the error, which belongs to the operation."""
        try:
            if isinstance(step, Signal):
                if not step.fired:
                    await _fired(step)
                return None, None
            if isinstance(step, Within):
                await _fired_within(step)
                return None, None
            if isinstance(step, Completion):
                await self.endings().wait(step)
                return None, None
            if isinstance(step, CompiledCall) and step.begin():
                await _made(step)
                return None, None
            return await self._call(step), None
        except BaseException as error:  # noqa: BLE001 - handed to the operation, its rightful owner
            return None, error

    def endings(self) -> Endings:
        """Return those of the loop that runs: a runner may serve several, one after the other."""
        token = trio.lowlevel.current_trio_token()
        if self._endings is None or self._endings.token is not token:
            self._endings = Endings(token)
        return self._endings

    def _limiter(self, kind: str | None) -> trio.CapacityLimiter:
        if kind is None:
            return self._device_threads
        limiter = self._apart.get(kind)
        if limiter is None:
            limiter = self._apart[kind] = trio.CapacityLimiter(self._threads)
        return limiter

    async def _call(self, step: Blocking[T]) -> T:
        begun = False

        def call() -> T:
            nonlocal begun
            begun = True
            return step.call()

        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter(step.kind))
        except RuntimeError:
            if begun:
                raise
        # No thread can be started (`ulimit -u`, TasksMax=, RLIMIT_AS): everybody waits for this
        # call, but it is made. An operation must not take a sync that never ran for a failed one.
        log.warning("no thread can be started; a call to the disk holds everybody up")
        return step.call()


async def _made(step: CompiledCall) -> None:
    while not step.ended():
        await trio.lowlevel.wait_readable(step.fileno())


async def _fired(signal: Signal) -> None:
    event = trio.Event()
    signal.subscribe(event.set)
    await event.wait()


async def _fired_within(step: Within) -> None:
    event = trio.Event()
    step.signal.subscribe(event.set)
    with trio.move_on_after(step.seconds):
        await event.wait()
    step.signal.unsubscribe(event.set)
