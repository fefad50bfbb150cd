"""Random lives of a volume with write-back; and that leaving out a rule is noticed.

`make soak-write-back` plays more of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.amounts import amount

from .clients import Clients
from .lives import STEPS, live, noticed
from .mutations import MUTATIONS, RARE, flush_needs_the_record, nothing
from .world import SilentIndex, World

LIVES = 30
MOST = 300
"""Lives in which a mutation must have been noticed."""


def test_nothing_that_was_promised_is_lost(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(LIVES):
        counts.update(live(seed, tmp_path / str(seed), nothing, STEPS).counts)
    assert counts["dirty"] > 20 * LIVES, "hardly anything was ever dirty"
    for what, count in counts.items():
        assert count, f"no {what} in {LIVES} lives"


def test_a_life_is_the_same_whenever_it_is_played(tmp_path: Path) -> None:
    """Else a seed that went wrong says nothing."""
    for seed in range(4):
        first, again = (live(seed, tmp_path / f"{n}", nothing, STEPS) for n in range(2))
        assert first.chance.getstate() == again.chance.getstate()


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - RARE))
def test_a_rule_that_is_left_out_is_missed(tmp_path: Path, name: str) -> None:
    nth, _ = noticed(MUTATIONS[name], range(MOST), tmp_path, STEPS)
    assert nth, f"not noticed in {MOST} lives"


def test_while_only_commits_fail_no_client_is_told_of_an_error(tmp_path: Path) -> None:
    for seed in range(LIVES // 3):
        live(seed, tmp_path / str(seed), nothing, STEPS, SilentIndex)
    nth, how = noticed(flush_needs_the_record, range(MOST), tmp_path, STEPS, SilentIndex)
    assert nth, f"not noticed in {MOST} lives"
    assert "only commits fail" in how


class WrittenBackVolume(RuleBasedStateMachine):
    """The same world, whose events Hypothesis chooses."""

    root: Path
    count = 0

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed: int) -> None:
        WrittenBackVolume.count += 1
        self.world = World(seed, self.root / str(WrittenBackVolume.count), nothing)

    @rule(kind=st.sampled_from(Clients.REQUESTS), events=st.integers(0, 8))
    def request(self, kind: str, events: int) -> None:
        self.world.clients.begin(kind)
        self.world.advance(events)

    @rule(kind=st.sampled_from(Clients.REQUESTS), events=st.integers(0, 60))
    def requests(self, kind: str, events: int) -> None:
        for _ in range(4):
            self.world.clients.begin(kind)
        self.world.advance(events)

    @rule(events=st.integers(1, 30))
    def wait(self, events: int) -> None:
        self.world.advance(events)

    @rule(events=st.integers(0, 8))
    def look(self, events: int) -> None:
        self.world.look()
        self.world.advance(events)

    @rule(events=st.integers(0, 30))
    def drain(self, events: int) -> None:
        self.world.drain()
        self.world.advance(events)

    @rule()
    def switch(self) -> None:
        self.world.switch()

    @rule(share=st.sampled_from([0.0, 0.0, 0.3]))
    def fail_below(self, share: float) -> None:
        self.world.fail_below(share)

    @rule(share=st.sampled_from([0.0, 0.0, 0.3]))
    def fail_commits(self, share: float) -> None:
        self.world.fail_commits(share)

    @rule(share=st.sampled_from([0.0, 0.0, 0.3]), full=st.booleans())
    def fail_disk(self, share: float, full: bool) -> None:
        self.world.fail_disk(share)
        self.world.fill_disk(full=full)

    @rule(end=st.sampled_from(sorted(set(World.ENDS))))
    def end(self, end: str) -> None:
        getattr(self.world, end)()

    @invariant()
    def what_is_promised_holds(self) -> None:
        if hasattr(self, "world"):
            self.world.judge()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.end()
            finally:
                self.world.dispose()


def test_nothing_is_lost_whatever_hypothesis_thinks_of(tmp_path: Path) -> None:
    WrittenBackVolume.root = tmp_path
    machine = WrittenBackVolume.TestCase
    machine.settings = settings(
        max_examples=amount(12),
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
