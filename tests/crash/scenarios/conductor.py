"""A scheduler that a test leads: operations stop where the test says, and others go on meanwhile.

A place is where an operation's next blocking call comes from: the names of the functions that it is
in, outermost first, and what a sync is for ("flush > _sync_all > _final: syncing the head layer").
"""

from __future__ import annotations

import random
from typing import Any

from bockd.runtime.steps import Steps
from tests.drivers.local.schedule import Scheduler, Task


class Conductor(Scheduler):
    """See above. An operation that raises fails the test at once."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))

    def begin(self, steps: Steps[Any]) -> Task:
        """An operation, of which nothing is done yet."""
        self.start(steps, lambda: None)
        return self.tasks[-1]

    def advance(self, task: Task) -> None:
        super().advance(task)
        for error in self.errors:
            raise error

    def before(self, task: Task, place: str) -> None:
        """Let it alone go on until its call at `place` is about to be made."""
        while task.call is None or place not in where(task):
            assert task in self.tasks, f"it ended without coming to {place}"
            assert task.call is not None or task.resume is not None, f"it waits before {place}"
            self.advance(task)

    def after(self, task: Task, place: str) -> None:
        """Let it alone go on until its call at `place` is made; it does not know yet."""
        self.before(task, place)
        self.advance(task)

    def alone(self, task: Task) -> bool:
        """Let it alone go on as far as it can. True when it has ended, False when it waits."""
        while task in self.tasks and (task.call is not None or task.resume is not None):
            self.advance(task)
        return task not in self.tasks


def where(task: Task) -> str:
    """The place of a task's next call."""
    steps: Any = task.steps
    names = []
    doing = ""
    while steps is not None and hasattr(steps, "cr_frame"):
        names.append(steps.cr_code.co_name)
        if steps.cr_frame is not None:
            doing = steps.cr_frame.f_locals.get("doing", "")
        steps = steps.cr_await
    return " > ".join(names) + (f": {doing}" if doing else "")
