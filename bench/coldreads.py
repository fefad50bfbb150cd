"""Random reads of what is not in the page cache: before each run the files are dropped from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from bench.files import drop_from_cache, write_back
from bench.fio import Job, Outcome, run_job
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import BOCKD, NBDKIT_FILE, RAW_THREADS, Served
from bench.throughput import Fleet
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE, KIB

DEPTH = 32
SHARE = 16
"""A run reads one block in so many, each once: few enough to be found on the disk."""
SEQUENTIAL_BYTES = 64 * KIB
RANDOM_ROW, SEQUENTIAL_ROW = "cold-4k-randread-qd32", "cold-64k-read-qd1"
ROWS = (RANDOM_ROW, SEQUENTIAL_ROW)
TARGETS = {RANDOM_ROW: Target(0.8), SEQUENTIAL_ROW: Target(0.95)}
"""Of what nbdkit's file plugin reaches."""


def measure_cold_reads(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    size = scale.size_bytes
    blocks = size // BLOCK_SIZE // SHARE
    jobs = {
        RANDOM_ROW: Job("randread", BLOCK_SIZE, DEPTH, size, io_bytes=blocks * BLOCK_SIZE),
        SEQUENTIAL_ROW: Job("read", SEQUENTIAL_BYTES, 1, size, io_bytes=size),
    }

    def contestant(name: str, served: Served, job: Job) -> Contestant:
        def run(_: Served) -> Outcome:
            return run_job(job, served.uri, core=context.placement.client)

        def prepare() -> Served:
            write_back(served.directory)
            drop_from_cache(served.directory)
            return served

        return Contestant(name, run, prepare)

    comparisons: list[Comparison] = []
    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        servers = {}
        for name in (BOCKD, NBDKIT_FILE, RAW_THREADS):
            served = fleet.get(name, FILL_BLOCK_BYTES, tcp=False)
            assert served is not None
            servers[name] = served
        for row in rows:
            contestants = [contestant(name, one, jobs[row]) for name, one in servers.items()]
            turns = in_turn(row, contestants, scale, context)
            comparisons.append(turns.against(NBDKIT_FILE, TARGETS[row]))
            comparisons.append(turns.against(RAW_THREADS))
    method = (
        f"{blocks:,} random 4 KiB reads at depth {DEPTH}, each block once, and all of an image of "
        f"{size >> 20} MiB in reads of 64 KiB, one after another; after the files were dropped "
        f"from the page cache; {method_of_turns(scale, context)}"
    )
    return Section("Reads from the disk", method, tuple(comparisons))
