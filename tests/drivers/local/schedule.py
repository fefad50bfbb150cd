"""Concurrency, played on one thread: operations advanced in a random but repeatable order.

A blocking step is two events, its call and the return to the owner thread, with anything in
between, as with real threads. Every operation gets a start and an end on one clock.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bockd.runtime.steps import Blocking, Step, Steps, Within

GRAVEYARD: list[Task] = []
"""Operations that a death cut off. They are kept, for a coroutine that is collected would run its
`finally` clauses, and a process that is killed runs nothing."""


def close_buried(first: int) -> None:
    """Close what was cut off since so many were buried, whatever that raises, where a test is over.
    What other tests have left stays."""
    for task in GRAVEYARD[first:]:
        with suppress(BaseException):
            task.steps.close()
    del GRAVEYARD[first:]


@dataclass(eq=False)
class Task:
    """One operation on its way."""

    steps: Steps[Any]
    on_end: Callable[[], None]
    resume: tuple[Any, BaseException | None] | None = (None, None)
    """What to send or throw next; None while a call is to be run or a signal to be awaited."""
    call: Blocking[Any] | None = None
    error: BaseException | None = None


@dataclass
class Scheduler:
    """Advances tasks; `now` counts events."""

    random: random.Random
    now: int = 0
    tasks: list[Task] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def spawn(self, steps: Steps[None]) -> None:
        """Background work, as the engine asks for it."""
        self.start(steps, lambda: None)

    def start(self, steps: Steps[Any], on_end: Callable[[], None]) -> Task:
        task = Task(steps, on_end)
        self.tasks.append(task)
        return task

    def run(self, events: int | None = None) -> None:
        """Play events until none is left, or so many."""
        while events is None or events > 0:
            ready = [t for t in self.tasks if t.resume is not None or t.call is not None]
            if not ready:
                assert not self.tasks, "operations wait for each other"
                return
            self.advance(self.choose(ready))
            events = None if events is None else events - 1

    def choose(self, ready: list[Task]) -> Task:
        return self.random.choice(ready)

    def die(self) -> None:
        """Stop here, for ever."""
        for task in self.tasks:
            if inspect.getcoroutinestate(task.steps) == inspect.CORO_CREATED:
                task.steps.close()  # nothing of it ran
            else:
                GRAVEYARD.append(task)
        self.tasks.clear()

    def __del__(self) -> None:
        self.die()

    def advance(self, task: Task) -> None:
        self.now += 1
        if task.call is not None:
            call, task.call = task.call, None
            try:
                task.resume = (call.call(), None)
            except Exception as error:  # noqa: BLE001 - the operation's own
                task.resume = (None, error)
            return
        assert task.resume is not None
        (value, failure), task.resume = task.resume, None
        try:
            step = task.steps.send(value) if failure is None else task.steps.throw(failure)
        except StopIteration:
            self.tasks.remove(task)
            task.on_end()
        except Exception as error:  # noqa: BLE001 - the operation's own
            self.tasks.remove(task)
            self.errors.append(error)
        else:
            self.suspend(task, step)

    def suspend(self, task: Task, step: Step) -> None:
        assert not isinstance(step, Within), "nothing in a local pool waits with a limit"
        if not isinstance(step, Blocking):

            def wake() -> None:
                task.resume = (None, None)

            step.subscribe(wake)
        else:
            task.call = step


@dataclass
class UnevenScheduler(Scheduler):
    """Some operations take far longer than others."""

    SLOW: ClassVar = 0.03
    SLOWEST: ClassVar = 0.004

    paces: dict[Task, float] = field(default_factory=dict)

    def choose(self, ready: list[Task]) -> Task:
        for task in ready:
            if task not in self.paces:
                self.paces[task] = self.random.choice((self.SLOW, 0.3, 1.0))
        return self.random.choices(ready, [self.paces[task] for task in ready])[0]


@dataclass
class Span:
    """One value of a sector: written by an operation between two moments."""

    value: bytes
    start: int
    end: float


class History:
    """What each 512-byte sector was given, and when: which values may be seen."""

    SECTOR = 512

    def __init__(self, size: int) -> None:
        empty = Span(bytes(self.SECTOR), -1, -1)
        self.sectors: list[list[Span]] = [[empty] for _ in range(size // self.SECTOR)]

    def begin(self, offset: int, data: bytes, now: int) -> list[Span]:
        """An operation begins to write `data` at `offset`, both multiples of 512."""
        spans = []
        for start in range(0, len(data), self.SECTOR):
            span = Span(data[start : start + self.SECTOR], now, float("inf"))
            self.sectors[(offset + start) // self.SECTOR].append(span)
            spans.append(span)
        return spans

    def violations(self, content: bytes, start: float, end: float, offset: int = 0) -> list[int]:
        """Sectors of `content`, read between `start` and `end`, that hold what they must not: a
        value never given, not given yet, or surely overwritten before the read began."""
        wrong = []
        for at in range(0, len(content), self.SECTOR):
            found = content[at : at + self.SECTOR]
            spans = self.sectors[(offset + at) // self.SECTOR]
            if not any(
                span.value == found
                and span.start < end
                and not any(o.start > span.end and o.end < start for o in spans)
                for span in spans
            ):
                wrong.append((offset + at) // self.SECTOR)
        return wrong
