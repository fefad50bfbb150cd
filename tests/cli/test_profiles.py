"""`bock volume profile`, `bock profile`, `bock trace profile`: what is set, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bockd.profiles.builtin import BUILT_IN
from bockd.profiles.document import parse_profile
from bockd.trace.records import Kind
from tests.trace.samples import record, write_trace

from .daemon import Daemon


def test_profile_of_a_volume(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "profiled", "--size", "1MiB")
    assert "has no device profile" in daemon.bock("volume", "profile", "profiled")
    said = daemon.bock("volume", "profile", "profiled", "hdd-7200", "--seed", "7")
    assert "a disk of 7200 rpm that seeks in 8.5 ms" in said
    assert daemon.bock("volume", "profile", "profiled") == said
    shown = daemon.bock_json("volume", "profile", "profiled")["profile"]
    assert (shown["name"], shown["seed"], shown["disk"]["rpm"]) == ("hdd-7200", 7, 7200)
    assert daemon.bock_json("volume", "show", "profiled")["profile"] == "hdd-7200"
    assert "device profile  hdd-7200" in daemon.bock("volume", "show", "profiled")
    assert "has no device profile" in daemon.bock("volume", "profile", "profiled", "--off")
    assert "device profile" not in daemon.bock("volume", "show", "profiled")


def test_volume_is_created_with_a_profile(daemon: Daemon, tmp_path: Path) -> None:
    """With one that bockd brings, and one that was changed."""
    mine = json.loads(daemon.bock("profile", "show", "ssd-sata"))
    mine["name"], mine["read_us"] = "mine", 5000
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    for name, profile in (("made-dying", "dying"), ("made-mine", f"@{tmp_path / 'mine.json'}")):
        made = daemon.bock_json("volume", "create", name, "--size", "1MiB", "--profile", profile)
        assert made["profile"] == name.removeprefix("made-")
    assert "reads    5.0 ms" in daemon.bock("volume", "profile", "made-mine")


def test_profiles_are_listed(daemon: Daemon) -> None:
    assert [one["name"] for one in daemon.bock_json("profile", "list")] == list(BUILT_IN)
    table = daemon.bock("profile", "list")
    for name in BUILT_IN:
        assert f"\n{name} " in table
        assert parse_profile(daemon.bock("profile", "show", name)) == BUILT_IN[name]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("floppy",), "there is no device profile 'floppy'; there are hdd-7200"),
        (("@/nowhere/mine.json",), "@/nowhere/mine.json: No such file or directory"),
        (("@/dev/null",), "it is no JSON"),
        (("dying", "--off"), "say a profile, or --off, not both"),
        (("--off", "--seed", "7"), "say a profile, or --off, not both"),
        (("--seed", "7"), "--seed is of a profile"),
        (("dying", "--seed", "-1"), "--seed"),
    ],
)
def test_misuse(daemon: Daemon, options: tuple[str, ...], text: str) -> None:
    assert text in daemon.misuse("volume", "profile", "nobody", *options)


def test_who_cannot_be_profiled(daemon: Daemon) -> None:
    assert "there is no volume 'none'" in daemon.refusal("volume", "profile", "none", "dying")
    assert "there is no device profile" in daemon.refusal("profile", "show", "floppy")
    said = daemon.misuse("volume", "create", "unmade", "--size", "1MiB", "--profile", "floppy")
    assert "there is no device profile 'floppy'" in said
    assert "unmade" not in daemon.names()


def test_trace_becomes_a_profile(daemon: Daemon, tmp_path: Path) -> None:
    """Each kind has its own latencies; what is too short to be kept is 0."""
    records = [
        *(record(n, latency_ns=1_000_000 + n * 10_000) for n in range(100)),
        *(record(n, Kind.WRITE, latency_ns=20_000) for n in range(10)),
        record(200, Kind.FLUSH, latency_ns=7_000_000),
        record(201, Kind.STATUS, latency_ns=9_000_000),
    ]
    trace = write_trace(tmp_path / "web.trace", records)
    profile = parse_profile(daemon.bock("trace", "profile", str(trace), "--name", "web"))
    assert (profile.name, profile.trim_us) == ("web", 0)
    assert isinstance(profile.read_us, dict)
    assert (profile.read_us["50"], profile.read_us["100"]) == (1490, 1990)
    assert isinstance(profile.write_us, dict)
    assert set(profile.write_us.values()) == {0}
    assert isinstance(profile.flush_us, dict)
    assert set(profile.flush_us.values()) == {7000}
    silent = write_trace(tmp_path / "silent.trace", [record(0, latency_ns=0)])
    assert "has no latencies" in daemon.refusal("trace", "profile", str(silent))
