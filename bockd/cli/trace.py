"""`bock trace`: report and convert. See also `recording` and `replaying`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Final, TextIO

import click

from bockd.cli.lazy import LazyGroup
from bockd.cli.output import (
    json_option,
    print_json,
    print_record,
    print_table,
    printable,
    report,
    say,
)
from bockd.cli.sizes import format_size
from bockd.cli.stat import format_latency
from bockd.errors import BockdError
from bockd.trace.heatmap import HeatMap
from bockd.trace.iolog import Written, write_iolog
from bockd.trace.reading import Trace, open_trace
from bockd.trace.summary import KindSummary, Summarizing, Summary, size_classes

STANDARD_OUTPUT: Final = "-"


@click.group(cls=LazyGroup)
def trace() -> None:
    """Record the requests of a volume, replay them, and report on them.

    FILE is a trace that bock has recorded, an iolog of fio, or the text that blkparse prints; - is
    standard input.
    """


trace.add_lazily("record", "bockd.cli.recording:record")
trace.add_lazily("replay", "bockd.cli.replaying:replay")
trace.add_lazily("profile", "bockd.cli.profiling:profile_of_trace")


@trace.command("report")
@click.argument("file")
@click.option("--svg", type=Path, help="Draw where the requests went, over time, into this file.")
@click.option("--force", is_flag=True, help="Replace the picture if it exists.")
@json_option
def report_(file: str, svg: Path | None, force: bool, as_json: bool) -> None:
    """Show what a trace has: kinds, sizes, places, latencies.

    A request is sequential if it begins where one of the last 32 of its kind ended. The working set
    is the blocks of 4 KiB that were read or written. Latency is the time inside the daemon, as in
    bock stat; foreign traces may have none.

    \b
    bock trace report web.trace
    bock trace report web.trace --svg web.svg
    """
    from bockd.cli.export import refuse_existing, written_whole

    if svg is not None:
        refuse_existing(svg.absolute(), force=force)
    summarizing, heat = Summarizing(), HeatMap()
    with open_trace(file) as found:
        records = summarizing.through(found.records)
        for _ in records if svg is None else heat.through(records):
            pass
    summary = summarizing.summary(lost=found.ending.lost, complete=found.ending.complete)
    if svg is not None:
        with written_whole(svg.absolute(), force=force) as partial:
            partial.write_text(heat.svg(f"requests of {printable(found.header.volume)}"))
    if as_json:
        print_json({"format": found.format, "header": found.header, "trace": summary})
    else:
        show(found, summary)


def show(found: Trace, summary: Summary) -> None:
    """Print a report for people."""
    print_record(list(fields(found, summary)))
    if not summary.kinds:
        return
    say()
    print_table(
        ("KIND=", "REQUESTS>", "BYTES>", "FUA>", "SEQUENTIAL>", "p50>", "p90>", "p99>", "p99.9>"),
        [kind_row(kind) for kind in summary.kinds],
    )
    sized = [
        (kind.kind, f"up to {format_size(most)}", str(count))
        for kind in summary.kinds
        if kind.bytes
        for most, count in size_classes(kind.sizes)
    ]
    if sized:
        say()
        print_table(("KIND=", "SIZE=", "REQUESTS>"), sized)


def fields(found: Trace, summary: Summary) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for a trace as a whole."""
    header = found.header
    size = [] if header.size_bytes is None else [("size", format_size(header.size_bytes))]
    lost = [("lost", f"{summary.lost} requests: the recorder was too slow")] if summary.lost else []
    cut = [] if summary.complete else [("incomplete", "the recording was broken off")]
    hot = ", ".join(f"{100 * share:.0f} % in {part} %" for part, share in summary.hot.items())
    return [
        ("format", found.format),
        ("volume", header.volume),
        *size,
        ("requests", str(summary.requests)),
        ("time", f"{summary.seconds:.3f} s"),
        *lost,
        *cut,
        ("ends at", format_size(summary.end_bytes)),
        ("working set", format_size(summary.working_set_bytes)),
        ("read", format_size(summary.read_set_bytes)),
        ("written", format_size(summary.write_set_bytes)),
        *([("busiest MiBs", hot)] if hot else []),
    ]


def kind_row(kind: KindSummary) -> tuple[str, ...]:
    """Return the cells of one kind of request."""
    times = kind.latency_us or dict.fromkeys(("p50", "p90", "p99", "p99.9"), 0.0)
    placed = kind.kind in ("read", "write", "trim", "zero")
    return (
        kind.kind,
        str(kind.requests),
        format_size(kind.bytes),
        str(kind.fua),
        f"{100 * kind.sequential / kind.requests:.0f} %" if placed else "-",
        *(format_latency(one) for one in times.values()),
    )


@trace.command()
@click.argument("file")
@click.argument("iolog")
@click.option(
    "--version",
    type=click.Choice(["2", "3"]),
    default="3",
    show_default=True,
    help="Of fio's format; 2 has no times, and is read by fio before 3.31.",
)
@click.option(
    "--name", "named", help="The file or device that is named in it; by default the volume's name."
)
@click.option("--force", is_flag=True, help="Replace IOLOG if it exists.")
@json_option
def convert(
    file: str, iolog: str, version: str, named: str | None, force: bool, as_json: bool
) -> None:
    """Write a trace as an iolog of fio; - is standard output.

    An iolog has no latencies, and no FUA; zeroes become trims.

    \b
    bock trace convert web.trace web.iolog
    fio --name=replay --read_iolog=web.iolog --ioengine=nbd --uri=URI
    """
    from bockd.cli.export import check_output, written_whole

    check_output(iolog, as_json=as_json)
    target = Path(iolog).absolute()
    done = Written()
    whole = nullcontext(None) if iolog == STANDARD_OUTPUT else written_whole(target, force=force)
    with open_trace(file) as found, whole as partial:
        name = named or found.header.volume
        if partial is None:
            _print(found, name, version, done)
            return
        with partial.open("w", errors="surrogateescape") as output:
            _write(found, output, name, version, done)
    left = f"; {done.left_out} that it cannot have were left out" if done.left_out else ""
    report(
        {
            "iolog": str(target),
            "requests": done.requests,
            "left_out": done.left_out,
            "simplified": done.simplified,
        },
        f"wrote {target}: {done.requests} requests, {done.simplified} of them without their FUA or "
        f"as trims{left}",
        as_json=as_json,
    )


def _print(found: Trace, name: str, version: str, done: Written) -> None:
    from bockd.cli.export import discard_output

    try:
        _write(found, sys.stdout, name, version, done)
    except BrokenPipeError as error:
        discard_output()
        raise BockdError("nobody reads standard output any more") from error


def _write(found: Trace, output: TextIO, name: str, version: str, done: Written) -> None:
    write_iolog(found.records, output, name, int(version), done)
    output.flush()
