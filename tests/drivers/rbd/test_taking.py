"""Gateways take one volume from one another in any order, and leaving out a rule is noticed.

python -m tests.drivers.rbd.takers --seed 1000 --schedules 50000      # more of them
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.taking import Taken, Taker
from bockd.runtime.steps import run_inline

from .takermutations import MUTATIONS, CatchesUpAfterBreaking, NeverCatchesUp
from .takers import VOLUME, Connection, ViolationError, World
from .turns import Listed, Thread, seeded

SCHEDULES = 2000
LISTED = 3000
MOST = 4000
"""Schedules in which a mutation must have been noticed."""


def test_the_rules_hold_in_any_order() -> None:
    for seed in range(SCHEDULES):
        World(seeded(seed)).run()


def test_the_rules_hold_in_every_order_of_two_gateways_up_to_some_depth() -> None:
    listed = Listed()
    for _ in range(LISTED):
        World(listed, gateways=2, deaths=1).run()
        if not listed.advance():
            break


def shut_out_meanwhile(taker: type[Taker[Connection]], calls: int, *, before: bool) -> bool:
    """Let a gateway take the volume, and after so many of its calls another one shut out a third,
    which has sent a write, and die. The third has the volume before, or takes it at that moment.
    Return False if that cannot be: the first one has the lock by then, or the third one lost it."""
    world = World(lambda _: 0, taker=taker)
    first, second, third = world.gateways
    for gateway in world.gateways:
        gateway.begin()
    steps = first.taker.take(VOLUME, Manner.FIRM)
    found = run_inline(third.taker.take(VOLUME, Manner.FIRM)) if before else None
    try:
        step = cast(Any, steps.send(None))
        for _ in range(calls):
            step = cast(Any, steps.send(step.call()))
        if world.owner is not None and world.owner.gateway is first:
            return False
        found = found or run_inline(third.taker.take(VOLUME, Manner.FIRM))
        if world.owner is not found.claim:
            return False
        third.taken = found
        third.write(found)
        breaking = world.connect(second)
        breaking.asked = True
        breaking.break_lock(found.claim.address)
        second.die()
        try:
            while True:
                step = cast(Any, steps.send(step.call()))
        except StopIteration as done:
            first.taken = taken = cast(Taken[Connection], done.value)
    finally:
        Thread(cast(Coroutine[Any, Any, None], steps)).end()
    first.write(taken)
    world.land(taken.claim)
    world.land(found.claim)
    return True


def shut_out_at_any_time(taker: type[Taker[Connection]]) -> None:
    for before in (True, False):
        calls = 0
        while shut_out_meanwhile(taker, calls, before=before):
            calls += 1
        assert calls > 2


def test_nothing_stale_lands_whenever_a_third_gateway_was_shut_out() -> None:
    shut_out_at_any_time(Taker)


@pytest.mark.parametrize("taker", [NeverCatchesUp, CatchesUpAfterBreaking])
def test_the_latest_map_not_asked_for_is_missed(taker: type[Taker[Connection]]) -> None:
    with pytest.raises(ViolationError, match="nothing stale lands"):
        shut_out_at_any_time(taker)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_rule_that_is_left_out_is_missed(
    mutation: Callable[[Callable[[int], int]], World],
) -> None:
    for seed in range(MOST):
        try:
            mutation(seeded(seed)).run()
        except ViolationError as error:
            print(f"after {seed + 1} schedules: {error}")
            return
    pytest.fail(f"not noticed in {MOST} schedules")
