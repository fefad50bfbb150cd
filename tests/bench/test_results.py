"""Ratios, targets and the choice of rows."""

from __future__ import annotations

import pytest

from bench.quiet import MAX_FOREIGN_SHARE, Watch, quiet_rounds
from bench.results import Comparison, Spread, Target, wanted


def comparison(
    ours: tuple[float, ...],
    theirs: tuple[float, ...],
    *,
    target: Target | None = None,
    of_medians: bool = False,
) -> Comparison:
    return Comparison("row", "ours", "theirs", "IOPS", ours, theirs, target, of_medians)


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    found = comparison((10.0, 30.0, 8.0), (5.0, 10.0, 8.0))

    assert found.ratio == Spread(2.0, 1.0, 3.0)


def test_the_ratio_of_medians_ignores_single_outliers() -> None:
    found = comparison((10.0, 10.0, 90.0), (10.0, 50.0, 10.0), of_medians=True)

    assert found.ratio == Spread(1.0, 0.2, 9.0)


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [
        (Target(2.0), 2.0, True),
        (Target(2.0), 1.99, False),
        (Target(1.5, at_most=True), 1.5, True),
        (Target(1.5, at_most=True), 1.51, False),
    ],
)
def test_a_target_is_met_exactly_at_its_ratio(target: Target, ratio: float, met: bool) -> None:
    assert comparison((ratio,), (1.0,), target=target).met is met


def test_without_a_target_nothing_is_met_or_missed() -> None:
    assert comparison((1.0,), (1.0,)).met is None


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [((), True), (("randread",), True), (("4k-*-qd32",), True), (("write", "qd1"), False)],
)
def test_rows_are_chosen_by_pattern(patterns: tuple[str, ...], expected: bool) -> None:
    assert wanted("4k-randread-qd32", patterns) is expected


def rounds_with(shares: list[float], count: int, repeats: int) -> list[int]:
    """Which of the rounds count when they are as disturbed as `shares` says."""

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        watch.worst_share = shares[number]
        return (float(number),)

    return [int(one.values[0]) for one in quiet_rounds(count, repeats, measure)]


BUSY = MAX_FOREIGN_SHARE * 2


@pytest.mark.parametrize(
    ("shares", "counted"),
    [
        ([0.0, 0.0], [0, 1]),
        ([0.0, BUSY, 0.0], [0, 2]),
        ([BUSY, 0.0, BUSY, 0.0], [1, 3]),
        ([BUSY * 3, BUSY * 2, BUSY, BUSY * 4], [1, 2]),
    ],
)
def test_disturbed_rounds_are_measured_again(shares: list[float], counted: list[int]) -> None:
    assert rounds_with(shares, count=2, repeats=2) == counted
