"""SIGKILL storms: ten kills here, a thousand in `make soak-kills`; and proof that they would
notice a broken engine.

A failure names its seed and keeps its pool: `python -m tests.crash.storm --seed SEED --runs 1` does
the same things again, and kills the daemon at other instants of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.amounts import amount
from tests.crash.storm.mutations import MUTATIONS, PACKED_MUTATIONS
from tests.crash.storm.storm import Storm, is_small, packed_share, play_apart

# An errand that finds the daemon dead: httpcore leaves the socket to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("forgotten_connections"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]

SEEDS = (80, 81)
"""One has the engine as it is, the other one a small engine."""

KILLS_OF_A_RUN = amount(5)

MOST_KILLS = 20
"""In which each mutation must be found out; most are at the first."""


def test_both_engines_have_a_storm() -> None:
    assert {is_small(seed) for seed in SEEDS} == {True, False}
    assert {packed_share(seed) for seed in SEEDS} == {0.5, 1.0}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_acknowledged_survives_kills(tmp_path: Path, seed: int) -> None:
    counts = play_apart(tmp_path, seed, KILLS_OF_A_RUN)
    print(f"seed {seed}: {counts}")
    assert counts.kills >= KILLS_OF_A_RUN
    assert counts.acknowledged
    assert counts.snapshots


@pytest.mark.parametrize("rule", [*MUTATIONS, *PACKED_MUTATIONS])
def test_a_storm_notices_that_a_rule_is_broken(tmp_path: Path, rule: str) -> None:
    packed = rule in PACKED_MUTATIONS
    mutation = (PACKED_MUTATIONS if packed else MUTATIONS)[rule]
    storm = Storm(tmp_path, 7, small=True, packed_share=float(packed), mutation=mutation)
    with pytest.raises(AssertionError):
        storm.run(MOST_KILLS)
