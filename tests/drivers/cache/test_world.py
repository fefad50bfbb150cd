"""Random lives of a cached volume; and that leaving out a rule is noticed.

`python -m tests.drivers.cache.lives --seed 1000 --lives 5000` plays more of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.amounts import amount

from .lives import live
from .mutations import MUTATIONS, Mutation, nothing
from .world import ViolationError, World

LIVES = 60
STEPS = 120

MOST = 500
"""Lives in which a mutation must have been noticed."""


def test_nothing_stale_is_ever_read(tmp_path: Path) -> None:
    hits = kept = 0
    for seed in range(LIVES):
        world = live(seed, tmp_path / str(seed), nothing, STEPS)
        hits, kept = hits + world.hits, kept + world.kept
    assert hits > 50 * LIVES, "the cache was hardly ever used"
    assert kept > LIVES, "hardly anything was kept"


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_rule_that_is_left_out_is_missed(tmp_path: Path, mutation: Mutation) -> None:
    for seed in range(MOST):
        try:
            live(seed, tmp_path / str(seed), mutation, STEPS)
        except ViolationError:
            return
    pytest.fail(f"not noticed in {MOST} lives")


class CachedVolume(RuleBasedStateMachine):
    """The same world, whose events Hypothesis chooses."""

    root: Path
    count = 0

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed: int) -> None:
        CachedVolume.count += 1
        self.world = World(seed, self.root / str(CachedVolume.count), nothing)

    @rule(kind=st.sampled_from(World.REQUESTS), events=st.integers(0, 8))
    def request(self, kind: str, events: int) -> None:
        self.world.request(kind)
        self.world.advance(events)

    @rule(events=st.integers(1, 30))
    def wait(self, events: int) -> None:
        self.world.advance(events)

    @rule(events=st.integers(0, 5))
    def evict(self, events: int) -> None:
        self.world.evict()
        self.world.advance(events)

    @rule()
    def cool(self) -> None:
        self.world.cool()

    @rule(share=st.sampled_from([0.0, 0.0, 0.3]))
    def fail(self, share: float) -> None:
        self.world.below.failing = share

    @rule(others=st.booleans(), cut=st.booleans())
    def reopen(self, others: bool, cut: bool) -> None:
        self.world.reopen(others=others, cut=cut)

    @rule(others=st.booleans(), cut=st.booleans())
    def die(self, others: bool, cut: bool) -> None:
        self.world.die(others=others, cut=cut)

    @invariant()
    def hits_are_what_is_below(self) -> None:
        if hasattr(self, "world"):
            self.world.judge()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.finish()
                self.world.judge()
            finally:
                self.world.dispose()


def test_nothing_stale_is_read_whatever_hypothesis_thinks_of(tmp_path: Path) -> None:
    CachedVolume.root = tmp_path
    machine = CachedVolume.TestCase
    machine.settings = settings(
        max_examples=amount(12),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
