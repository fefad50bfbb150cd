"""Random reads of volumes whose blocks lie in the layers of many snapshots.

Each volume is filled, then gets its snapshots; between two of them a share of its blocks is
written again, so that what is read is spread over all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.results import Comparison, Section, Target
from bench.servers import Daemon, Served, bockd_daemon
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE

DEPTH = 32
NONE = "no snapshot"
COUNTS = (1, 10, 100)
KEPT = {100: Target(0.95)}
ROWS = {count: f"reads-through-{count}-snapshots" for count in COUNTS}

REWRITTEN = 0.5
"""Of the blocks, between the first snapshot and the last."""


def measure_snapshot_reads(scale: Scale, context: BenchContext, rows: Sequence[str]) -> Section:
    """Measure the rows that are asked for."""
    directory = context.directory / "through"
    with bockd_daemon(directory, context.placement) as daemon:
        plain = _volume(daemon, 0, scale, context)
        comparisons = tuple(
            _compare(
                row, _volume(daemon, count, scale, context), plain, KEPT.get(count), scale, context
            )
            for count, row in ROWS.items()
            if row in rows and count <= scale.most_snapshots
        )
    method = (
        f"4 KiB random reads at depth {DEPTH} of volumes of one daemon; between the snapshots "
        f"{REWRITTEN:.0%} of the blocks were written again, spread over the volume; "
        f"{method_of_turns(scale, context)}"
    )
    return Section("Reads through snapshots", method, comparisons)


def _volume(daemon: Daemon, snapshots: int, scale: Scale, context: BenchContext) -> Served:
    name = f"under-{snapshots}"
    context.tell(f"making a volume with {snapshots} snapshots")
    served = daemon.volume(name, scale.size_bytes)
    fill(served, scale.size_bytes, context.placement)
    blocks = int(scale.size_bytes // BLOCK_SIZE * REWRITTEN)
    for number in range(snapshots):
        daemon.bock("snapshot", "create", name, f"{name}-{number}")
        share = max(1, blocks // snapshots) * BLOCK_SIZE
        run_job(
            Job("randwrite", BLOCK_SIZE, DEPTH, scale.size_bytes, io_bytes=share, seed=number + 1),
            served.uri,
            core=context.placement.client,
        )
    write_back(served.directory)
    return served


def _compare(
    row: str,
    served: Served,
    plain: Served,
    target: Target | None,
    scale: Scale,
    context: BenchContext,
) -> Comparison:
    job = Job("randread", BLOCK_SIZE, DEPTH, scale.size_bytes, seconds=scale.seconds)

    def reader(name: str, volume: Served) -> Contestant:
        def run(_: Served) -> Outcome:
            return run_job(job, volume.uri, core=context.placement.client)

        return Contestant(name, run, prepare=lambda: volume)

    turns = in_turn(row, [reader("with them", served), reader(NONE, plain)], scale, context)
    return turns.against(NONE, target)
