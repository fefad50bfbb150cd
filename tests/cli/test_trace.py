"""`bock trace report` and `convert`: no daemon is asked."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bockd.trace.records import FUA, Kind
from tests.trace.samples import places, read_all, record, write_trace

from .daemon import Daemon


@pytest.fixture
def nobody(tmp_path: Path) -> Daemon:
    """A directory that no daemon serves."""
    return Daemon(tmp_path / "nobody")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_trace(
        tmp_path / "web.trace",
        [
            record(0, Kind.READ, 0, 4096, latency_ns=41_000),
            record(10**9, Kind.READ, 4096, 4096, latency_ns=1_900_000),
            record(2 * 10**9, Kind.WRITE, 1 << 20, 512, flags=FUA, latency_ns=5_000),
            record(2 * 10**9, Kind.STATUS, 0, 1 << 20, latency_ns=1_000, order=1),
        ],
    )


def test_a_report_for_people(nobody: Daemon, file: Path) -> None:
    lines = [line.split() for line in nobody.bock("trace", "report", file).splitlines() if line]
    assert ["requests", "4"] in lines
    assert ["working", "set", "12", "KiB"] in lines
    assert ["read", "2", "8", "KiB", "0", "50", "%", "41", "us", *["1.9", "ms"] * 3] in lines
    assert ["write", "1", "512", "B", "1", "0", "%", *["5", "us"] * 4] in lines
    assert ["status", "1", "1", "MiB", "0", "-", *["1", "us"] * 4] in lines
    assert ["write", "up", "to", "512", "B", "1"] in lines
    assert not any(line[0] in ("lost", "incomplete") for line in lines)


def test_a_report_for_programs(nobody: Daemon, file: Path) -> None:
    found = nobody.bock_json("trace", "report", file)
    assert found["header"]["volume"] == "web"
    assert found["trace"]["seconds"] == 2.0
    assert found["trace"]["complete"] is True
    assert [kind["requests"] for kind in found["trace"]["kinds"]] == [2, 1, 1]


def test_a_broken_off_recording_is_reported_so(nobody: Daemon, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-41])
    said = nobody.bock("trace", "report", file)
    assert "incomplete    the recording was broken off" in said
    assert "requests      3" in said


def test_the_picture_is_svg_and_is_not_replaced(nobody: Daemon, file: Path) -> None:
    svg = file.parent / "web.svg"
    nobody.bock("trace", "report", file, "--svg", svg)
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    said = nobody.refusal("trace", "report", file, "--svg", svg)
    assert said == f"bock: {svg} exists: say --force to replace it"
    nobody.bock("trace", "report", file, "--svg", svg, "--force")


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_trace_becomes_an_iolog(nobody: Daemon, file: Path, version: str) -> None:
    iolog = file.parent / "web.iolog"
    said = nobody.bock_json("trace", "convert", file, iolog, "--version", version)
    assert said == {"iolog": str(iolog), "requests": 3, "left_out": 1, "simplified": 1}
    assert places(read_all(iolog)) == places(read_all(file))[:3]
    assert nobody.bock("trace", "convert", file, "-", "--version", version) == iolog.read_text()
    assert "exists: say --force" in nobody.refusal("trace", "convert", file, iolog)


def test_a_trace_comes_through_a_pipe(nobody: Daemon, file: Path) -> None:
    shell = nobody.run("sh", "-c", f"bock trace report - --json < '{file}'")
    assert json.loads(shell.out)["trace"]["requests"] == 4
    whole = nobody.run("sh", "-c", f"bock trace convert '{file}' - | bock trace report - --json")
    assert json.loads(whole.out)["trace"]["requests"] == 3


def test_what_cannot_be_read_is_named(nobody: Daemon, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in nobody.refusal("trace", "report", missing)
    missing.write_text("fio version 3 iolog\n0 f add\n0 f read 5\n")
    said = nobody.refusal("trace", "report", missing)
    assert said.startswith(f"bock: {missing}: line 3: a file, an action, an offset")
