"""The benchmark from end to end: real servers, real fio, short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bench import apicost, cachehits, clones, rbd, snapshotcost, snapshotreads
from bench.cli import DEFAULT_DIRECTORY
from bench.sections import all_rows
from bench.throughput import VERIFYING
from bockd.model import MIB
from tests.daemon.filesystems import mounted
from tests.drivers.rbd.cluster import missing

ROOT = Path(__file__).parents[2]
ELSEWHERE = (*apicost.ROWS, *snapshotcost.ROWS, snapshotreads.ROWS[100], clones.DELETE_ROW)
"""What other tests measure, and the hundred snapshots that the quick one leaves out."""
ALIKE = {
    f"4k-{mode}-qd{depth}{fill}"
    for mode in ("randread", "randwrite")
    for depth in (1, 4, 8, 128)
    for fill in ("", "-fill-1m", "-fill-4k")
} - {"4k-randread-qd1"}
ALIKE |= {
    *("64k-randread-qd16", "1m-read-qd8", "4k-mixed-70-30-qd32", "4k-randread-qd1-tcp"),
    *("4k-randwrite-qd1-flush-1", "4-connections-4k-randwrite-qd32"),
    *("fuse-4k-randread-qd32", "fuse-4k-randwrite-qd32", "fuse-1m-read-qd8"),
    *("4-volumes-4k-randwrite-qd32", "cold-64k-read-qd1", "tls-1m-write-qd8", "nbdcopy-out"),
    *("qemu-img-map", "clone-and-cold-read", "reads-through-10-snapshots"),
    *("in-order-1m-read-written-in-order", "in-order-1m-read-written-at-random"),
    *("4k-randwrite-qd32-fill-4k", "after-snapshot-4k-randwrite-qd32-fill-4k"),
    "after-snapshot-4k-randwrite-qd32-fill-1m",
    *("64k-randwrite-qd16", "1m-write-qd8", "after-snapshot-4k-randwrite-qd32-flush-32"),
    *("wide-first-reads", "fuse-4k-randread-qd1", "4k-randwrite-qd32-recorded"),
    *("nbdcopy-in-fresh", "zeroes-no-hole-neighbour-p99"),
    *("4k-randwrite-qd32-tcp", "4k-randwrite-qd32-watched", "4k-randwrite-qd32-limited"),
    "4k-randwrite-qd32-fill-1m",
}
"""Rows that differ from others in a number only, or as others of the same part do;
test_targets.py looks at how they are defined, and `make bench-quick` runs them all."""
ALIKE |= set(rbd.ROWS) | set(cachehits.ROWS)
if not missing():
    ALIKE -= {"rbd-4k-randread-qd32-simple", "cache-hits-4k-randread-qd32"}
CHOSEN = [row for row in all_rows() if row not in ELSEWHERE and row not in ALIKE]

Quick = tuple[Any, str, subprocess.CompletedProcess[str]]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` where it was checked out."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def servers(directory: str) -> list[str]:
    """Processes that serve something out of a benchmark's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            if directory.encode() in environment + command:
                found.append(entry.name)
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """The JSON, the page and what was printed by the quick benchmark, shorter still."""
    place = tmp_path_factory.mktemp("bench")
    json_file, page, chart = place / "result.json", place / "page.md", place / "chart.svg"
    shorter = ("--quick", "--seconds", "0.1", "--size-mib", "16")
    chosen = [argument for row in CHOSEN for argument in ("--row", row)]
    results = ("--json", json_file, "--write", page, "--chart", chart)
    # A directory of its own, since another benchmark may run beside this one; of a short name,
    # because of the sockets below it.
    with TemporaryDirectory(prefix="b-", dir=DEFAULT_DIRECTORY) as directory:
        ended = bench(*shorter, *chosen, *results, "--directory", directory)
        assert ended.returncode == 0, ended.stderr
        assert servers(directory) == []
        assert os.listdir(directory) == []
    assert chart.read_text().startswith("<svg")
    return json.loads(json_file.read_text()), page.read_text(), ended


def test_the_json_is_whole(quick: Quick) -> None:
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
    assert document["revision"].startswith("bockd ")
    assert document["failures"] == []


def test_what_was_written_is_verified(quick: Quick) -> None:
    """On each daemon that was measured, over both kinds of sockets, and through the file view. That
    data which is not the same fails is test_fio.py's."""
    _, _, ended = quick
    verified = [line for line in ended.stderr.splitlines() if line.startswith(VERIFYING)]

    assert len([line for line in verified if "nbd+unix://" in line]) == (2 if missing() else 4)
    assert len([line for line in verified if "nbd://127.0.0.1" in line]) == 1
    assert len([line for line in verified if "/volumes/" in line]) == 1


def test_the_head_grows_by_what_was_written(quick: Quick) -> None:
    document, _, _ = quick
    (growth,) = [
        one
        for section in document["sections"]
        for one in section["comparisons"]
        if one["row"] == "after-snapshot-growth"
    ]

    assert growth["met"] is True


def test_the_page_and_the_tables_name_no_place(quick: Quick) -> None:
    document, page, ended = quick
    tables = ended.stdout

    assert page.startswith("# Performance\n")
    assert "](chart.svg)" in page
    for row in ("4k-randread-qd32", "after-snapshot-growth"):
        assert row in page
        assert row in tables
    assert "--json" not in document["command"]
    for private in (str(ROOT), "bockd-bench-"):
        assert private not in page


def test_the_row_that_waits_for_space_is_measured(tmp_path: Path) -> None:
    """On a file system of its own: tests beside this one take space from the machine's. Its name
    is short, because of the sockets below it."""
    result = tmp_path / "result.json"
    with (
        TemporaryDirectory(prefix="b-", dir=DEFAULT_DIRECTORY) as directory,
        mounted("ext4", Path(directory), 512 * MIB) as root,
    ):
        ended = bench("--quick", "--row", clones.DELETE_ROW, "--directory", root, "--json", result)
        assert ended.returncode == 0, ended.stderr

    (section,) = json.loads(result.read_text())["sections"]
    assert [one["row"] for one in section["comparisons"]] == [clones.DELETE_ROW]


def test_an_unknown_row_is_refused() -> None:
    ended = bench("--row", "no-such-row")

    assert ended.returncode == 1
    assert "no row matches no-such-row" in ended.stderr
