"""Operations that may have to wait, written without an event loop.

An engine operation is a generator of steps. Between two steps it runs on the *owner thread*, the
only one that changes maps and journals; a step is what the owner must not do or cannot do yet:

* `Blocking(call)`: run `call` elsewhere (it does I/O and touches no engine state) and send its
  result back into the generator, or throw its exception into it;
* a `Signal`: come back when it has fired.

A generator that finishes without yielding has completed at once, which is what the hot path
hopes for. `bockd.server.drive` runs steps under trio; `run_inline` runs them on the spot, for
tools, tests and anything else with one thread and nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blocking:
    """A call that may block on a device: to be run in a thread, its result sent back."""

    call: Callable[[], Any]


class Signal:
    """Something that happens once; those who wait are called on the owner thread when it does."""

    __slots__ = ("_waiters", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._waiters: list[Callable[[], None]] = []

    def fire(self) -> None:
        """Tell everybody who waits, once. Firing again does nothing."""
        if self.fired:
            return
        self.fired = True
        waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the signal fires, or at once if it has."""
        if self.fired:
            wake()
        else:
            self._waiters.append(wake)


Step = Blocking | Signal
Steps = Generator[Step, Any, T]


def run_inline(steps: Steps[T]) -> T:
    """Run an operation to its end on this thread and return its result.

    Raises whatever the operation raises; RuntimeError if it waits for a signal that nobody is
    left to fire.
    """
    try:
        step = next(steps)
        while True:
            if isinstance(step, Signal):
                if not step.fired:
                    steps.throw(RuntimeError("a single-threaded caller waits for itself"))
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


class Background:
    """Collects background operations for a caller without an event loop, to be run when it
    chooses: `spawn` is what the engine is given, `run` empties the list."""

    def __init__(self) -> None:
        self._waiting: list[Steps[None]] = []

    def spawn(self, steps: Steps[None]) -> None:
        self._waiting.append(steps)

    def run(self) -> None:
        """Run everything that was spawned, and what that spawns."""
        while self._waiting:
            run_inline(self._waiting.pop(0))
