"""A long run ends with what it has: one section's failure costs that section only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import cephcluster, sections
from bench.cli import main
from bench.document import to_json
from bench.machine import Machine
from bench.processes import BenchError, place
from bench.report import Report
from bench.results import Comparison, Failure, Section
from bench.turns import BenchContext, Scale

SCALE = Scale(rounds=1, seconds=0.1, size_bytes=1 << 20, repeats=0)
GOOD, BAD = "good-row", "bad-row"


def good(_scale: Scale, _ground: BenchContext, rows: Sequence[str]) -> Section:
    found = (Comparison(row, "us", "them", "IOPS", (1.0,), (1.0,)) for row in rows)
    return Section("Good", "Somehow.", tuple(found))


def bad(_scale: Scale, _ground: BenchContext, _rows: Sequence[str]) -> Section:
    raise BenchError("fio failed")


def test_a_section_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (sections._Part((BAD,), bad), sections._Part((GOOD,), good))
    monkeypatch.setattr(sections, "_PARTS", parts)
    told: list[str] = []

    _, found, failures = sections.measure(
        (BAD, GOOD), (), SCALE, BenchContext(tmp_path, place(), told.append)
    )

    assert [one.row for section in found for one in section.comparisons] == [GOOD]
    assert failures == (Failure((BAD,), "fio failed"),)
    assert told == ["not measured: bad-row: fio failed"]


def test_sections_in_ceph_share_a_cluster_that_ends_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def running(_context: BenchContext) -> Iterator[object]:
        events.append("begun")
        yield object()
        events.append("ended")

    def in_ceph(_scale: Scale, context: BenchContext, rows: Sequence[str]) -> Section:
        with cephcluster.ceph_cluster(context):
            events.extend(rows)
        return good(_scale, context, rows)

    def elsewhere(_scale: Scale, context: BenchContext, rows: Sequence[str]) -> Section:
        events.extend(rows)
        return good(_scale, context, rows)

    parts = (
        sections._Part(("a",), elsewhere),
        sections._Part(("b",), in_ceph, in_ceph=True),
        sections._Part(("c",), in_ceph, in_ceph=True),
        sections._Part(("d",), elsewhere),
    )
    monkeypatch.setattr(sections, "_PARTS", parts)
    monkeypatch.setattr(cephcluster, "_running", running)

    sections.measure(("a", "b", "c", "d"), (), SCALE, BenchContext(tmp_path, place(), print))

    assert events == ["a", "begun", "b", "c", "ended", "d"]


@pytest.mark.parametrize(("failures", "status"), [((), 0), ((Failure((BAD,), "fio died"),), 1)])
def test_a_failure_is_on_the_page_and_in_the_status(
    tmp_path: Path, failures: tuple[Failure, ...], status: int
) -> None:
    """A result that was kept, made into a page without measuring."""
    machine = Machine("Some CPU", 2, 1.0, "virtual", "6.1", "ext4", {})
    found = good(SCALE, BenchContext(tmp_path, place(), print), (GOOD,))
    report = Report("python -m bench", "2026-01-02", "bockd 1", machine, {}, (found,), failures)
    result, page = tmp_path / "result.json", tmp_path / "page.md"
    result.write_text(to_json(report))

    ended = CliRunner().invoke(main, ["--from", str(result), "--write", str(page)])

    assert ended.exit_code == status, ended.output
    assert f"| {GOOD} |" in page.read_text()
    assert ("- `bad-row`: fio died" in page.read_text()) is bool(failures)
    assert ("not measured: bad-row: fio died" in ended.output) is bool(failures)
