"""Async calls as steps: what an operation without an event loop may wait for in ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from bockd.runtime.steps import Signal

T = TypeVar("T")


@dataclass
class _Outcome(Generic[T]):
    """What came of a call."""

    done: Signal
    value: list[T]
    error: Exception | None = None


class AsyncBridge:
    """Runs async calls in a nursery that outlives the caller, so that an operation that has begun
    is finished."""

    def __init__(self, nursery: Callable[[], trio.Nursery]) -> None:
        self._nursery = nursery

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run an async call in the nursery and return its result, or raise what it raised."""
        outcome: _Outcome[T] = _Outcome(Signal(), [])

        async def run() -> None:
            try:
                outcome.value.append(await call())
            except Exception as error:  # noqa: BLE001 - handed to the operation, its rightful owner
                outcome.error = error
            finally:
                outcome.done.fire()

        self._nursery().start_soon(run)
        await outcome.done
        if outcome.error is not None:
            raise outcome.error
        if not outcome.value:
            raise RuntimeError("the daemon was torn down during the call")
        return outcome.value[0]
