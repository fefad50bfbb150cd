"""Polling: how long, and when the loop has to turn."""

from __future__ import annotations

from bockd.nbd.server.limits import POLL_TRIES, SHARED_POLL_TRIES
from bockd.nbd.server.pace import Pace, Polling

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 10 * MS

    def __call__(self) -> int:
        return self.now


def test_alone_a_connection_polls_in_one_round() -> None:
    clock, pace = Clock(), Pace()
    polling = Polling(pace, POLL_TRIES, clock)
    polling.worked(clock.now)
    clock.now += 3 * MS
    polling.worked(clock.now)
    assert polling.plan() == (1, POLL_TRIES)
    assert polling.undisturbed() == POLL_TRIES


def test_among_others_it_lets_the_loop_turn_between_a_few_attempts() -> None:
    clock, pace = Clock(), Pace()
    one, other = Polling(pace, POLL_TRIES, clock), Polling(pace, POLL_TRIES, clock)
    one.worked(clock.now)
    other.worked(clock.now)
    rounds, tries = one.plan()
    assert tries == SHARED_POLL_TRIES
    assert rounds * tries == POLL_TRIES
    assert one.undisturbed() == 0
    clock.now += 3 * MS  # the other has fallen silent
    one.worked(clock.now)
    clock.now += 3 * MS
    one.worked(clock.now)
    assert one.plan() == (1, POLL_TRIES)


def test_a_busy_connection_lets_the_loop_turn_every_millisecond() -> None:
    clock = Clock()
    polling = Polling(Pace(), POLL_TRIES, clock)
    assert not polling.worked(clock.now)
    assert polling.left_ns() == MS
    clock.now += 2 * MS
    assert polling.left_ns() == -MS
    assert polling.worked(clock.now)
    polling.turned()
    assert polling.left_ns() == MS
    assert not polling.worked(clock.now)


def test_polls_that_fail_end_polling_until_the_client_is_prompt_again() -> None:
    clock = Clock()
    polling = Polling(Pace(), POLL_TRIES, clock)
    for _ in range(7):
        polling.parks()
        clock.now += 100 * MS
        polling.woke()
    assert polling.plan() == (0, 0)
    polling.parks()
    clock.now += MS // 10
    polling.woke()
    assert polling.plan() == (1, POLL_TRIES)


def test_only_who_has_been_alone_for_long_waits_without_the_loop() -> None:
    clock, pace = Clock(), Pace()
    clock.now = 10_000 * MS
    one, other = Polling(pace, POLL_TRIES, clock), Polling(pace, POLL_TRIES, clock)
    assert not one.may_block(busy=False)  # nobody knows yet whether others are at work
    one.worked(clock.now)
    assert one.may_block(busy=False)
    other.worked(clock.now)
    assert not other.may_block(busy=False)
    clock.now += 900 * MS
    one.worked(clock.now)
    clock.now += 900 * MS
    one.worked(clock.now)
    assert not one.may_block(busy=False)
    clock.now += 200 * MS
    assert one.may_block(busy=False)
    assert not other.may_block(busy=False)


def test_a_connection_does_not_reckon_with_those_that_have_closed() -> None:
    clock, pace = Clock(), Pace()
    clock.now = 10_000 * MS
    one, other = Polling(pace, POLL_TRIES, clock), Polling(pace, POLL_TRIES, clock)
    one.worked(clock.now)
    one.ended()
    other.worked(clock.now)
    assert other.may_block(busy=False)
    assert other.undisturbed() == POLL_TRIES
    one.ended()
    assert other.may_block(busy=False)


def test_who_closes_takes_only_its_own_work_along() -> None:
    clock, pace = Clock(), Pace()
    clock.now = 10_000 * MS
    one, other, third = (Polling(pace, POLL_TRIES, clock) for _ in range(3))
    for polling in (one, other, third):
        polling.worked(clock.now)
        clock.now += 100 * MS
    third.ended()
    one.worked(clock.now)
    assert not one.may_block(busy=False)  # the other one was there just now
    other.ended()
    assert one.may_block(busy=False)


def test_nobody_waits_without_a_loop_that_was_busy_just_now() -> None:
    clock, pace = Clock(), Pace()
    clock.now = 10_000 * MS
    one = Polling(pace, POLL_TRIES, clock)
    one.worked(clock.now)
    assert one.may_block(busy=False)
    assert not one.may_block(busy=True)
    clock.now += 9 * MS
    assert not one.may_block(busy=False)
    clock.now += 2 * MS
    assert one.may_block(busy=False)
