"""Latencies: what is drawn has the percentiles that were asked for."""

from __future__ import annotations

from random import Random

import pytest

from bockd.model import DeviceLatency
from bockd.profiles.distribution import Distribution
from bockd.profiles.recorded import latency_of

from .sampling import quantile

US = 1_000
DRAWS = 40_000

MANY: DeviceLatency = {"0": 100, "50": 200, "90": 1000, "99": 20_000, "100": 2_000_000}

CHI_SQUARE_19_AT_1E_6 = 65.4
"""Of 19 degrees of freedom: a right sampler exceeds it once in a million seeds."""


def drawn(latency: DeviceLatency, seed: int) -> list[int]:
    random, distribution = Random(seed), Distribution(latency)
    return sorted(distribution.at(random.random()) for _ in range(DRAWS))


def test_fixed_latency_is_always_the_same() -> None:
    assert set(drawn(5000, 1)) == {5000 * US}


def test_percentiles_are_met_exactly() -> None:
    found = Distribution(MANY)
    assert [found.at(at) for at in (0, 0.5, 0.9, 0.99, 1)] == [
        100 * US,
        200 * US,
        1000 * US,
        20_000 * US,
        2_000_000 * US,
    ]
    assert found.at(0.7) == round((200 * 1000) ** 0.5 * US)  # half the way, by ratio
    assert Distribution({"0": 0, "100": 1000}).at(0.3) == 300 * US


def test_beyond_the_outermost_percentiles_it_is_constant() -> None:
    found = Distribution({"50": 300, "90": 700})
    assert (found.at(0), found.at(0.25), found.at(0.95), found.at(1)) == (
        300 * US,
        300 * US,
        700 * US,
        700 * US,
    )


@pytest.mark.parametrize("seed", range(5))
def test_drawn_percentiles_are_those_asked_for(seed: int) -> None:
    """But for five standard deviations of a sample of that size."""
    ordered, distribution = drawn(MANY, seed), Distribution(MANY)
    for fraction in (0.25, 0.5, 0.75, 0.9, 0.95, 0.99):
        spread = 5 * (fraction * (1 - fraction) / DRAWS) ** 0.5
        least, most = (distribution.at(fraction + side * spread) for side in (-1, 1))
        assert least <= quantile(ordered, fraction) <= most


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_spread_evenly_over_the_distribution(seed: int) -> None:
    """Chi-square: of the 20 parts of 5 % each gets a twentieth."""
    bounds = [Distribution(MANY).at(part / 20) for part in range(1, 20)]
    counts = [0] * 20
    for value in drawn(MANY, seed):
        counts[sum(value >= bound for bound in bounds)] += 1
    expected = DRAWS / 20
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_square < CHI_SQUARE_19_AT_1E_6


def test_what_was_recorded_is_drawn_again() -> None:
    random = Random(3)
    recorded = sorted(round(random.lognormvariate(13, 0.8)) for _ in range(20_000))
    again = drawn(latency_of(recorded), 4)
    for fraction in (0.1, 0.5, 0.9, 0.99):
        assert quantile(again, fraction) == pytest.approx(quantile(recorded, fraction), rel=0.1)
