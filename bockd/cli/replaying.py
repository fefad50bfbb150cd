"""`bock trace replay`: the requests of a trace, sent to a volume again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import click

from bockd.cli.arguments import reference
from bockd.cli.asking import confirm
from bockd.cli.client import connect
from bockd.cli.completion import complete_volume
from bockd.cli.output import json_option, print_json, print_table, say
from bockd.cli.sizes import format_size
from bockd.cli.stat import format_latency
from bockd.control import VolumeInfo
from bockd.errors import ConflictError, InvalidRequestError
from bockd.trace.reading import STANDARD_INPUT, open_trace
from bockd.trace.records import Kind, Record
from bockd.trace.summary import FRACTIONS, Summarizing, Summary, percentile

AS_FAST_AS_POSSIBLE: Final = "max"
ZEROS: Final = "zeros"
RANDOM: Final = "random"
DEPTH: Final = 64


def speed_option(text: str) -> float | None:
    """Parse how many times as fast a trace is replayed; None is as fast as possible. Raises
    click.BadParameter."""
    if text == AS_FAST_AS_POSSIBLE:
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.001 <= speed <= 1_000_000:
        raise click.BadParameter(f"{text!r} is neither max nor a number from 0.001 to 1000000")
    return speed


def data_option(text: str) -> tuple[str, int | None]:
    """Parse what is to be written, with its seed. Raises click.BadParameter."""
    word, _, seed = text.partition(":")
    if text == ZEROS:
        return text, None
    if word == RANDOM and (not seed or (seed.isascii() and seed.isdigit())):
        return word, int(seed or 0)
    raise click.BadParameter(f"{text!r} is neither zeros nor random nor random:SEED")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Latencies of one kind of request, as recorded (in the daemon) and as replayed (here)."""

    kind: str
    requests: int
    recorded_us: dict[str, float]
    """Percentiles; empty if the trace tells none."""
    replayed_us: dict[str, float]


@click.command()
@click.argument("file")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option(
    "--speed",
    type=speed_option,
    default="1",
    show_default=True,
    metavar="1|max|N",
    help="Divide the time between requests by N, or send them as fast as possible.",
)
@click.option(
    "--depth",
    type=click.IntRange(1, 1024),
    default=DEPTH,
    show_default=True,
    help="How many requests may be on their way.",
)
@click.option(
    "--write-data",
    type=data_option,
    metavar="zeros|random[:SEED]",
    help="Write this where the trace has writes, which destroys what the volume holds.",
)
@click.option("--reads-only", is_flag=True, help="Leave out what changes the volume.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def replay(
    file: str,
    volume: str,
    speed: float | None,
    depth: int,
    write_data: tuple[str, int | None] | None,
    reads_only: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the requests of a trace to a volume, and compare how long they take.

    They are sent over one NBD connection, at the times at which they came, or faster. A trace has
    no data: one that changes its volume wants --write-data or --reads-only. Asks first when run at
    a terminal. Recorded latencies are those inside the daemon, replayed ones those that this
    program sees.

    \b
    bock trace replay web.trace web-test --write-data random
    bock trace replay web.trace web --reads-only --speed max
    """
    if reads_only and write_data is not None:
        raise click.UsageError("say --write-data or --reads-only, not both")
    target = connect().show_volume(volume)
    with readable(file) as path:
        chosen = Chosen(path, reads_only=reads_only)
        check(chosen, target, written=write_data is not None)
        if chosen.changes:
            confirm(
                f"Overwrite volume {target.id} ({target.name}) where the trace has "
                f"{chosen.changes} writes, trims and zeroes?",
                yes=yes,
            )
        seed = None if write_data is None else write_data[1]
        outcome = send(chosen, target, speed, depth, seed)
    show(target, outcome, as_json=as_json)


class Chosen:
    """A trace, looked through once, and what of it is replayed."""

    def __init__(self, path: str, *, reads_only: bool) -> None:
        self.path = path
        self._reads_only = reads_only
        summarizing = Summarizing()
        self.changes = self.longest_write = 0
        for record in self.records():
            summarizing.add(record)
            if record.kind.changes:
                self.changes += 1
            if record.kind is Kind.WRITE:
                self.longest_write = max(self.longest_write, record.length)
        self.summary: Summary = summarizing.summary()

    def records(self) -> Iterator[Record]:
        """Yield the requests that are replayed."""
        with open_trace(self.path) as found:
            for record in found.records:
                if not (self._reads_only and record.kind.changes):
                    yield record


@contextmanager
def readable(file: str) -> Iterator[str]:
    """Yield the path of a trace that can be read twice."""
    if file != STANDARD_INPUT:
        yield file
        return
    from bockd.cli.scratch import scratch

    with scratch("the trace") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept.file)
        kept.file.flush()
        yield str(kept.path)


def check(chosen: Chosen, target: VolumeInfo, *, written: bool) -> None:
    """Raise InvalidRequestError for a trace without requests, ConflictError for a volume that is
    too small, or that would be changed when nobody has said so."""
    if not chosen.summary.requests:
        raise InvalidRequestError(f"{chosen.path} has no requests to replay")
    if chosen.summary.end_bytes > target.size_bytes:
        raise ConflictError(
            f"the trace reaches to byte {chosen.summary.end_bytes} "
            f"({format_size(chosen.summary.end_bytes)}), and volume {target.id} ({target.name}) "
            f"has only {target.size_bytes} ({format_size(target.size_bytes)}): replay it on a "
            "volume of that size"
        )
    if chosen.changes and not written:
        raise ConflictError(
            f"the trace has {chosen.changes} writes, trims and zeroes, which would destroy what "
            f"volume {target.id} ({target.name}) holds: say --write-data zeros or random, or "
            "--reads-only"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay did."""

    requests: int
    seconds: float
    recorded_seconds: float
    late: int
    """Requests that were sent more than a millisecond after their time."""
    kinds: tuple[Comparison, ...]


def send(
    chosen: Chosen, target: VolumeInfo, speed: float | None, depth: int, seed: int | None
) -> Outcome:
    """Replay a trace. Raises BockdError."""
    # Imported late: `bock trace replay --help` needs no connection.
    from bockd.cli.copying import connected
    from bockd.cli.issuing import Issuing, WriteData

    with connected(target.uri) as export:
        issuing = Issuing(export, depth, WriteData(seed, chosen.longest_write), speed)
        issuing.run(chosen.records())
    kinds = []
    for kind in chosen.summary.kinds:
        ordered = sorted(issuing.latencies[Kind[kind.kind.upper()]])
        replayed = {f"p{100 * one:g}": percentile(ordered, one) / 1000 for one in FRACTIONS}
        kinds.append(Comparison(kind.kind, kind.requests, kind.latency_us, replayed))
    summary = chosen.summary
    return Outcome(summary.requests, issuing.seconds, summary.seconds, issuing.late, tuple(kinds))


def show(target: VolumeInfo, outcome: Outcome, *, as_json: bool) -> None:
    """Print what a replay did."""
    if as_json:
        print_json({"volume": target.name, **asdict(outcome)})
        return
    say(
        f"replayed {outcome.requests} requests on {target.name} in {outcome.seconds:.3f} s "
        f"(recorded in {outcome.recorded_seconds:.3f} s)"
    )
    if outcome.late:
        say(f"{outcome.late} of them were sent more than 1 ms late")
    say()
    print_table(
        ("KIND=", "REQUESTS>", "", "p50>", "p90>", "p99>", "p99.9>"),
        [row for kind in outcome.kinds for row in rows(kind)],
    )


def rows(kind: Comparison) -> Iterator[tuple[str, ...]]:
    """Yield the two lines of one kind of request."""
    recorded = kind.recorded_us or dict.fromkeys(kind.replayed_us, 0.0)
    told = [format_latency(one) for one in recorded.values()]
    yield (kind.kind, str(kind.requests), "recorded", *told)
    yield ("", "", "replayed", *(format_latency(one) for one in kind.replayed_us.values()))
