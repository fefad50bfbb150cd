"""`bock stat`: what each volume does and takes, live.

The daemon counts from the moment a volume is opened; rates are the difference of two samples. Exact
space is a walk over maps, so it is asked for within a time budget, the longest unasked first. A
narrow terminal shows fewer columns, never a part of a figure.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from types import FrameType
from typing import Protocol

import click

from bockd.cli.arguments import reference
from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_volume
from bockd.cli.live import Sheet, show_live
from bockd.cli.output import (
    GAP,
    Column,
    json_option,
    make_console,
    print_json,
    print_table,
    printable,
    terminal_columns,
)
from bockd.cli.sizes import format_size
from bockd.control import SnapshotInfo, VolumeInfo, VolumeStatistics
from bockd.errors import NotFoundError
from bockd.model import NodeKind
from bockd.pool.reports import Space

SPACE_SECONDS = 0.3
"""How long one refresh of the live table may spend on asking for space."""

MIN_INTERVAL_SECONDS = 0.1

Key = tuple[NodeKind, int]


@dataclass(frozen=True, slots=True)
class Activity:
    """One row: rates per second over the interval, percentiles over recent requests."""

    kind: NodeKind
    id: int
    name: str
    size_bytes: int
    status: str
    connections: int
    space: Space | None
    """None: not asked yet."""
    reads_per_second: float = 0.0
    read_bytes_per_second: float = 0.0
    writes_per_second: float = 0.0
    written_bytes_per_second: float = 0.0
    flushes_per_second: float = 0.0
    trims_per_second: float = 0.0
    latency_p50_us: float = 0.0
    latency_p99_us: float = 0.0
    latency_p999_us: float = 0.0
    errors: int = 0
    """Since the volume was opened."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment (of the monotonic clock)."""

    taken_at: float
    counters: dict[Key, VolumeStatistics]


def take_sample(client: ControlClient) -> Sample:
    """Ask for the counters now."""
    counters = {(found.kind, int(found.id)): found for found in client.statistics()}
    return Sample(time.monotonic(), counters)


def per_second(before: int, after: int, seconds: float) -> float:
    """Calculate a rate. A counter that went back began again at 0, when the volume was reopened."""
    return (after - before if after >= before else after) / seconds


def with_rates(
    idle: Activity, before: VolumeStatistics | None, after: VolumeStatistics, seconds: float
) -> Activity:
    """Return `idle` with what happened between two samples. Without the earlier sample the volume
    was opened within the interval, and its counters are the difference."""

    def rate(counter: str) -> float:
        then = 0 if before is None else getattr(before, counter)
        return per_second(then, getattr(after, counter), seconds)

    return replace(
        idle,
        connections=after.connections,
        reads_per_second=rate("reads"),
        read_bytes_per_second=rate("read_bytes"),
        writes_per_second=rate("writes"),
        written_bytes_per_second=rate("written_bytes"),
        flushes_per_second=rate("flushes"),
        trims_per_second=rate("trims"),
        latency_p50_us=after.latency_p50_us,
        latency_p99_us=after.latency_p99_us,
        latency_p999_us=after.latency_p999_us,
        errors=after.errors,
    )


class Watch:
    """Follows all volumes and open snapshots, or one volume."""

    def __init__(
        self, client: ControlClient, volume: str | None, space_seconds: float | None
    ) -> None:
        """`space_seconds` bounds what one call of `next` spends on asking for space; None: all of
        it is asked for."""
        self._client = client
        self._only = None if volume is None else int(client.show_volume(volume).id)
        self._space_seconds = space_seconds
        self._space: dict[Key, Space] = {}
        self._space_after = 0
        self._sample = take_sample(client)

    def next(self) -> tuple[float, list[Activity]]:
        """Return the seconds since the last call, and what happened in them."""
        before, self._sample = self._sample, take_sample(self._client)
        seconds = self._sample.taken_at - before.taken_at
        try:
            idle = self._idle_rows()
            self._refresh_space()
        except NotFoundError as error:
            raise NotFoundError(f"volume {self._only} was deleted") from error
        rows = []
        for row in idle:
            key = (row.kind, row.id)
            shown = replace(row, space=self._space.get(key))
            if (after := self._sample.counters.get(key)) is not None:
                shown = with_rates(shown, before.counters.get(key), after, seconds)
            rows.append(shown)
        return seconds, rows

    def _idle_rows(self) -> list[Activity]:
        """A row for each volume that is followed, and for each snapshot that is being read."""
        if self._only is not None:
            return [idle_row(self._client.show_volume(str(self._only)))]
        snapshots = (one for one in self._client.list_snapshots() if one.connections)
        return [*map(idle_row, self._client.list_volumes()), *map(idle_row, snapshots)]

    def _refresh_space(self) -> None:
        """Ask for the exact space of one volume, or of as many as the time allows, those first
        that were asked for the longest time ago."""
        if self._only is not None:
            key = (NodeKind.VOLUME, self._only)
            self._space[key] = self._client.space(NodeKind.VOLUME, str(self._only))
            return
        page = self._client.spaces(self._space_after, self._space_seconds)
        self._space_after = page.next or 0
        self._space.update(((one.kind, one.id), one.space) for one in page.spaces)


def idle_row(found: VolumeInfo | SnapshotInfo) -> Activity:
    """Make a row without requests."""
    volume = isinstance(found, VolumeInfo)
    return Activity(
        NodeKind.VOLUME if volume else NodeKind.SNAPSHOT,
        int(found.id),
        found.name,
        found.size_bytes,
        found.status if isinstance(found, VolumeInfo) else "read-only",
        found.connections,
        None,
    )


COLUMNS: tuple[tuple[str, int], ...] = (
    ("ID>", 4),
    ("NAME", 12),
    ("STATUS=", 9),
    ("CLIENTS>", 7),
    ("READ/s>", 6),
    ("READ>", 11),
    ("WRITE/s>", 7),
    ("WRITE>", 11),
    ("FLUSH/s>", 7),
    ("TRIM/s>", 6),
    ("p50>", 7),
    ("p99>", 7),
    ("p99.9>", 7),
    ("ERR>", 3),
    ("EXCLUSIVE>", 10),
    ("SHARED>", 10),
)
"""Titles (see bockd.cli.output.Column), and how wide their usual figures are: so that a column does
not come and go with each digit."""

PRIORITY = (
    *("NAME", "READ/s>", "WRITE/s>", "STATUS=", "READ>", "WRITE>", "p99>", "ERR>", "ID>"),
    *("EXCLUSIVE>", "CLIENTS>", "p50>", "FLUSH/s>", "SHARED>", "TRIM/s>", "p99.9>"),
)
"""Which columns a narrow terminal shows. The first three are always there."""

ALWAYS = 3


def table_row(row: Activity) -> tuple[str, ...]:
    """Format a row for people."""
    return (
        str(row.id),
        printable(row.name if row.kind is NodeKind.VOLUME else f"snapshot/{row.name}"),
        row.status,
        str(row.connections),
        f"{row.reads_per_second:.0f}",
        f"{format_size(round(row.read_bytes_per_second))}/s",
        f"{row.writes_per_second:.0f}",
        f"{format_size(round(row.written_bytes_per_second))}/s",
        f"{row.flushes_per_second:.0f}",
        f"{row.trims_per_second:.0f}",
        format_latency(row.latency_p50_us),
        format_latency(row.latency_p99_us),
        format_latency(row.latency_p999_us),
        str(row.errors),
        "?" if row.space is None else format_size(row.space.exclusive_bytes),
        "?" if row.space is None else format_size(row.space.shared_bytes),
    )


def choose_columns(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the numbers of the columns that fit, in their order on the screen."""
    number_of = {title: number for number, (title, _) in enumerate(COLUMNS)}
    chosen: list[int] = []
    left = width + GAP
    for title in PRIORITY:
        number = number_of[title]
        usual = COLUMNS[number][1]
        left -= max(usual, Column.of(title, (row[number] for row in rows)).least) + GAP
        if left < 0 and len(chosen) >= ALWAYS:
            break
        chosen.append(number)
    return sorted(chosen)


def busiest(rows: list[Activity], most: int) -> list[Activity]:
    """Choose the `most` rows that have the most requests, and keep their order."""
    if len(rows) <= most:
        return rows
    by_requests = sorted(rows, key=lambda row: -(row.reads_per_second + row.writes_per_second))
    kept = {(row.kind, row.id) for row in by_requests[:most]}
    return [row for row in rows if (row.kind, row.id) in kept]


def format_latency(microseconds: float) -> str:
    """Format a latency, as in "41 us", "1.9 ms" and "2.1 s"; "-" when there was no request."""
    if microseconds <= 0:
        return "-"
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f} ms"
    return f"{microseconds / 1_000_000:.1f} s"


class Observer(Protocol):
    """What is asked at each interval."""

    def next(self) -> tuple[float, list[Activity]]:
        """Return the seconds since the last call, and what happened in them."""
        ...


def sleep(seconds: float) -> bool:
    """Sleep, and return that it goes on."""
    time.sleep(seconds)
    return True


def ticks(
    watch: Observer,
    interval: float,
    interrupted: Callable[[], bool],
    wait: Callable[[float], bool] = sleep,
) -> Iterator[tuple[float, list[Activity]]]:
    """Yield one observation for each interval (seconds), until it is interrupted, or `wait`, which
    waits for so many seconds, returns that it is over."""
    due = time.monotonic()
    while not interrupted():
        # One that is late, because it was stopped or the daemon was slow, does not hurry after.
        due = max(due + interval, time.monotonic())
        if not wait(max(0.0, due - time.monotonic())):
            return
        yield watch.next()


@contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT came. The signal raises KeyboardInterrupt too,
    but Python only prints one that is raised in a finalizer or a callback; then only this function
    tells."""
    came = False

    def notice(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def document(seconds: float, rows: list[Activity]) -> dict[str, object]:
    """Convert one observation to a JSON document."""
    return {"time": time.time(), "interval_seconds": seconds, "volumes": rows}


@click.command()
@click.argument("volume", type=reference, required=False, shell_complete=complete_volume)
@click.option(
    "--interval",
    type=click.FloatRange(min=MIN_INTERVAL_SECONDS),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time over which rates are taken.",
)
@click.option("--once", is_flag=True, help="Show one interval and end.")
@json_option
def stat(volume: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Show what each volume does: requests, bytes, latency, space. Ctrl-C ends it.

    READ/s and WRITE/s are requests, the columns after them bytes. Latency is the time inside the
    daemon over recent requests. With --json each interval is one line. At a terminal q ends it,
    too, the arrows sort and move, space stands still, and ? shows all keys.

    \b
    bock stat
    bock stat web --interval 5
    bock stat --once --json
    """
    with noticing_interrupts() as interrupted:
        try:
            watch = Watch(connect(), volume, None if once else SPACE_SECONDS)
            if once or as_json or not can_renew():
                observed = ticks(watch, interval, interrupted)
                for seconds, rows in islice(observed, 1 if once else None):
                    show_plain(seconds, rows, as_json=as_json)
            else:
                show_live(
                    SHEET,
                    lambda wait: (rows for _, rows in ticks(watch, interval, interrupted, wait)),
                )
        except KeyboardInterrupt:
            if once:
                raise
            # It is the way to end it.


def can_renew() -> bool:
    """Return whether a table can be redrawn in place: at a terminal whose cursor can move up."""
    return sys.stdout.isatty() and not make_console().is_dumb_terminal


def show_plain(seconds: float, rows: list[Activity], *, as_json: bool) -> None:
    """Print one observation."""
    if as_json:
        print_json(document(seconds, rows), indent=0)
        return
    cells = [table_row(row) for row in rows]
    print_table(*fitted(cells, terminal_columns()))


def fitted(cells: Sequence[Sequence[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """Return the titles of the columns that fit, and their cells."""
    chosen = choose_columns(cells, width)
    titles = [COLUMNS[number][0] for number in chosen]
    return titles, [[row[number] for number in chosen] for row in cells]


def sort_value(row: Activity, column: int) -> str | float:
    """Return by what rows are sorted, of a column."""
    space = row.space
    values: tuple[str | float, ...] = (
        row.id,
        row.name,
        row.status,
        row.connections,
        row.reads_per_second,
        row.read_bytes_per_second,
        row.writes_per_second,
        row.written_bytes_per_second,
        row.flushes_per_second,
        row.trims_per_second,
        row.latency_p50_us,
        row.latency_p99_us,
        row.latency_p999_us,
        row.errors,
        -1 if space is None else space.exclusive_bytes,
        -1 if space is None else space.shared_bytes,
    )
    return values[column]


SHEET = Sheet([title for title, _ in COLUMNS], table_row, sort_value, fitted, busiest)
