"""A result as a JSON document, values of single rounds included, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.processes import BenchError
from bench.report import Report
from bench.results import Comparison, Failure, Section, Target, spread_of

BENCHMARK = "bockd"


def to_json(report: Report) -> str:
    """Encode the whole report."""
    document = {
        "benchmark": BENCHMARK,
        "command": report.command,
        "date": report.date,
        "revision": report.revision,
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
        "failures": [asdict(one) for one in report.failures],
    }
    return json.dumps(document, indent=2) + "\n"


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    target = comparison.target
    return {
        "row": comparison.row,
        "unit": comparison.unit,
        "subject": _side_json(comparison.subject, comparison.subject_values),
        "baseline": _side_json(comparison.baseline, comparison.baseline_values),
        "best_of": list(comparison.best_of),
        "ratio": asdict(comparison.ratio) | {"of_medians": comparison.of_medians},
        "target": None if target is None else asdict(target),
        "met": comparison.met,
        "foreign_shares": list(comparison.foreign_shares),
    }


def _side_json(name: str, values: tuple[float, ...]) -> dict[str, Any]:
    return {"name": name, "values": list(values), **asdict(spread_of(values))}


def read_json(path: Path) -> Report:
    """Read the report that `to_json` wrote. Raises BenchError for any other file."""
    try:
        return _report(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BenchError(f"{path} is no result of this benchmark: {error!r}") from error


def _report(document: dict[str, Any]) -> Report:
    return Report(
        command=document["command"],
        date=document["date"],
        revision=document["revision"],
        machine=Machine(**document["machine"]),
        settings=document["settings"],
        sections=tuple(
            Section(one["title"], one["method"], tuple(_comparison(c) for c in one["comparisons"]))
            for one in document["sections"]
        ),
        failures=tuple(Failure(tuple(one["rows"]), one["reason"]) for one in document["failures"]),
    )


def _comparison(found: dict[str, Any]) -> Comparison:
    return Comparison(
        row=found["row"],
        subject=found["subject"]["name"],
        baseline=found["baseline"]["name"],
        unit=found["unit"],
        subject_values=tuple(found["subject"]["values"]),
        baseline_values=tuple(found["baseline"]["values"]),
        target=None if found["target"] is None else Target(**found["target"]),
        of_medians=found["ratio"]["of_medians"],
        foreign_shares=tuple(found["foreign_shares"]),
        best_of=tuple(found["best_of"]),
    )
