"""Coroutines that go on in an order that is chosen: a step is what one of them awaits."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from bockd.errors import InUseError, UnavailableError, VolumeTakenError


class Killed(BaseException):
    """A gateway's end: nothing handles it."""


@dataclass(eq=False)
class Thread:
    """A coroutine and the call that it waits for."""

    steps: Coroutine[Any, Any, None]
    call: Callable[[], object] | None = None
    waiting_for: list[Thread] | None = None
    """Of a question: the threads in which others answer it."""

    @property
    def kind(self) -> str:
        return str(getattr(getattr(self.call, "func", self.call), "__name__", ""))

    def go_on(self, step: Callable[[], Any]) -> None:
        """Make the call, and run to the next one."""
        try:
            try:
                result = step()
            except (InUseError, UnavailableError, VolumeTakenError) as error:
                self.call = self.steps.throw(error).call
            else:
                self.call = self.steps.send(result).call
        except StopIteration:
            self.call = None

    def end(self) -> None:
        """Let it be gone, whatever it would do about that."""
        self.call = None
        try:
            while inspect.getcoroutinestate(self.steps) != inspect.CORO_CLOSED:
                self.steps.throw(Killed())
        except (Killed, StopIteration):
            pass


class Listed:
    """Choices in order: every schedule once, until there are no more, or too many."""

    def __init__(self) -> None:
        self._made: list[tuple[int, int]] = []
        self._at = 0

    def __call__(self, number: int) -> int:
        if self._at == len(self._made):
            self._made.append((0, number))
        choice, of = self._made[self._at]
        assert of == number
        self._at += 1
        return choice

    def advance(self) -> bool:
        """Go on to the next schedule. Return False when there is none."""
        self._at = 0
        while self._made:
            choice, of = self._made.pop()
            if choice + 1 < of:
                self._made.append((choice + 1, of))
                return True
        return False


def seeded(seed: int) -> Callable[[int], int]:
    """Random choices."""
    return random.Random(seed).randrange
