"""One run of the benchmark, how its numbers are written, and its tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.machine import Machine
from bench.results import Comparison, Failure, Section, Spread, spread_of

MISSED = "missed"
UNBOUNDED_COLUMNS = 200
"""Width without a terminal: wider than any row."""

COLUMNS = ("row", "measured", "against", "unit", "measured (min..max)", "against (min..max)")
RATIO_COLUMNS = ("ratio (min..max)", "wanted", "")


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    command: str
    date: str
    """UTC, ISO 8601."""
    revision: str
    """What was measured: version and commit."""
    machine: Machine
    settings: dict[str, str]
    """How each server ran, by its name."""
    sections: tuple[Section, ...]
    failures: tuple[Failure, ...] = ()

    def held(self) -> Iterator[Comparison]:
        """Yield the comparisons that have targets."""
        for section in self.sections:
            for one in section.comparisons:
                if one.target is not None:
                    yield one

    @property
    def missed(self) -> list[str]:
        """The rows that missed their targets."""
        return [one.row for one in self.held() if not one.met]


# -- numbers -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Format three significant digits below a hundred, whole numbers with separators above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(spread: Spread, values: int) -> str:
    if values == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}..{number(spread.high)})"


def ratio_text(comparison: Comparison) -> str:
    """Format the ratio, with its extremes if there are any."""
    ratio = comparison.ratio
    if len(comparison.subject_values) == 1:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"


def missed_by(comparison: Comparison) -> str:
    """Describe by which share of what is wanted a missed target is missed."""
    assert comparison.target is not None
    share = comparison.target.missed_by(comparison.ratio.median)
    # A miss by less than the figures show is one all the same.
    part = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    return f"{part} {'over' if comparison.target.at_most else 'short'}"


def disturbance(share: float) -> str:
    """Describe in a sentence what other processes took of the machine."""
    return f"Other processes took up to {share:.0%} of a core during a round that counts."


def cells(comparison: Comparison) -> list[str]:
    """Format the columns COLUMNS and RATIO_COLUMNS."""
    values = len(comparison.subject_values)
    return [
        comparison.row,
        comparison.subject,
        comparison.baseline,
        comparison.unit,
        _spread(spread_of(comparison.subject_values), values),
        _spread(spread_of(comparison.baseline_values), values),
        ratio_text(comparison),
        "" if comparison.target is None else str(comparison.target),
        {None: "", True: "met", False: MISSED}[comparison.met],
    ]


# -- the terminal ------------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    """Print tables, one for each section. Plain text where there is no terminal."""
    for section in report.sections:
        table = Table(title=section.title, title_justify="left", box=None, pad_edge=False)
        for index, title in enumerate((*COLUMNS, *RATIO_COLUMNS)):
            table.add_column(title, justify="left" if index < 4 else "right", no_wrap=True)
        for comparison in section.comparisons:
            table.add_row(*cells(comparison), style="red" if comparison.met is False else None)
        console.print(table)
        if section.foreign_share is not None:
            console.print(disturbance(section.foreign_share))
        console.print()
    if report.missed:
        console.print(f"targets missed: {', '.join(report.missed)}")
    for failure in report.failures:
        console.print(f"not measured: {', '.join(failure.rows)}: {failure.reason}")
