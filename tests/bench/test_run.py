"""The benchmark from end to end: real servers, real fio, short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import apicost, snapshotcost, snapshotreads
from bench.sections import all_rows

ROOT = Path(__file__).parents[2]
ELSEWHERE = (*apicost.ROWS, *snapshotcost.ROWS, snapshotreads.ROWS[100])
CHOSEN = [row for row in all_rows() if row not in ELSEWHERE]
"""Without what other tests measure, and without the hundred snapshots that the quick one leaves
out."""


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` where it was checked out."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def servers() -> set[str]:
    """Processes that serve something out of a benchmark's directory."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            if b"/bockd-bench-" in environment + command:
                found.add(entry.name)
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, str]:
    """The JSON, the page and the printed tables of the quick benchmark, shorter still."""
    place = tmp_path_factory.mktemp("bench")
    json_file, page, chart = place / "result.json", place / "page.md", place / "chart.svg"
    before = servers()
    shorter = ("--quick", "--seconds", "0.1", "--size-mib", "16")
    chosen = [argument for row in CHOSEN for argument in ("--row", row)]
    ended = bench(*shorter, *chosen, "--json", json_file, "--write", page, "--chart", chart)
    assert ended.returncode == 0, ended.stderr
    assert servers() <= before
    assert chart.read_text().startswith("<svg")
    return json.loads(json_file.read_text()), page.read_text(), ended.stdout


def test_the_json_is_whole(quick: tuple[Any, str, str]) -> None:
    """Every row of every section; what a peer lacks on this machine is left out."""
    document, _, _ = quick
    measured = [one for section in document["sections"] for one in section["comparisons"]]
    rows = {one["row"] for one in measured}

    assert rows - {f"{row}-cpu" for row in rows} == set(CHOSEN)
    for one in measured:
        assert min(one["subject"]["values"] + one["baseline"]["values"]) >= 0
        assert one["ratio"]["low"] <= one["ratio"]["median"] <= one["ratio"]["high"]
    for row, baseline in (
        ("4k-randread-qd32", "nbdkit file"),
        ("4k-randread-qd32", "nbdkit memory"),
        ("4k-randread-qd32", "qemu-nbd qcow2"),
        ("4k-randread-qd32", "nbdkit bock.py"),
        ("4k-randread-qd32", "LMDB values"),
        ("4k-randread-qd32-tcp", "nbdkit file"),
        ("4k-randwrite-qd32-flush-32", "qemu-nbd qcow2"),
    ):
        assert any(one["row"] == row and one["baseline"]["name"] == baseline for one in measured)
    assert set(document["settings"]) >= {"bockd", "qemu-nbd qcow2", "nbdkit file"}
    assert document["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_the_head_grows_by_what_was_written(quick: tuple[Any, str, str]) -> None:
    document, _, _ = quick
    (growth,) = [
        one
        for section in document["sections"]
        for one in section["comparisons"]
        if one["row"] == "after-snapshot-growth"
    ]

    assert growth["met"] is True


def test_the_page_and_the_tables_name_no_place(quick: tuple[Any, str, str]) -> None:
    document, page, tables = quick

    assert page.startswith("# Performance\n")
    for row in ("4k-randread-qd32", "after-snapshot-growth"):
        assert row in page
        assert row in tables
    assert "--json" not in document["command"]
    for private in (str(ROOT), "bockd-bench-"):
        assert private not in page


def test_an_unknown_row_is_refused() -> None:
    ended = bench("--row", "no-such-row")

    assert ended.returncode == 1
    assert "no row matches no-such-row" in ended.stderr
