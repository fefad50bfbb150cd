"""Operations that may have to wait, written without an event loop.

An engine operation is a coroutine. Between two steps it runs on the *owner thread*, the only one
that changes maps and journals; a step is what the owner must not do or cannot do yet:

* `await blocking(function, *arguments)`: call the function elsewhere (it does I/O and touches no
  engine state); the result, or the exception, comes back;
* `await signal`: go on when it has fired;
* `await Within(signal, seconds)`: go on when it has fired or the time is over, and say which;
* `await completion`: the same for what ends in a thread of somebody else's.

A coroutine that finishes without a step has completed at once, which is what the hot path hopes
for. `bockd.runtime.steprunner` runs coroutines under trio, `nbd_plugin.owner` in nbdkit's threads;
`run_inline` runs them on the spot, for tools, tests and anything else with one thread and nothing
else to do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, runtime_checkable

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE_SECONDS = 0.1
"""How long to leave a result to whoever takes it: an event loop may be held up, even by us."""


class Blocking(Generic[T]):
    """A call that may block on a device: to be made in a thread, its result sent back."""

    __slots__ = ("call", "kind")

    def __init__(self, call: Callable[[], T], kind: str | None = None) -> None:
        self.call = call
        self.kind = kind
        """Calls of a kind have threads of their own: see `blocking_apart`."""

    def __await__(self) -> Generator[Step, Any, T]:
        result: T = yield self
        return result


def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Blocking[T]:
    """Let a runner call `function` where it may block. The arguments are evaluated now."""
    return Blocking(partial(function, *args, **kwargs) if args or kwargs else function)


def blocking_apart(
    kind: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Blocking[T]:
    """Do what `blocking` does, for a call that may hang without a limit: however many of one kind
    hang, they take no thread from calls of other kinds, or of none. The kind is any word."""
    return Blocking(partial(function, *args, **kwargs), kind)


class Running(Protocol):
    """A call that a compiled thread makes; see _threads.h."""

    def fileno(self) -> int: ...

    def result(self) -> int: ...

    def wait(self, one: int, other: int, nanoseconds: int, /) -> int: ...


class CompiledCall(Blocking[None]):
    """A call that a compiled thread can make as well: a kind of its own (a subclass) knows how to
    `_start` it. What it uses, files above all, stays until it has ended.

    A runner may treat it as any other `Blocking`. One that can wait for a descriptor saves both
    changes to a thread of Python: it begins the call, waits for its descriptor and resumes the
    operation, which then meets what came of it. `_threads.h` has the threads; where it was not
    compiled, or no thread can be started, `begin` refuses.
    """

    __slots__ = ("_error", "_running")

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(call)
        self._running: Running | None = None
        self._error = -1

    def _start(self) -> Running | None:
        """Begin in a thread what `call` does. Return None, with nothing begun, where that cannot be
        had."""
        raise NotImplementedError

    def begin(self) -> bool:
        """Begin the call in a thread that needs no interpreter, unless that was done. Return False,
        with nothing begun, where `call` is to be made instead."""
        if self._running is None:
            self._running = self._start()
        return self._running is not None

    def fileno(self) -> int:
        """Return the descriptor of a call that has begun: readable once it has ended."""
        assert self._running is not None
        return self._running.fileno()

    def ended(self) -> bool:
        """Return whether a call that has begun is over: the operation is to be resumed then. Not to
        be asked again after that."""
        assert self._running is not None
        self._error = self._running.result()
        return self._error >= 0

    def wait(self, one: int, other: int, nanoseconds: int) -> bool:
        """Block until a call that has begun is over, one of two descriptors is readable, a signal
        has come or the time is over. Return as `ended` does."""
        assert self._running is not None
        self._error = self._running.wait(one, other, nanoseconds)
        return self._error >= 0

    def __await__(self) -> Generator[Step, Any, None]:
        yield self
        if self._running is not None and self._error:
            raise OSError(self._error, os.strerror(self._error))


class Signal:
    """Something that happens once; those who wait are called on the owner thread when it does."""

    __slots__ = ("_waiters", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._waiters: list[Callable[[], None]] = []

    def fire(self) -> None:
        """Wake all who wait, once. Firing again does nothing."""
        if self.fired:
            return
        self.fired = True
        waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def __await__(self) -> Generator[Step, Any, None]:
        yield self

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the signal fires, or at once if it has."""
        if self.fired:
            wake()
        else:
            self._waiters.append(wake)

    def unsubscribe(self, wake: Callable[[], None]) -> None:
        """Do not call `wake`, which waits for it, any more. If it was called, do nothing."""
        if wake in self._waiters:
            self._waiters.remove(wake)


class Within:
    """A signal that is waited for no longer than `seconds`; awaiting it returns whether it has
    fired. It takes no thread, so any number of operations may wait like that."""

    __slots__ = ("seconds", "signal")

    def __init__(self, signal: Signal, seconds: float) -> None:
        self.signal = signal
        self.seconds = seconds

    def wait(self) -> None:
        """Wait in this thread: for who has one to himself."""
        fired = threading.Event()
        self.signal.subscribe(fired.set)
        if not fired.wait(self.seconds):
            self.signal.unsubscribe(fired.set)

    def __await__(self) -> Generator[Step, Any, bool]:
        yield self
        return self.signal.fired


@runtime_checkable
class ResultSource(Protocol):
    """Where results of completions come out, for somebody to take them: an event loop that runs
    operations, or a thread of the source's own. All of this may be called in any thread."""

    watched: bool
    """Whether an event loop takes them."""

    def watch(self) -> int | None:
        """Have an event loop take the results from now on. Return a descriptor that is readable
        when there may be some, and which the caller closes. None: another loop does, or nothing
        will come any more."""
        ...

    def unwatch(self) -> None:
        """End what `watch` has begun."""
        ...

    def take(self) -> bool:
        """End the completions whose results have come, without waiting. Return False: nothing will
        come any more."""
        ...

    def attend(self) -> None:
        """Have a thread take the results unless an event loop does."""
        ...


class Completion(Generic[T]):
    """The result of something that another library does in its own threads.

    `finish` and `fail` may be called in any thread, one of them once. All else is for the owner
    thread: whoever waits goes on there.
    """

    source: ResultSource | None = None
    """Where its result comes out if somebody must take it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._result: T
        self._error: BaseException | None = None
        self._wake: Callable[[], None] | None = None

    def finish(self, result: T) -> None:
        """End with a result. For any thread."""
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        """End with an error, which is raised where this is awaited. For any thread."""
        self._error = error
        self._end()

    def _end(self) -> None:
        with self._lock:
            assert not self._ended
            self._ended = True
            wake = self._wake
        if wake is not None:
            wake()

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call `wake` when this ends, in the thread that ends it; at once if it has ended. For the
        one runner of the one operation that waits."""
        with self._lock:
            ended = self._ended
            self._wake = wake
        if ended:
            wake()

    def __await__(self) -> Generator[Step, Any, T]:
        yield self
        if self._error is not None:
            raise self._error
        return self._result


Step: TypeAlias = "Blocking[Any] | Signal | Within | Completion[Any]"
Steps: TypeAlias = Coroutine[Step, Any, T]

Spawn: TypeAlias = Callable[[Steps[None]], None]
"""Runs steps in the background; given by the edge that drives the engine. Raises RuntimeError when
there can be no more threads."""


def try_spawn(spawn: Spawn, steps: Steps[None]) -> bool:
    """Run steps in the background. Return False, with nothing begun, when that cannot be done now:
    there can be no more threads, or all is about to end."""
    try:
        spawn(steps)
    except RuntimeError:
        steps.close()
        return False
    return True


def run_inline(steps: Steps[T]) -> T:
    """Run an operation to its end on this thread and return its result.

    Raises whatever the operation raises; RuntimeError if it waits for a signal that nobody is
    left to fire.
    """
    try:
        step = steps.send(None)
        while True:
            if isinstance(step, Signal):
                if step.fired:
                    step = steps.send(None)
                else:
                    step = steps.throw(RuntimeError("a single-threaded caller waits for itself"))
                continue
            if isinstance(step, Within):
                step.wait()
                step = steps.send(None)
                continue
            if isinstance(step, Completion):
                ended = threading.Event()
                step.subscribe(ended.set)
                if step.source is not None:
                    step.source.attend()
                    while not ended.wait(_PATIENCE_SECONDS):
                        step.source.take()
                ended.wait()
                step = steps.send(None)
                continue
            try:
                result = step.call()
            except BaseException as error:  # noqa: BLE001 - handed to its rightful owner
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        value: T = done.value
        return value


async def call_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an operation that is one blocking call."""
    return await blocking(function, *args, **kwargs)


async def call_apart(kind: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an operation that is one call of a kind (`blocking_apart`)."""
    return await blocking_apart(kind, function, *args, **kwargs)


class Background:
    """Collects background operations for a caller without an event loop, to be run when it
    chooses: `spawn` is what the engine is given, `run` empties the list."""

    def __init__(self) -> None:
        self._waiting: list[Steps[None]] = []

    def spawn(self, steps: Steps[None]) -> None:
        self._waiting.append(steps)

    def __del__(self) -> None:
        """Give up what was never run; Python would take it for a forgotten `await`."""
        for steps in self._waiting:
            steps.close()

    def run(self) -> None:
        """Run everything that was spawned, and what that spawns."""
        while self._waiting:
            run_inline(self._waiting.pop(0))
