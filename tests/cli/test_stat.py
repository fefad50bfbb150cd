"""`bock stat`: rates from two samples, and what is shown."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from bockd.cli.client import ControlClient
from bockd.cli.output import GAP, make_columns
from bockd.cli.stat import (
    ALWAYS,
    COLUMNS,
    PRIORITY,
    Activity,
    Watch,
    busiest,
    fitted,
    format_latency,
    per_second,
    table_row,
    ticks,
    with_rates,
)
from bockd.control import VolumeStatistics
from bockd.model import NodeKind
from bockd.pool.reports import Space

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


def test_stat_once_prints_its_rows_and_ends(daemon: Daemon) -> None:
    volume = daemon.bock_json("volume", "create", "watched", "--size", "1M")
    with daemon.connected(volume["uri"], "watched"):
        out = daemon.bock("stat", "watched", "--once", "--interval", "0.1")
        document = json.loads(daemon.bock("stat", "--once", "--interval", "0.1", "--json"))
    header, row = out.splitlines()
    assert header.split()[:3] == ["ID", "NAME", "STATUS"]
    assert row.split()[:3] == [str(volume["id"]), "watched", "available"]
    assert row.split()[header.split().index("CLIENTS")] == "1"
    assert 0.1 <= document["interval_seconds"] < 60
    (shown,) = [row for row in document["volumes"] if row["name"] == "watched"]
    assert shown["connections"] == 1
    assert shown["latency_p50_us"] > 0
    assert shown["space"] == {"exclusive_bytes": 0, "shared_bytes": 0}
    daemon.bock("volume", "delete", "watched")
    assert "no volume 'watched'" in daemon.refusal("stat", "watched", "--once")


@pytest.mark.parametrize("json_too", [False, True])
def test_stat_goes_on_until_it_is_interrupted(daemon: Daemon, json_too: bool) -> None:
    daemon.bock("volume", "create", "living", "--size", "1M")
    command = ["bock", "stat", "--interval", "0.1", *(["--json"] if json_too else [])]
    live = Terminal(daemon, *command, rows=1000)  # others have left volumes, too
    for _ in range(3):
        live.wait_for("living")
        live.seen = ""
    live.signal(signal.SIGINT)
    assert live.end() == 0
    assert "Traceback" not in live.seen
    daemon.bock("volume", "delete", "living")


LARGE = replace(
    IDLE,
    name="a-name-of-a-volume-that-is-rather-long",
    reads_per_second=123456.0,
    read_bytes_per_second=1023.9 * (1 << 20),
    latency_p99_us=123456.0,
    errors=123456,
    space=Space(1023 << 40, 1 << 40),
)


class Late:
    """A `Watch` whose answers take longer than the interval."""

    def next(self) -> tuple[float, list[Activity]]:
        return 1.0, []


def test_late_ticks_come_at_once() -> None:
    """The interval is over before it begins, as after SIGSTOP and SIGCONT."""
    assert len(list(islice(ticks(Late(), 0.0, lambda: False), 100))) == 100


def test_all_columns_have_a_priority() -> None:
    assert sorted(PRIORITY) == sorted(title for title, _ in COLUMNS)


@pytest.mark.parametrize("width", range(20, 240, 10))
def test_a_narrow_terminal_shows_fewer_columns_and_whole_figures(width: int) -> None:
    """As many as fit by priority; the first three in any case."""
    cells = [table_row(LARGE), table_row(IDLE)]
    titles, shown = fitted(cells, width)
    assert set(titles) == set(PRIORITY[: len(titles)])
    least = [column.least for column in make_columns(titles, shown)]
    assert sum(least) + GAP * (len(least) - 1) <= width or len(titles) == ALWAYS
    for title, column in zip(titles, zip(*shown, strict=True), strict=True):
        number = [one for one, _ in COLUMNS].index(title)
        assert list(column) == [row[number] for row in cells]


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_are_as_long_as_the_terminal_at_most(daemon: Daemon, columns: int) -> None:
    name = "a-volume-with-a-rather-long-name-that-must-be-folded"
    daemon.bock("volume", "create", name, "--size", "1M")
    command = ["bock", "stat", name, "--once", "--interval", "0.1"]
    terminal = Terminal(daemon, *command, COLUMNS=str(columns), NO_COLOR="1")
    assert terminal.end() == 0
    lines = [line.rstrip() for line in plain(terminal.seen).splitlines()]
    assert max(map(len, lines)) <= columns
    titles = lines[0].split()
    assert {"NAME", "READ/s", "WRITE/s"} <= set(titles)
    start = lines[0].index("NAME")
    assert "".join(line[start:].split()[0] for line in lines[1:] if line.strip()) == name
    assert ("available" in lines[1]) == ("STATUS" in titles)
    daemon.bock("volume", "delete", name)


def plain(seen: str) -> str:
    """What a terminal shows, without the codes for bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", seen)


def test_a_terminal_that_cannot_go_up_gets_one_table_after_another(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "dumb", "--size", "1M")
    live = Terminal(daemon, "bock", "stat", "dumb", "--interval", "0.1", TERM="dumb")
    for _ in range(3):
        live.wait_for("dumb")
        live.seen = ""
    live.signal(signal.SIGINT)
    assert live.end() == 0
    daemon.bock("volume", "delete", "dumb")


def test_the_busiest_rows_are_shown_in_order() -> None:
    rows = [replace(IDLE, id=number, reads_per_second=float(number % 5)) for number in range(10)]
    assert [row.id for row in busiest(rows, 4)] == [3, 4, 8, 9]
    assert busiest(rows, 10) == rows


class Counted(ControlClient):
    """Counts what it asks."""

    asked = 0

    def request(self, *arguments: Any, **more: Any) -> bytes:
        self.asked += 1
        return super().request(*arguments, **more)


def test_space_is_asked_for_all_volumes_at_once(daemon: Daemon) -> None:
    names = [f"crowd-{number}" for number in range(5)]
    for name in names:
        daemon.bock("volume", "create", name, "--size", "1M")
    with Counted(daemon.data_dir / "api.sock") as client:
        watch = Watch(client, None, None)
        before = client.asked
        _, rows = watch.next()
        assert client.asked - before == 4  # counters, volumes, snapshots, space
    assert {row.name for row in rows if row.space == Space(0, 0)} >= set(names)
    for name in names:
        daemon.bock("volume", "delete", name)


def test_space_is_asked_for_in_turn_when_time_is_short(daemon: Daemon) -> None:
    names = {"turn-1", "turn-2", "turn-3"}
    for name in names:
        daemon.bock("volume", "create", name, "--size", "1M")
    with ControlClient(daemon.data_dir / "api.sock") as client:
        watch = Watch(client, None, 0.0)
        known: set[str] = set()
        turns = 0
        while not known >= names:
            known = named_with_space(watch.next()[1])
            turns += 1
    assert turns >= len(names)
    for name in names:
        daemon.bock("volume", "delete", name)


def named_with_space(rows: Iterable[Activity]) -> set[str]:
    """The names of the rows whose space is known."""
    return {row.name for row in rows if row.space is not None}
