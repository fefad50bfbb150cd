"""A result as a table in the terminal, as JSON, and as the page docs/performance.md."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import Machine
from bench.results import Comparison, Section, Spread, spread_of

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
    machine: Machine
    settings: dict[str, str]
    """How each server ran, by its name."""
    sections: tuple[Section, ...]

    @property
    def missed(self) -> list[str]:
        """The rows that missed their targets."""
        found = [c for section in self.sections for c in section.comparisons]
        return [comparison.row for comparison in found if comparison.met is False]


# -- numbers -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits below a hundred, whole numbers with separators above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(spread: Spread, values: int) -> str:
    if values == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}..{number(spread.high)})"


def _ratio(comparison: Comparison) -> str:
    ratio = comparison.ratio
    if len(comparison.subject_values) == 1:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"


def _disturbance(share: float) -> str:
    return f"Other processes took up to {share:.0%} of a core during a round that counts."


def _cells(comparison: Comparison) -> list[str]:
    values = len(comparison.subject_values)
    return [
        comparison.row,
        comparison.subject,
        comparison.baseline,
        comparison.unit,
        _spread(spread_of(comparison.subject_values), values),
        _spread(spread_of(comparison.baseline_values), values),
        _ratio(comparison),
        "" if comparison.target is None else str(comparison.target),
        {None: "", True: "met", False: MISSED}[comparison.met],
    ]


# -- the terminal ------------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    """Tables, one for each section. Plain text where there is no terminal."""
    for section in report.sections:
        table = Table(title=section.title, title_justify="left", box=None, pad_edge=False)
        for index, title in enumerate((*COLUMNS, *RATIO_COLUMNS)):
            table.add_column(title, justify="left" if index < 4 else "right", no_wrap=True)
        for comparison in section.comparisons:
            table.add_row(*_cells(comparison), style="red" if comparison.met is False else None)
        console.print(table)
        if section.foreign_share is not None:
            console.print(_disturbance(section.foreign_share))
        console.print()
    if report.missed:
        console.print(f"targets missed: {', '.join(report.missed)}")


# -- JSON --------------------------------------------------------------------------------------


def to_json(report: Report) -> str:
    """Everything, values of single rounds included."""
    document = {
        "benchmark": "bockd",
        "command": report.command,
        "date": report.date,
        "machine": asdict(report.machine),
        "settings": report.settings,
        "sections": [
            {
                "title": section.title,
                "method": section.method,
                "comparisons": [_comparison_json(one) for one in section.comparisons],
            }
            for section in report.sections
        ],
        "missed": report.missed,
    }
    return json.dumps(document, indent=2) + "\n"


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    target = comparison.target
    return {
        "row": comparison.row,
        "unit": comparison.unit,
        "subject": _side_json(comparison.subject, comparison.subject_values),
        "baseline": _side_json(comparison.baseline, comparison.baseline_values),
        "ratio": asdict(comparison.ratio) | {"of_medians": comparison.of_medians},
        "target": None if target is None else asdict(target),
        "met": comparison.met,
        "foreign_shares": list(comparison.foreign_shares),
    }


def _side_json(name: str, values: tuple[float, ...]) -> dict[str, Any]:
    return {"name": name, "values": list(values), **asdict(spread_of(values))}


# -- the page ----------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """The page docs/performance.md."""
    parts = [
        "# Performance",
        "Generated by the benchmark; do not edit. To measure again, on a machine with nothing else "
        f"to do:\n\n    {report.command}",
        f"Measured on {report.date[:10]}. Numbers are medians with (minimum..maximum) of the "
        "rounds; a ratio is the median of the ratios within rounds, unless said otherwise. "
        '"Wanted" is the target for the ratio.',
        _machine_markdown(report),
        *[_section_markdown(section) for section in report.sections],
    ]
    return "\n\n".join(parts) + "\n"


def _machine_markdown(report: Report) -> str:
    machine = report.machine
    lines = [
        "## The machine",
        "",
        f"- {machine.processor}, {machine.cores} cores ({machine.virtual}), "
        f"{machine.memory_gib:g} GiB of memory",
        f"- Linux {machine.kernel}, data on {machine.file_system}",
        "- " + ", ".join(f"{tool} {version}" for tool, version in machine.versions.items()),
        *[f"- {name}: `{setting}`" for name, setting in report.settings.items()],
    ]
    return "\n".join(lines)


def _section_markdown(section: Section) -> str:
    header = (*COLUMNS, *RATIO_COLUMNS)
    method = section.method
    if section.foreign_share is not None:
        method += " " + _disturbance(section.foreign_share)
    lines = [
        f"## {section.title}",
        "",
        method,
        "",
        "| " + " | ".join(header) + " |",
        "|---|---|---|---" + "|---:" * 3 + "|---|---|",
    ]
    for comparison in section.comparisons:
        cells = _cells(comparison)
        if comparison.met is False:
            cells[-1] = f"**{MISSED}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
