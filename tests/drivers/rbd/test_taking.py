"""Gateways take one volume from one another in any order, and leaving out a rule is noticed.

python -m tests.drivers.rbd.takers --seed 1000 --schedules 50000      # more of them
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bockd.drivers.rbd.taking import Taker

from .takermutations import (
    MUTATIONS,
    CatchesUpAfterBreaking,
    NeverCatchesUp,
)
from .takers import Connection, Listed, ViolationError, World, seeded, shut_out_meanwhile

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
