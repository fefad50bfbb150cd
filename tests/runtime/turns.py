"""Whether the event loop turns while something long is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from bockd.runtime import pace


class Turns:
    """How often another task has had its turn."""

    def __init__(self) -> None:
        self.count = 0


@asynccontextmanager
async def counting_turns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    """Count the turns of a task that always wants one, as if each part of long work took its whole
    time."""
    monkeypatch.setattr(pace, "PIECE_SECONDS", 0.0)
    turns = Turns()

    async def turn() -> None:
        while True:
            turns.count += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        yield turns
        nursery.cancel_scope.cancel()
