"""The command line: what to measure, where, and where the result goes."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from bench import sections
from bench.chart import chart_of
from bench.document import read_json, to_json
from bench.machine import MEMORY_FILE_SYSTEMS, describe_machine, file_system_of
from bench.page import to_markdown
from bench.processes import BenchError, place
from bench.report import UNBOUNDED_COLUMNS, Report, print_report
from bench.revision import describe_revision
from bench.servers import PEERS
from bench.turns import BenchContext, Scale, Tell

MIB = 1 << 20
FULL = Scale(rounds=5, seconds=1.0, size_bytes=512 * MIB, repeats=3)
"""Some 500 runs against other servers and half as many elsewhere: half an hour or more."""
QUICK = Scale(
    rounds=1,
    seconds=0.3,
    size_bytes=64 * MIB,
    repeats=0,
    many_volumes=100,
    many_snapshots=20,
    most_snapshots=10,
    trim_bytes=4096 * MIB,
    scattered_bytes=16 * MIB,
    many_trims=16,
    pieces=64,
    zeroed_bytes=16 * MIB,
    wide_blocks=256,
    listed_volumes=100,
    clones=2,
    scattered_snapshot_bytes=1 * MIB,
)
"""Enough to see that all of it works; its numbers mean little."""

DEFAULT_DIRECTORY = Path("/var/tmp")
"""On a disk, unlike /tmp on many machines."""

_NOT_REPEATED = frozenset({"--json", "--directory", "--other"})
"""Options that say where things go, left out of the command that a result names."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Fewer, shorter rounds on smaller images.")
@click.option("--rounds", type=click.IntRange(1), help=f"Default: {FULL.rounds}.")
@click.option("--seconds", type=click.FloatRange(0.1), help="Length of a run.")
@click.option("--size-mib", type=click.IntRange(16), help="Size of each image.")
@click.option("--list", "list_rows", is_flag=True, help="Print the names of all rows.")
@click.option("--row", "rows", multiple=True, help="Only rows that match; may be repeated.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Instead of those that each row names; may be repeated.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write JSON there.")
@click.option("--write", "page", type=click.Path(path_type=Path), help="Write the page there.")
@click.option(
    "--chart", "chart_file", type=click.Path(path_type=Path), help="Draw the ratios there, as SVG."
)
@click.option(
    "--other",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The last run on a processor of another vendor, which the page shows beside this one; "
    "what --json would overwrite is kept there if it is one.",
)
@click.option(
    "--from",
    "saved",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing: take what --json wrote there, for --write and --chart.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the data goes while it runs; on the file system to be measured.",
)
@click.option(
    "--repeat/--no-repeat",
    default=True,
    help="Measure rounds again in which other processes were at work.",
)
@click.option("--strict", is_flag=True, help="Exit with status 1 when a target is missed.")
def main(
    quick: bool,
    list_rows: bool,
    rounds: int | None,
    seconds: float | None,
    size_mib: int | None,
    rows: tuple[str, ...],
    peers: tuple[str, ...],
    json_file: Path | None,
    page: Path | None,
    chart_file: Path | None,
    other: Path | None,
    saved: Path | None,
    directory: Path,
    repeat: bool,
    strict: bool,
) -> None:
    """Measure bockd: against other NBD servers, through snapshots and just after them, through
    each of its frontends, from the disk, and what it takes of the machine.

    \b
    python -m bench --quick
    python -m bench --list
    python -m bench --row randwrite --peer 'qemu-nbd qcow2' --rounds 9
    python -m bench --json result.json
    python -m bench --from result.json --write page.md --chart chart.svg
    """
    if list_rows:
        click.echo("\n".join(sections.all_rows()))
        return
    base = QUICK if quick else FULL
    scale = replace(
        base,
        rounds=rounds or base.rounds,
        seconds=seconds or base.seconds,
        size_bytes=size_mib * MIB if size_mib else base.size_bytes,
        repeats=base.repeats if repeat else 0,
    )
    signal.signal(signal.SIGTERM, _terminated)
    try:
        report = _measure(rows, peers, scale, directory) if saved is None else read_json(saved)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    print_report(report, _console())
    if other is not None and json_file is not None:
        _keep(json_file, other, report)
    _write(report, json_file, page, chart_file, _of_another_vendor(other, report))
    if report.failures or (strict and report.missed):
        sys.exit(1)


def _keep(json_file: Path, other: Path, report: Report) -> None:
    """Keep the run that is about to be overwritten if no later one has its vendor."""
    if _of_another_vendor(json_file, report) is not None:
        other.write_text(json_file.read_text())


def _of_another_vendor(saved: Path | None, report: Report) -> Report | None:
    """The run that was saved there, if there is one on another vendor's processor."""
    if saved is None or not saved.exists():
        return None
    found = read_json(saved)
    return found if found.machine.vendor != report.machine.vendor else None


def _write(
    report: Report,
    json_file: Path | None,
    page: Path | None,
    chart: Path | None,
    other: Report | None,
) -> None:
    """The JSON first: the others can be made from it."""
    if json_file is not None:
        json_file.write_text(to_json(report))
    if chart is not None:
        chart.write_text(chart_of(report))
    if page is not None:
        link = None if chart is None else os.path.relpath(chart, page.parent)
        page.write_text(to_markdown(report, link, other=other))


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """End through every context manager, so that servers and data go too."""
    sys.exit(128 + signal.SIGTERM)


def _refuse_memory(directory: Path) -> None:
    kind = file_system_of(directory)
    if kind in MEMORY_FILE_SYSTEMS:
        raise BenchError(
            f"{directory} is on {kind}: choose a directory on a disk's file system by --directory"
        )


def _measure(
    patterns: Sequence[str], peers: Sequence[str], scale: Scale, directory: Path
) -> Report:
    _refuse_memory(directory)
    revision = describe_revision()  # before anything is written
    with _scratch(directory) as scratch, _telling() as tell:
        measured = sections.measure(patterns, peers, scale, BenchContext(scratch, place(), tell))
        machine = describe_machine(scratch)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(_command(sys.argv[1:]), date, revision, machine, *measured)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A directory for the data, gone afterwards. Its name is short: socket paths must be."""
    with tempfile.TemporaryDirectory(prefix="bockd-bench-", dir=parent) as path:
        yield Path(path)


@contextmanager
def _telling() -> Iterator[Tell]:
    """What is being done, on standard error: a status line, or lines where there is no terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(text, markup=False, soft_wrap=True)
        return
    with console.status("starting") as status:
        yield status.update


def _console() -> Console:
    width = None if sys.stdout.isatty() else UNBOUNDED_COLUMNS
    return Console(width=width, highlight=False, markup=False)


def _command(arguments: Sequence[str]) -> str:
    """The command to run for the same measurement."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in _NOT_REPEATED:
            kept.append(argument)
        skip = not skip and argument in _NOT_REPEATED
    return shlex.join(["python", "-m", "bench", *kept])
