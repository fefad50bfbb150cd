"""A gateway whose link to the cluster comes and goes, and another one that gives up what is dirty
there: in no order of events does the former answer from its logs when that is decided.

The rules are those of bockd.drivers.rbd.inquiry. What is played is the code of both: the questions
of the bus, what the gateway takes for a sign that it hears them, and when it holds its logs. Links,
watches and the clock are the schedule's. `python -m tests.daemon.test_giving_up_in_time 1 20000`
plays more of them.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bockd.errors import UnavailableError
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.daemon import gatewaywork, rbdbackend  # noqa: E402 - where there are the modules
from bockd.daemon.gatewaywork import FOLLOW_SECONDS, GatewayWork  # noqa: E402
from bockd.daemon.rbdbackend import RELEASE_LOOKS, RbdBackend  # noqa: E402
from bockd.drivers.rbd import bus as bus_module  # noqa: E402
from bockd.drivers.rbd import inquiry as inquiry_module  # noqa: E402
from bockd.drivers.rbd.bus import WATCH_SECONDS, Bus  # noqa: E402
from bockd.drivers.rbd.inquiry import DELIVERED_SECONDS, Inquiry  # noqa: E402
from bockd.drivers.rbd.messages import ALIVE_SECONDS, Question  # noqa: E402
from bockd.drivers.rbd.records import Identity  # noqa: E402

SCHEDULES = 600
MOST = 400
"""Schedules in which a rule that is left out must have been missed."""

THERE = "there/" + "b" * 16
NEVER = float("inf")


class Watch:
    """Of the gateway, as it knows it: the cluster may have ended it."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.made_at = self.confirmed_at = schedule.now
        self.is_lost = False
        """The gateway knows that."""

    def silent_seconds(self) -> float | None:
        return None if self.is_lost else self._schedule.now - self.confirmed_at


class Schedule:
    """One order of events. `due` is when the next of each kind happens."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        patch.setattr(gatewaywork, "_now", lambda: self.now)
        patch.setattr(bus_module, "boot_seconds", lambda: self.now)
        patch.setattr(inquiry_module, "boot_seconds", lambda: self.now)
        patch.setattr(bus_module, "time", SimpleNamespace(sleep=self.advance))
        self.held = False
        self._ups = self.chance.choice(((30.0, 120.0), (0.2, 2.0, 4.0), (2.5, 13.0, 16.0, 40.0)))
        self._downs = self.chance.choice(((1.0, 4.0), (6.0, 9.0, 15.0), (25.0, 200.0)))
        self._ping_seconds = self.chance.choice((0.5, 5.0))
        self._knocks = self.chance.choice((0.0, 0.0, 0.3, 0.9, 1.0))
        """How often the watch is lost just before a question is delivered."""
        self.linked = True
        self.registered: Watch | None = Watch(self)
        """The watch that the cluster knows."""
        self.due = {
            "link": self.now + self._of(self._ups),
            "expiry": NEVER,
            "ping": self.now,
            "notice": NEVER,
            "look": self.now + FOLLOW_SECONDS,
        }
        self._make_gateway(self.registered)
        self._answered = False
        self.bus = cast(Any, Bus.__new__(Bus))
        self.bus._who, self.bus._numbers = Identity("here", "a" * 16), count(1)
        self.bus._deliver = self._deliver
        self.bus._answers_to = lambda _question: {"key": "here"} if self._answered else {}
        self.bus._remove = lambda _keys: None

    def _make_gateway(self, watch: Watch) -> None:
        self.work = cast(Any, GatewayWork.__new__(GatewayWork))
        self.work.followed_at = self.work.heard_at = self.now
        self.work._index = SimpleNamespace(refresh=self._refresh)
        self.work._bus = cast(Any, Bus.__new__(Bus))
        self.work._bus._watch = self.work._bus._first = watch
        self.work.confirm = self._confirm
        self.backend = cast(Any, RbdBackend.__new__(RbdBackend))
        self.backend._work, self.backend._held = self.work, False
        self.backend._good_looks, self.backend._confirmed = RELEASE_LOOKS, True
        self.backend._confirming, self.backend._silences = False, 0
        log = SimpleNamespace(hold=self._hold)
        volume = SimpleNamespace(front=SimpleNamespace(log=log))
        fronts = SimpleNamespace(held=False)
        nodes = SimpleNamespace(volumes={1: volume}, fronts=fronts, drop_taken=lambda: None)
        self.backend.pool = SimpleNamespace(open_nodes=nodes)

    def _of(self, seconds: tuple[float, ...]) -> float:
        return self.chance.choice(seconds) * self.chance.uniform(0.8, 1.2)

    def advance(self, seconds: float) -> None:
        """Let so much time go by, and happen what is due."""
        until = self.now + seconds
        while self.due[what := min(self.due, key=self.due.__getitem__)] <= until:
            self.now = max(self.now, self.due[what])
            getattr(self, f"_on_{what}")()
        self.now = until

    # -- the gateway where something is dirty ----------------------------------------------------

    def _on_link(self) -> None:
        self.linked = not self.linked
        self.due["link"] = self.now + self._of(self._ups if self.linked else self._downs)
        self.due["expiry"] = NEVER
        if self.linked:
            self.due["ping"] = self.now
        elif self.registered is not None:
            self.due["expiry"] = self.now + WATCH_SECONDS

    def _on_expiry(self) -> None:
        self.registered = None
        self.due["expiry"] = NEVER

    def _on_ping(self) -> None:
        self.due["ping"] = self.now + self._ping_seconds
        watch: Watch = self.work._bus._watch
        if not self.linked:
            return
        if watch is self.registered:
            watch.confirmed_at = self.now
        elif self.due["notice"] == NEVER:
            self.due["notice"] = self.now + self.chance.choice((0.0, 0.1, 1.0, 2.0))

    def _on_notice(self) -> None:
        self.work._bus._watch.is_lost = True
        if not self.linked:
            self.due["notice"] = self.now + 1.0
            return
        self.due["notice"] = NEVER
        self.registered = self.work._bus._watch = Watch(self)

    def _on_look(self) -> None:
        self.due["look"] = self.now + FOLLOW_SECONDS
        steps: list[Callable[[], object]] = [self._follow, self._look]
        self.chance.shuffle(steps)
        for step in steps:
            step()

    def _look(self) -> None:
        if self.backend._look():
            run_inline(self.backend._confirm())

    def _follow(self) -> None:
        try:
            self.work._follow()
        except UnavailableError:
            assert not self.linked

    def _refresh(self) -> None:
        if not self.linked:
            raise UnavailableError("the cluster does not answer")

    async def _confirm(self) -> bool:
        return self.linked

    def _hold(self, *, held: bool) -> None:
        self.held = held

    # -- who gives it up -------------------------------------------------------------------------

    def _deliver(self, _question: Question) -> bool:
        began = self.now
        self.advance(self.chance.choice((0.0, 0.0, 0.0, 0.1, 3.0, 7.0)))
        if self.linked and self.chance.random() < self._knocks:
            self.registered, self.due["ping"] = None, self.now
        waited = self.now
        while self.registered is not None and not self.linked and self.now - waited < ALIVE_SECONDS:
            self.advance(0.5)
        all_heard = self.registered is None or self.linked
        self._answered = self.registered is not None and self.linked
        self.advance(self.chance.choice((0.0, 0.0, 0.0, 0.1, 3.0)))
        if self.now - began > DELIVERED_SECONDS:
            raise UnavailableError("the question was not delivered in time")
        return all_heard

    def _name(self) -> list[str]:
        self.advance(self.chance.choice((0.0, 0.0, 0.0, 0.0, 0.1, 5.0)))
        return [THERE]

    def play(self) -> str:
        """Return what came of it. Raises AssertionError: data is lost."""
        self.advance(self.chance.uniform(0.0, 100.0))
        asked, lasts = Inquiry(), self.chance.choice
        try:
            if self.bus.find_alive(self._name, asked) is not None:
                return "lives"
            self.advance(lasts((0.0, 0.0, 1.0, 7.0, 11.0, 30.0, 100.0)))
            if self.bus.find_alive(lambda: [THERE], asked) is not None:
                return "lives"
            self.advance(lasts((0.0, 0.0, 1.0, 7.9, 40.0)))
            asked.refuse_late()
        except UnavailableError:
            return "not known"
        assert self.held, "it is given up, and answered there"
        return "given up"


def play(seeds: range, mutate: Callable[[pytest.MonkeyPatch], None]) -> Counter[str]:
    """Play schedules. Return what came of them. Raises AssertionError, which names the seed."""
    came: Counter[str] = Counter()
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            mutate(patch)
            try:
                came[Schedule(seed, patch).play()] += 1
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
    return came


def test_what_is_given_up_is_not_answered_any_more(caplog: pytest.LogCaptureFixture) -> None:
    came = play(range(SCHEDULES), lambda _patch: None)
    caplog.clear()
    assert set(came) == {"lives", "not known", "given up"}
    assert min(came.values()) > SCHEDULES // 60, came


def _rounds_may_be_far_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inquiry_module, "GAP_SECONDS", NEVER)


def _a_new_watch_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bus_module, "GAP_SECONDS", 0.0)


def _late_is_not_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inquiry_module, "LATE_SECONDS", NEVER)


def _holds_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rbdbackend, "UNCONFIRMED_SECONDS", 60.0)


RULES = (
    _rounds_may_be_far_apart,
    _a_new_watch_counts,
    _late_is_not_refused,
    _holds_late,
)


@pytest.mark.parametrize("left_out", RULES, ids=lambda one: one.__name__.strip("_"))
def test_a_rule_that_is_left_out_is_missed(left_out: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.raises(AssertionError, match="it is given up, and answered there"):
        play(range(MOST), left_out)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    first, number = int(sys.argv[1]), int(sys.argv[2])
    print(play(range(first, first + number), lambda _patch: None))
