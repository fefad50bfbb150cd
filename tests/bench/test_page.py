"""The page and the chart that come of a result: targets, what falls short and why, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from bench.chart import chart_of
from bench.cli import main
from bench.document import read_json, to_json
from bench.machine import Machine
from bench.page import NOT_EXPLAINED, to_markdown
from bench.processes import BenchError
from bench.report import Report
from bench.results import Comparison, Section, Target
from bench.sections import all_rows
from bench.shortfalls import SHORTFALLS, Shortfall

MACHINE = Machine("Some CPU", 2, 23.5, "virtual", "6.1", "ext4", {"fio": "3.33"})
SLOW = Shortfall("Slow reads", ("read-*",), why="It is far.", tried="Running.")


def compare(row: str, ours: float, target: Target | None, baseline: str = "them") -> Comparison:
    """A row whose peer reaches 100, three times, with a spread of a tenth."""
    values = (ours, ours * 0.9, ours * 1.1)
    return Comparison(row, "us", baseline, "IOPS", values, (100.0, 100.0, 100.0), target)


def report_of(*comparisons: Comparison) -> Report:
    section = Section("Some rows", "Measured somehow.", comparisons)
    revision = "bockd 1.2.3, commit abcdef"
    settings = {"bockd": "bockd serve"}
    return Report("python -m bench", "2026-01-02", revision, MACHINE, settings, (section,))


def page_of(*comparisons: Comparison, shortfalls: tuple[Shortfall, ...] = (SLOW,)) -> str:
    return to_markdown(report_of(*comparisons), shortfalls=shortfalls)


def part(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one of the same kind."""
    _, found, rest = page.partition(f"\n## {heading}\n")
    assert found, f"no {heading!r} in:\n{page}"
    return rest.partition("\n## ")[0]


def test_the_page_says_what_was_measured_where() -> None:
    page = page_of(compare("read-1", 200, Target(1.5)))

    assert page.startswith("# Performance\n")
    assert "Measured on 2026-01-02: bockd 1.2.3, commit abcdef." in page
    assert "Some CPU, 2 cores (virtual), 23.5 GiB" in part(page, "The machine")
    assert "Measured somehow." in part(page, "All measurements")


def test_every_target_stands_in_the_table_with_what_was_reached() -> None:
    targets = part(
        page_of(
            compare("read-1", 200, Target(1.5)),
            compare("read-2", 120, Target(1.5)),
            compare("read-3", 90, Target(0.5, at_most=True)),
            compare("read-4", 130, None),
        ),
        "Targets",
    )

    assert "1 of 3 are met." in targets
    assert "| `read-1` | us | them | ≥ 1.5 | 2.00 (1.80..2.20) | met |" in targets
    assert "| `read-2` | us | them | ≥ 1.5 | 1.20 (1.08..1.32) | **missed**, 20% short |" in targets
    assert "| `read-3` | us | them | ≤ 0.5 | 0.90 (0.81..0.99) | **missed**, 80% over |" in targets
    assert "read-4" not in targets


def test_a_target_that_is_narrowly_missed_is_missed() -> None:
    page = page_of(compare("read-1", 149.9, Target(1.5)))

    assert "**missed**, less than 1% short" in part(page, "Targets")


def test_the_fastest_of_several_is_named_as_such() -> None:
    one = replace(compare("read-1", 100, Target(1.5)), best_of=("them", "others", "more"))

    assert "| them (fastest of 3) |" in part(page_of(one), "Targets")
    assert "against them (fastest of 3): 1.00" in part(page_of(one), "What falls short")


def test_missed_targets_stand_together_with_their_reason() -> None:
    short = part(
        page_of(
            compare("read-1", 120, Target(1.5)),
            compare("write-1", 100, Target(2.0)),
            compare("read-2", 300, Target(1.5)),
            compare("read-3", 75, Target(1.5)),
        ),
        "What falls short",
    )
    reads, _, unexplained = short.partition(f"### {NOT_EXPLAINED}")

    assert "### Slow reads" in reads
    assert "- `read-1` against them: 1.20 (1.08..1.32), wanted ≥ 1.5; 20% short\n" in reads
    assert "- `read-3` against them: 0.75 (0.68..0.82), wanted ≥ 1.5; 50% short\n" in reads
    assert "**Why.** It is far." in reads
    assert "**What was tried.** Running." in reads
    assert "- `write-1` against them: 1.00 (0.90..1.10), wanted ≥ 2; 50% short" in unexplained
    assert "read-2" not in short
    assert "read-" not in unexplained


def test_a_missed_target_without_a_text_is_not_yet_explained() -> None:
    page = page_of(compare("read-1", 120, Target(1.5)), shortfalls=())

    assert "### Not yet explained\n\n- `read-1`" in part(page, "What falls short")


def test_a_reason_goes_when_its_targets_are_met() -> None:
    """Whether others are missed or none."""
    met, missed = compare("read-1", 200, Target(1.5)), compare("write-1", 100, Target(1.5))

    assert "What falls short" not in page_of(met)
    for page in (page_of(met), page_of(met, missed)):
        assert "It is far." not in page
        assert "Slow reads" not in page


def test_the_first_reason_that_matches_counts_and_may_name_the_peer() -> None:
    near = Shortfall("Near", ("read-1",), why="Near.", tried="-", against="neighb*")
    short = part(
        page_of(
            compare("read-1", 120, Target(1.5), baseline="neighbour"),
            compare("read-1", 110, Target(1.5)),
            shortfalls=(near, SLOW),
        ),
        "What falls short",
    )
    first, _, second = short.partition("### Slow reads")

    assert "against neighbour: 1.20" in first
    assert "against them: 1.10" in second
    assert short.count("against") == 2


def test_every_text_is_about_a_row_that_exists() -> None:
    rows = {name for row in all_rows() for name in (row, f"{row}-cpu")}
    for shortfall in SHORTFALLS:
        assert shortfall.why
        assert shortfall.tried
        for pattern in shortfall.rows:
            assert any(fnmatchcase(row, pattern) for row in rows), pattern


def test_the_picture_is_linked_when_there_is_one() -> None:
    report = report_of(compare("read-1", 200, Target(1.5)))

    assert "](performance.svg)" in to_markdown(report, "performance.svg")
    assert "](" not in to_markdown(report)


def test_the_page_can_be_made_from_the_json(tmp_path: Path) -> None:
    report = report_of(
        replace(compare("read-1", 120, Target(1.5)), best_of=("them", "others")),
        replace(compare("read-2", 90, Target(0.5, at_most=True)), foreign_shares=(0.1, 0.0, 0.2)),
        replace(compare("read-3", 90, None), of_medians=True),
    )
    file = tmp_path / "result.json"
    file.write_text(to_json(report))

    assert read_json(file) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": "x"}'])
def test_any_other_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)

    with pytest.raises(BenchError, match="is no result of this benchmark"):
        read_json(file)


def test_bars_are_longer_for_better_and_end_at_the_edge() -> None:
    """Twice what is wanted, half of it by a ratio that should be low, and far beyond."""
    chart = chart_of(
        report_of(
            compare("twice", 300, Target(1.5)),
            compare("half", 100, Target(0.5, at_most=True)),
            compare("far", 100_000, Target(1.5)),
            compare("untold", 100, None),
        )
    )
    picture = ElementTree.fromstring(chart)
    lengths = []
    for bar in picture.iter("{http://www.w3.org/2000/svg}polygon"):
        places = [float(point.split(",")[0]) for point in bar.attrib["points"].split()]
        lengths.append(max(places) - min(places))
    twice, half, far = lengths

    assert twice == pytest.approx(half * 4, rel=0.01)
    assert twice < far < twice * 1.6
    assert "untold" not in chart


def test_an_earlier_run_of_another_vendor_stands_beside_this_one() -> None:
    held = compare("read-1", 200, Target(1.5)), compare("read-2", 120, Target(1.5))
    other = replace(
        report_of(compare("read-1", 140, Target(1.5), "somebody else")),
        machine=replace(MACHINE, processor="AMD Something"),
        date="2025-12-31T23:59:59",
    )
    page = to_markdown(report_of(*held), shortfalls=(SLOW,), other=other)

    machines, targets = part(page, "The machine"), part(page, "Targets")
    assert "Some CPU, 2 cores" in machines
    assert "AMD Something, 2 cores" in machines
    assert "2025-12-31" in machines
    assert "| on AMD Something |" in targets
    assert "| met | 1.40 (1.26..1.54) **missed** |" in targets
    assert "| not measured |" in targets


@pytest.mark.parametrize("earlier", ["AMD EPYC", "Some other CPU"])
def test_a_run_of_another_vendor_is_kept_when_a_new_one_replaces_it(
    tmp_path: Path, earlier: str
) -> None:
    result, other, page = (tmp_path / name for name in ("result.json", "other.json", "page.md"))
    saved = tmp_path / "saved.json"
    ours = replace(MACHINE, processor="Intel(R) Xeon(R)")
    theirs = report_of(compare("read-1", 140, Target(1.5)))
    result.write_text(to_json(replace(theirs, machine=replace(MACHINE, processor=earlier))))
    saved.write_text(to_json(replace(theirs, machine=ours)))
    arguments = ["--from", saved, "--json", result, "--other", other, "--write", page]

    for _ in range(2):  # the second finds its own vendor's, and keeps the other
        ended = CliRunner().invoke(main, [str(one) for one in arguments])
        assert ended.exit_code == 0, ended.output
        assert read_json(other).machine.processor == earlier
        assert read_json(result).machine == ours
        assert f"on {earlier} |" in page.read_text()


def test_a_run_of_the_same_vendor_is_replaced(tmp_path: Path) -> None:
    result, other, page = (tmp_path / name for name in ("result.json", "other.json", "page.md"))
    result.write_text(to_json(report_of(compare("read-1", 140, Target(1.5)))))
    arguments = ["--from", result, "--json", result, "--other", other, "--write", page]

    assert CliRunner().invoke(main, [str(one) for one in arguments]).exit_code == 0
    assert not other.exists()
    assert "on Some CPU" not in page.read_text()
