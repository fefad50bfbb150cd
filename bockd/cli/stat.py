"""`bock stat`: what each volume does and takes, live.

The daemon counts from the moment a volume is opened; rates are the difference of two samples. Exact
space is a walk over a volume's maps, so it is asked for within a time budget, the longest unasked
volume first.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from types import FrameType

import click

from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_volume
from bockd.cli.output import json_option, make_console, make_table, print_json
from bockd.cli.sizes import format_size
from bockd.control import Space, VolumeStatistics
from bockd.errors import NotFoundError
from bockd.model import NodeKind

SPACE_BUDGET_SECONDS = 0.3
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
    """A rate. A counter that went back began again at 0, when the volume was reopened."""
    return (after - before if after >= before else after) / seconds


def with_rates(
    idle: Activity, before: VolumeStatistics | None, after: VolumeStatistics, seconds: float
) -> Activity:
    """`idle` with what happened between two samples. Without the earlier one the volume was opened
    within the interval, and its counters are the difference."""

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

    def __init__(self, client: ControlClient, volume: str | None, space_budget: float) -> None:
        self._client = client
        self._only = None if volume is None else int(client.show_volume(volume).id)
        self._space_budget = space_budget
        self._space: dict[Key, Space] = {}
        self._space_asked: dict[Key, float] = {}
        self._sample = take_sample(client)

    def next(self) -> tuple[float, list[Activity]]:
        """The seconds since the last call, and what happened in them."""
        before, self._sample = self._sample, take_sample(self._client)
        seconds = self._sample.taken_at - before.taken_at
        idle = self._idle_rows()
        self._refresh_space([(row.kind, row.id) for row in idle])
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
        rows = [
            Activity(
                NodeKind.VOLUME,
                int(found.id),
                found.name,
                found.size_bytes,
                found.status,
                found.connections,
                None,
            )
            for found in self._client.list_volumes()
            if self._only is None or found.id == self._only
        ]
        if self._only is not None:
            if not rows:
                raise NotFoundError(f"volume {self._only} was deleted")
            return rows
        return rows + [
            Activity(
                NodeKind.SNAPSHOT,
                int(found.id),
                found.name,
                found.size_bytes,
                "read-only",
                found.connections,
                None,
            )
            for found in self._client.list_snapshots()
            if found.connections
        ]

    def _refresh_space(self, keys: list[Key]) -> None:
        deadline = time.monotonic() + self._space_budget
        for key in sorted(keys, key=lambda key: self._space_asked.get(key, 0.0)):
            try:
                self._space[key] = self._client.space(key[0], str(key[1]))
            except NotFoundError:
                self._space.pop(key, None)  # deleted since it was listed
            self._space_asked[key] = time.monotonic()
            if self._space_asked[key] > deadline:
                return


COLUMNS = (
    *("ID>", "NAME", "STATUS", "READ/s>", "READ>", "WRITE/s>", "WRITE>", "FLUSH/s>", "TRIM/s>"),
    *("p50>", "p99>", "p99.9>", "ERR>", "EXCLUSIVE>", "SHARED>"),
)


def table_row(row: Activity) -> tuple[str, ...]:
    """A row as people read it."""
    return (
        str(row.id),
        row.name if row.kind is NodeKind.VOLUME else f"snapshot/{row.name}",
        row.status,
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


def format_latency(microseconds: float) -> str:
    """ "41 us", "1.9 ms", "2.1 s"; "-" when there was no request."""
    if microseconds <= 0:
        return "-"
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f} ms"
    return f"{microseconds / 1_000_000:.1f} s"


def ticks(
    watch: Watch, interval: float, interrupted: Callable[[], bool]
) -> Iterator[tuple[float, list[Activity]]]:
    """One observation for each interval, until it is interrupted."""
    due = time.monotonic()
    while not interrupted():
        due = max(due + interval, time.monotonic())
        time.sleep(due - time.monotonic())
        yield watch.next()


@contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT came. It raises KeyboardInterrupt too, but one that is raised in a finalizer
    or a callback is printed and forgotten, and then only this tells."""
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
    """One observation as JSON."""
    return {"time": time.time(), "interval_seconds": seconds, "volumes": rows}


@click.command()
@click.argument("volume", required=False, shell_complete=complete_volume)
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
    daemon over recent requests. With --json each interval is one line.

    \b
    bock stat
    bock stat web --interval 5
    bock stat --once --json
    """
    with noticing_interrupts() as interrupted:
        try:
            watch = Watch(connect(), volume, float("inf") if once else SPACE_BUDGET_SECONDS)
            observed = ticks(watch, interval, interrupted)
            if once:
                observed = islice(observed, 1)
            if once or as_json or not sys.stdout.isatty():
                for seconds, rows in observed:
                    show_plain(seconds, rows, as_json=as_json)
            else:
                show_live(observed)
        except KeyboardInterrupt:
            if once:
                raise
            # It is the way to end it.


def show_plain(seconds: float, rows: list[Activity], *, as_json: bool) -> None:
    """One observation, printed."""
    if as_json:
        print_json(document(seconds, rows), indent=0)
        return
    make_console().print(make_table(COLUMNS, map(table_row, rows)))


def show_live(observed: Iterator[tuple[float, list[Activity]]]) -> None:
    """A table that renews itself in place."""
    from rich.live import Live

    with Live(console=make_console(), auto_refresh=False) as live:
        for _, rows in observed:
            live.update(make_table(COLUMNS, map(table_row, rows)), refresh=True)
