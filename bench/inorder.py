"""Reads of a whole volume in block order, after its blocks were written again behind a snapshot.

What was written in order, and what was written at random, from the page cache and from the disk,
each against a volume that never had a snapshot. Where new blocks lie in a head is up to the pool;
these rows say what that costs whoever reads in order, as copies and backups do. What was written at
random is also read after it was frozen and settled, which the daemon does after some minutes.
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
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Background, run_inline

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
    settled: bool = False

    @property
    def volume(self) -> str:
        """Name the volume that is read."""
        return f"again-{self.mode}" + "-settled" * self.settled


_CASES = {
    "in-order-1m-read-written-in-order": _Case("write"),
    "in-order-1m-read-written-at-random": _Case("randwrite"),
    "in-order-1m-read-written-at-random-cold": _Case("randwrite", cold=True),
    "in-order-1m-read-settled-cold": _Case("randwrite", cold=True, settled=True),
}
ROWS = tuple(_CASES)


def measure_in_order_reads(
    scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS
) -> Section:
    """Measure the rows that are asked for."""
    directory = context.directory / "in-order"
    cases = {_CASES[row].volume: _CASES[row] for row in rows}
    with bockd_daemon(directory, context.placement) as daemon:
        fill(daemon.volume(NONE_NAME, scale.size_bytes), scale.size_bytes, context.placement)
        for case in cases.values():
            _write_again(daemon, case, scale, context)
        warm = [
            _compare(row, _warm_reader(daemon, scale, context), scale, context)
            for row in rows
            if not _CASES[row].cold
        ]
        data = daemon.data_dir
    if any(case.settled for case in cases.values()):
        context.tell("settling what was frozen")
        settle_pool(data)
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
        "dropped from the page cache; `settled` was frozen by a second snapshot and settled then. "
        f"{method_of_turns(scale, context)}"
    )
    return Section("Reads in order, after a snapshot", method, (*warm, *cold))


def settle_pool(path: Path) -> None:
    """Settle all that is scattered in the frozen layers of a pool that nobody has open: at once,
    where the daemon takes minutes."""
    background = Background()
    pool = LocalPool.open(path, background.spawn)
    reclaimer, settler = Reclaimer(pool.registry), Settler(pool.registry)
    pool.registry.on_garbage = lambda: background.spawn(reclaimer.run())
    for _ in range(2):
        run_inline(settler.look())
    while run_inline(settler.step()).more:
        background.run()
    background.run()
    run_inline(pool.close_all())
    pool.release()


def _write_again(daemon: Daemon, case: _Case, scale: Scale, context: BenchContext) -> None:
    """Make a volume all of whose blocks were written after its snapshot."""
    name, size = case.volume, scale.size_bytes
    context.tell(f"making a volume that is written again: {name}")
    served = daemon.volume(name, size)
    fill(served, size, context.placement)
    daemon.bock("snapshot", "create", name, f"{name}-before")
    job = Job(case.mode, BLOCK_SIZE, WRITE_DEPTH, size, io_bytes=size)
    outcome = run_job(job, served.uri, core=context.placement.client)
    if outcome.operations != size // BLOCK_SIZE:
        raise BenchError(f"fio wrote {outcome.operations} blocks instead of {size // BLOCK_SIZE}")
    if case.settled:
        daemon.bock("snapshot", "create", name, f"{name}-after")
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
    contestants = [reader("written again", _CASES[row].volume), reader(NONE, NONE_NAME)]
    turns = in_turn(row, contestants, scale, context, watched=not _CASES[row].cold)
    return turns.against(NONE, KEPT)
