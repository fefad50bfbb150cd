"""A question that costs a walk: asked once for all who wait, and seldom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from api.dashboard.remembered import IDLE_PART, Remembered


class Walk:
    """Takes its time, and counts."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.asked


def run(walk: Walk, test: Callable[[Remembered[int]], Awaitable[None]]) -> None:
    """Run `test` with time that jumps."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(test, Remembered(walk, 15.0, trio.current_time), clock=clock)


def test_all_who_ask_at_once_share_one_walk() -> None:
    walk = Walk(3.0)

    async def ask_together(remembered: Remembered[int]) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(remembered.get)
        assert walk.asked == 1
        await trio.sleep(IDLE_PART * 3.0 - 0.1)
        assert await remembered.get() == 1
        await trio.sleep(0.1)
        assert await remembered.get() == 2

    run(walk, ask_together)


def test_a_failure_is_not_remembered() -> None:
    walk = Walk(0.0)
    walk.error = ValueError("no")

    async def ask(remembered: Remembered[int]) -> None:
        with pytest.raises(ValueError, match="no"):
            await remembered.get()
        walk.error = None
        assert await remembered.get() == 2
        await trio.sleep(14.9)
        assert await remembered.get() == 2
        await trio.sleep(0.1)
        assert await remembered.get() == 3
        remembered.forget()
        assert await remembered.get() == 4

    run(walk, ask)


def test_what_changes_while_it_is_asked_is_in_the_next_answer() -> None:
    walk = Walk(3.0)

    async def change_meanwhile(remembered: Remembered[int]) -> None:
        async def change() -> None:
            await trio.sleep(1)
            remembered.forget()
            assert await remembered.get() == 2
            assert await remembered.get() == 2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            assert await remembered.get() == 1

    run(walk, change_meanwhile)


def test_who_gives_up_leaves_the_turn_to_others() -> None:
    walk = Walk(5.0)

    async def give_up(remembered: Remembered[int]) -> None:
        with trio.move_on_after(1):
            await remembered.get()
        assert await remembered.get() == 2

    run(walk, give_up)
