"""A few blocks all over a large volume: a map of which next to nothing is in one place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.fresh import EmptyPeer, EmptyVolume
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, EXPORT, NBDKIT_FILE, PEERS, Served, bockd_daemon
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE, GIB

WRITE_ROW, READ_ROW = "wide-first-writes", "wide-first-reads"
ROWS = (WRITE_ROW, READ_ROW)
HALF = Target(0.5)
SIZE_BYTES = 256 * GIB
DEPTH = 32


def measure_wide(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    written = scale.wide_blocks * BLOCK_SIZE
    job = Job("randwrite", BLOCK_SIZE, DEPTH, SIZE_BYTES, io_bytes=written)
    comparisons: list[Comparison] = []
    if WRITE_ROW in rows:
        with bockd_daemon(context.directory / "wide", context.placement) as daemon:
            fresh = (EmptyVolume(daemon, job, context), EmptyPeer(NBDKIT_FILE, job, context))
            contestants = [one.contestant() for one in fresh]
            turns = in_turn(WRITE_ROW, contestants, scale, context)
        comparisons.append(turns.against(NBDKIT_FILE, HALF))
    if READ_ROW in rows:
        comparisons.append(_first_reads(job, scale, context))
    method = (
        f"{scale.wide_blocks:,} random blocks of 4 KiB at depth {DEPTH}, each once, of a volume of "
        "256 GiB: written where nothing is yet, and read for the first time since the daemon was "
        "started. nbdkit, whose map is the file system's, is not started anew; the data is in the "
        f"page cache; {method_of_turns(scale, context)}"
    )
    return Section("Few blocks of a large volume", method, tuple(comparisons))


def _first_reads(job: Job, scale: Scale, context: BenchContext) -> Comparison:
    core = context.placement.client
    directory = context.directory / "wide-read"
    reading = replace(job, mode="randread")

    def run(served: Served) -> Outcome:
        return run_job(reading, served.uri, core=core)

    with bockd_daemon(directory, context.placement) as daemon:
        ours = daemon.volume(EXPORT, SIZE_BYTES)
        run_job(job, ours.uri, core=core)
    with ExitStack() as daemons, ExitStack() as stack:
        serve = PEERS[NBDKIT_FILE].serve
        theirs = stack.enter_context(
            serve(context.directory / "wide-nbdkit", SIZE_BYTES, context.placement)
        )
        run_job(job, theirs.uri, core=core)
        write_back(theirs.directory)

        def restart() -> Served:
            started = daemons.enter_context(bockd_daemon(directory, context.placement))
            return replace(ours, pid=started.pid)

        contestants = [
            Contestant(BOCKD, run, restart, daemons.close),
            Contestant(NBDKIT_FILE, run, lambda: theirs),
        ]
        return in_turn(READ_ROW, contestants, scale, context).against(NBDKIT_FILE, HALF)
