"""`bock stat`: rates from two samples, and what is shown."""

from __future__ import annotations

import json
import signal

import pytest

from bockd.cli.stat import Activity, format_latency, per_second, with_rates
from bockd.control import VolumeStatistics
from bockd.model import NodeKind

from .daemon import Daemon, Terminal

IDLE = Activity(NodeKind.VOLUME, 1, "web", 1 << 20, "in-use", 1, None)


def counters(reads: int, written_bytes: int) -> VolumeStatistics:
    """Counters of volume 1 at some moment."""
    return VolumeStatistics(
        id=1,
        name="web",
        kind=NodeKind.VOLUME,
        connections=2,
        reads=reads,
        read_bytes=0,
        writes=0,
        written_bytes=written_bytes,
        flushes=0,
        trims=0,
        errors=4,
        latency_p50_us=41.5,
        latency_p99_us=250.0,
        latency_p999_us=1900.0,
    )


def test_rates_are_differences() -> None:
    row = with_rates(IDLE, counters(100, 4096), counters(300, 12288), 2.0)
    assert (row.reads_per_second, row.written_bytes_per_second) == (100.0, 4096.0)
    assert (row.connections, row.errors, row.latency_p99_us) == (2, 4, 250.0)


def test_a_volume_opened_meanwhile_counts_from_zero() -> None:
    assert with_rates(IDLE, None, counters(300, 0), 2.0).reads_per_second == 150.0


def test_counters_that_went_back_began_again() -> None:
    assert per_second(1000, 10, 2.0) == 5.0


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "-"), (41.5, "42 us"), (999, "999 us"), (1900, "1.9 ms"), (2_100_000, "2.1 s")],
)
def test_latency(microseconds: float, text: str) -> None:
    assert format_latency(microseconds) == text


def test_once(daemon: Daemon) -> None:
    volume = daemon.bock_json("volume", "create", "watched", "--size", "1M")
    with daemon.connected(volume["uri"], "watched"):
        out = daemon.bock("stat", "watched", "--once", "--interval", "0.1")
        document = json.loads(daemon.bock("stat", "--once", "--interval", "0.1", "--json"))
    header, row = out.splitlines()
    assert header.split()[:3] == ["ID", "NAME", "STATUS"]
    assert row.split()[:3] == [str(volume["id"]), "watched", "in-use"]
    assert 0.1 <= document["interval_seconds"] < 60
    (shown,) = [row for row in document["volumes"] if row["name"] == "watched"]
    assert shown["connections"] == 1
    assert shown["latency_p50_us"] > 0
    assert shown["space"] == {"exclusive_bytes": 0, "shared_bytes": 0}
    daemon.bock("volume", "delete", "watched")
    assert "no volume 'watched'" in daemon.refusal("stat", "watched", "--once")


@pytest.mark.parametrize("json_too", [False, True])
def test_live_until_interrupted(daemon: Daemon, json_too: bool) -> None:
    daemon.bock("volume", "create", "living", "--size", "1M")
    command = ["bock", "stat", "--interval", "0.1", *(["--json"] if json_too else [])]
    live = Terminal(daemon, *command)
    for _ in range(3):
        live.wait_for("living")
        live.seen = ""
    live.signal(signal.SIGINT)
    assert live.end() == 0
    assert "Traceback" not in live.seen
    daemon.bock("volume", "delete", "living")
