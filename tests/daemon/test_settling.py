"""The daemon's loop over the steps of settling: when it looks, how fast it goes, what it tells."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from bockd.daemon.settling import BUSY_SECONDS, LOOK_SECONDS, Settling
from bockd.drivers.local.maintenance.settling import SettleBatch
from bockd.errors import NoSpaceError

if TYPE_CHECKING:
    from bockd.drivers.local.maintenance.settling import Settler

RATE = 1000


class FakeSettler:
    """Notes when it was asked for what, and does as it is told."""

    def __init__(self, *batches: SettleBatch | Exception) -> None:
        self.batches = list(batches)
        self.calls: list[tuple[str, float]] = []
        self.waits = 0
        self.put_off: str | None = None

    def _note(self, what: str) -> None:
        self.calls.append((what, trio.current_time()))

    @property
    def must_wait(self) -> bool:
        self.waits -= 1
        return self.waits >= 0

    async def look(self) -> None:
        self._note("look")

    async def step(self) -> SettleBatch:
        self._note("step")
        batch = self.batches.pop(0) if self.batches else SettleBatch(more=False)
        if isinstance(batch, Exception):
            raise batch
        return batch


def run(fake: FakeSettler, seconds: float) -> Settling:
    settling = Settling(cast("Settler", fake), RATE)

    async def main() -> None:
        began = trio.current_time()
        with trio.move_on_after(seconds):
            await settling.run()
        fake.calls = [(what, round(at - began, 3)) for what, at in fake.calls]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return settling


def test_it_looks_every_ten_minutes() -> None:
    fake = FakeSettler()
    run(fake, 2 * LOOK_SECONDS + 1)
    looks = [at for what, at in fake.calls if what == "look"]
    assert looks == [0, LOOK_SECONDS, 2 * LOOK_SECONDS]


def test_steps_are_as_far_apart_as_the_rate_wants() -> None:
    busy = SettleBatch(more=True, busy=True)
    fake = FakeSettler(SettleBatch(more=True, work_bytes=5 * RATE), busy)
    run(fake, 100)
    assert fake.calls == [("look", 0), ("step", 0), ("step", 5), ("step", 5 + BUSY_SECONDS)]


def test_it_waits_while_others_are_at_work() -> None:
    fake = FakeSettler()
    fake.waits = 3
    run(fake, 100)
    assert fake.calls == [("look", 0), ("step", round(3 * BUSY_SECONDS, 3))]


def test_a_failure_is_told_once_and_tried_again_after_the_next_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    full = [NoSpaceError("the disk is full") for _ in range(2)]
    fake = FakeSettler(*full)
    with caplog.at_level(logging.WARNING):
        settling = run(fake, LOOK_SECONDS + 1)
    assert [at for what, at in fake.calls if what == "step"] == [0, LOOK_SECONDS]
    assert len(caplog.records) == 1
    assert settling.put_off == "the disk is full"
    settling = run(FakeSettler(NoSpaceError("the disk is full")), LOOK_SECONDS + 1)
    assert settling.put_off is None


def test_layers_that_are_left_for_later_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeSettler()
    fake.put_off = "layer 7 cannot be read"
    with caplog.at_level(logging.WARNING):
        settling = run(fake, LOOK_SECONDS + 1)
    assert settling.put_off == "layer 7 cannot be read"
    assert len(caplog.records) == 1
