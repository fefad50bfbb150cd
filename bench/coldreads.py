"""Random reads of what is not in the page cache: before each run the files are dropped from it."""

from __future__ import annotations

from contextlib import ExitStack

from bench.files import drop_from_cache, write_back
from bench.fio import Job, Outcome, run_job
from bench.results import Section
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import BOCKD, NBDKIT_FILE, RAW_THREADS, Served
from bench.throughput import Fleet
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE

DEPTH = 32
SHARE = 16
"""A run reads one block in so many, each once: few enough to be found on the disk."""
ROW = "cold-4k-randread-qd32"
ROWS = (ROW,)


def measure_cold_reads(scale: Scale, context: BenchContext) -> Section:
    """Measure the only row."""
    blocks = scale.size_bytes // BLOCK_SIZE // SHARE
    job = Job("randread", BLOCK_SIZE, DEPTH, scale.size_bytes, io_bytes=blocks * BLOCK_SIZE)

    def contestant(name: str, served: Served) -> Contestant:
        def run(_: Served) -> Outcome:
            return run_job(job, served.uri, core=context.placement.client)

        def prepare() -> Served:
            write_back(served.directory)
            drop_from_cache(served.directory)
            return served

        return Contestant(name, run, prepare)

    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        contestants = []
        for name in (BOCKD, NBDKIT_FILE, RAW_THREADS):
            served = fleet.get(name, FILL_BLOCK_BYTES, tcp=False)
            assert served is not None
            contestants.append(contestant(name, served))
        turns = in_turn(ROW, contestants, scale, context)
    method = (
        f"{blocks:,} random 4 KiB reads at depth {DEPTH}, each block once, after the files were "
        f"dropped from the page cache; {method_of_turns(scale, context)}"
    )
    comparisons = (turns.against(NBDKIT_FILE), turns.against(RAW_THREADS))
    return Section("Reads from the disk", method, comparisons)
