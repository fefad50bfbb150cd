"""The benchmark from end to end: real servers, real fio, short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


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
    """The JSON, the page and the printed tables of one short run."""
    place = tmp_path_factory.mktemp("bench")
    json_file, page = place / "result.json", place / "page.md"
    short = ["--quick", "--rounds", "1", "--seconds", "0.2", "--size-mib", "16", "--no-repeat"]
    rows = ["--row", "qd32", "--row", "growth"]  # with the API's, which come together
    before = servers()
    ended = bench(*short, *rows, "--json", json_file, "--write", page)
    assert ended.returncode == 0, ended.stderr
    assert servers() <= before
    return json.loads(json_file.read_text()), page.read_text(), ended.stdout


def test_the_json_is_whole(quick: tuple[Any, str, str]) -> None:
    document, _, _ = quick

    assert [section["title"] for section in document["sections"]] == [
        "Against other servers",
        "Writes just after a snapshot",
        "The block storage API",
    ]
    rows = {
        (one["row"], one["baseline"]["name"])
        for section in document["sections"]
        for one in section["comparisons"]
    }
    # The kernel need not have io_uring.
    assert {one for one in rows if "io_uring" not in one[1]} == {
        ("4k-randread-qd32", "qemu-nbd qcow2"),
        ("4k-randread-qd32", "nbdkit file"),
        ("4k-randwrite-qd32", "qemu-nbd qcow2"),
        ("4k-randwrite-qd32", "nbdkit file"),
        ("after-snapshot-4k-randwrite-qd32-fill-64k", "before"),
        ("after-snapshot-4k-randwrite-qd32-fill-4k", "before"),
        ("after-snapshot-growth", "written"),
        ("api-show", "500 a second"),
        ("api-list-1000", "shown one by one"),
        ("api-load-4k-randread-qd32", "without"),
        ("api-load-4k-randwrite-qd32", "without"),
    }
    for section in document["sections"]:
        for one in section["comparisons"]:
            assert min(one["subject"]["values"] + one["baseline"]["values"]) > 0
            assert one["ratio"]["low"] <= one["ratio"]["median"] <= one["ratio"]["high"]
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
