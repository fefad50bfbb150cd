"""What a benchmark found: pairs of measurements, their ratios, and the targets they are held to.

Every finding is a *comparison*: something measured in pairs with what it is compared to, round by
round, so that whatever disturbs a round disturbs both. The ratio of a pair is subject / baseline.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the extremes."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of `values`, which are not empty."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """What a ratio should be: at least the bound, or at most."""

    bound: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def missed_by(self, ratio: float) -> float:
        """Return the part of the bound that is lacking, or, where the bound is an upper one, that
        is too much. Below zero when the target is met with room to spare."""
        return (ratio - self.bound if self.at_most else self.bound - ratio) / self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Comparison:
    """One row of a result: `subject_values[i]` and `baseline_values[i]` are a pair."""

    row: str
    subject: str
    baseline: str
    unit: str
    subject_values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    target: Target | None = None
    of_medians: bool = False
    """Judge the ratio of the medians, not the median of the ratios: for short times with outliers
    on either side."""
    foreign_shares: tuple[float, ...] = ()
    """For each pair, the part of a core that other processes took while it was measured; empty
    where that was not watched."""
    best_of: tuple[str, ...] = ()
    """Those that the baseline was the fastest of, where that is what the target is for."""

    def __post_init__(self) -> None:
        assert len(self.subject_values) == len(self.baseline_values) > 0

    @property
    def ratio(self) -> Spread:
        """Of the pairs; with `of_medians` the median is that of the medians' ratio."""
        pairs = zip(self.subject_values, self.baseline_values, strict=True)
        ratios = spread_of([ours / theirs for ours, theirs in pairs])
        if not self.of_medians:
            return ratios
        medians = spread_of(self.subject_values).median / spread_of(self.baseline_values).median
        return Spread(medians, ratios.low, ratios.high)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.met(self.ratio.median)

    @property
    def held_to(self) -> str:
        """The baseline, and what it is the fastest of."""
        if len(self.best_of) < 2:
            return self.baseline
        return f"{self.baseline} (fastest of {len(self.best_of)})"


@dataclass(frozen=True)
class Section:
    """Comparisons that were measured in the same way."""

    title: str
    method: str
    """How it was measured, in sentences."""
    comparisons: tuple[Comparison, ...]

    @property
    def foreign_share(self) -> float | None:
        """The most that other processes took of a core during a pair; None if not watched."""
        shares = [share for one in self.comparisons for share in one.foreign_shares]
        return max(shares, default=None)


@dataclass(frozen=True)
class Failure:
    """Rows that could not be measured."""

    rows: tuple[str, ...]
    reason: str


def wanted(row: str, patterns: Sequence[str]) -> bool:
    """Return whether a row is asked for. Without patterns all are. "*" matches anything in a
    pattern, and a plain word matches any row that contains it."""
    return not patterns or any(fnmatch.fnmatchcase(row, f"*{pattern}*") for pattern in patterns)
