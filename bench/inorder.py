"""Reads of a whole volume in block order, after its blocks were written again behind a snapshot.

What was written in order, and what was written at random, from the page cache and from the disk,
each against a volume that never had a snapshot. Where new blocks lie in a head is up to the pool;
these rows say what that costs whoever reads in order, as copies and backups do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.files import drop_from_cache, write_back
from bench.fio import Job, run_job
from bench.processes import BenchError
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, Daemon, Served, bockd_daemon
from bench.snapshotreads import NONE
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE, MIB

NONE_NAME = "plain"
"""The volume without snapshots."""

REQUEST_BYTES = 1 * MIB
DEPTH = 8
WRITE_DEPTH = 32
KEPT = Target(0.9)
"""Of the speed of a volume without snapshots."""


_Reader = Callable[[str, str], Contestant]
"""Makes a contestant of a name and a volume."""


@dataclass(frozen=True)
class _Case:
    mode: str
    """How the blocks were written again: fio's rw."""
    cold: bool = False


_CASES = {
    "in-order-1m-read-written-in-order": _Case("write"),
    "in-order-1m-read-written-at-random": _Case("randwrite"),
    "in-order-1m-read-written-at-random-cold": _Case("randwrite", cold=True),
}
ROWS = tuple(_CASES)


def measure_in_order_reads(
    scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS
) -> Section:
    """Measure the rows that are asked for."""
    directory = context.directory / "in-order"
    modes = sorted({_CASES[row].mode for row in rows})
    with bockd_daemon(directory, context.placement) as daemon:
        fill(daemon.volume(NONE_NAME, scale.size_bytes), scale.size_bytes, context.placement)
        for mode in modes:
            _write_again(daemon, mode, scale, context)
        warm = [
            _compare(row, _warm_reader(daemon, scale, context), scale, context)
            for row in rows
            if not _CASES[row].cold
        ]
    cold = [
        _compare(row, _cold_reader(directory, scale, context), scale, context)
        for row in rows
        if _CASES[row].cold
    ]
    method = (
        f"Volumes of {scale.size_bytes >> 20} MiB read in order, in requests of 1 MiB at depth "
        f"{DEPTH}: filled, with a snapshot, after which each block was written again by writes of "
        f"4 KiB, in order or at random. From the page cache for {scale.seconds:g} s a run; `cold` "
        "is all of the volume once, just after the daemon was started anew and the files were "
        f"dropped from the page cache. {method_of_turns(scale, context)}"
    )
    return Section("Reads in order, after a snapshot", method, (*warm, *cold))


def _name(mode: str) -> str:
    return f"again-{mode}"


def _write_again(daemon: Daemon, mode: str, scale: Scale, context: BenchContext) -> None:
    """Make a volume all of whose blocks were written after its snapshot."""
    name, size = _name(mode), scale.size_bytes
    context.tell(f"making a volume that is written again: {mode}")
    served = daemon.volume(name, size)
    fill(served, size, context.placement)
    daemon.bock("snapshot", "create", name, f"{name}-before")
    job = Job(mode, BLOCK_SIZE, WRITE_DEPTH, size, io_bytes=size)
    outcome = run_job(job, served.uri, core=context.placement.client)
    if outcome.operations != size // BLOCK_SIZE:
        raise BenchError(f"fio wrote {outcome.operations} blocks instead of {size // BLOCK_SIZE}")
    write_back(served.directory)


def _served(daemon: Daemon, volume: str) -> Served:
    return Served(BOCKD, daemon.pid, daemon.uri(volume), daemon.data_dir, "bockd serve")


def _warm_reader(daemon: Daemon, scale: Scale, context: BenchContext) -> _Reader:
    job = Job("read", REQUEST_BYTES, DEPTH, scale.size_bytes, seconds=scale.seconds)

    def reader(name: str, volume: str) -> Contestant:
        return Contestant(
            name,
            run=lambda served: run_job(job, served.uri, core=context.placement.client),
            prepare=lambda: _served(daemon, volume),
        )

    return reader


def _cold_reader(directory: Path, scale: Scale, context: BenchContext) -> _Reader:
    """Each run has a daemon of its own: what one has mapped stays in the page cache."""
    job = Job("read", REQUEST_BYTES, DEPTH, scale.size_bytes, io_bytes=scale.size_bytes)

    def reader(name: str, volume: str) -> Contestant:
        daemons = ExitStack()

        def prepare() -> Served:
            drop_from_cache(directory)
            daemon = daemons.enter_context(bockd_daemon(directory, context.placement))
            return _served(daemon, volume)

        return Contestant(
            name,
            run=lambda served: run_job(job, served.uri, core=context.placement.client),
            prepare=prepare,
            after=daemons.close,
        )

    return reader


def _compare(row: str, reader: _Reader, scale: Scale, context: BenchContext) -> Comparison:
    contestants = [reader("written again", _name(_CASES[row].mode)), reader(NONE, NONE_NAME)]
    turns = in_turn(row, contestants, scale, context, watched=not _CASES[row].cold)
    return turns.against(NONE, KEPT)
