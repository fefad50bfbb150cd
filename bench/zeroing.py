"""Zeros that take their room at once (NBD_CMD_FLAG_NO_HOLE), and who else is served meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.fresh import EmptyPeer, EmptyVolume, Fresh
from bench.nbdclient import seconds_of
from bench.processes import BenchError
from bench.quiet import Watch, quiet_rounds
from bench.results import Comparison, Section, Target
from bench.servers import EXPORT, NBDKIT_FILE, Daemon, Served, bockd_daemon
from bench.throughput import fill
from bench.turns import BenchContext, Scale, in_turn, method_of_turns, timed
from bockd.model import BLOCK_SIZE

TIME_ROW, NEIGHBOUR_ROW = "zeroes-no-hole", "zeroes-no-hole-neighbour-p99"
ROWS = (TIME_ROW, NEIGHBOUR_ROW)
TIME, PATIENCE = Target(3.0, at_most=True), Target(2.0, at_most=True)


def measure_zeroing(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    size, core = scale.zeroed_bytes, context.placement.client
    comparisons: list[Comparison] = []
    with bockd_daemon(context.directory / "zero", context.placement) as daemon:
        if TIME_ROW in rows:
            job = Job("write", BLOCK_SIZE, 1, size)
            contestants: list[Fresh] = [
                _ZeroedVolume(daemon, job, context),
                _ZeroedPeer(NBDKIT_FILE, job, context),
            ]
            turns = in_turn(
                TIME_ROW, [one.contestant() for one in contestants], scale, context, unit="s"
            )
            comparisons.append(turns.against(NBDKIT_FILE, TIME))
        if NEIGHBOUR_ROW in rows:
            comparisons.append(_neighbour(daemon, scale, context, size, core))
    method = (
        f"NBD_CMD_WRITE_ZEROES of {size >> 20} MiB with NBD_CMD_FLAG_NO_HOLE in one request, where "
        "nothing is yet, until it is acknowledged. The neighbour has another volume of the same "
        "daemon: 99 of 100 of its 4 KiB random reads at depth 1 take no longer, beside such "
        f"requests one after another, and alone; {method_of_turns(scale, context)}"
    )
    return Section("Zeros that take their room", method, tuple(comparisons))


class _ZeroedVolume(EmptyVolume):
    def run(self, served: Served) -> Outcome:
        return _zero(served, self.job, self.context)


class _ZeroedPeer(EmptyPeer):
    def run(self, served: Served) -> Outcome:
        return _zero(served, self.job, self.context)


def _zero(served: Served, job: Job, context: BenchContext) -> Outcome:
    core = context.placement.client
    return timed(seconds_of("allocate", served.uri, job.size_bytes, core=core))


def _neighbour(
    daemon: Daemon, scale: Scale, context: BenchContext, size: int, core: int | None
) -> Comparison:
    neighbour = daemon.volume(EXPORT, scale.size_bytes)
    fill(neighbour, scale.size_bytes, context.placement)
    job = Job("randread", BLOCK_SIZE, 1, scale.size_bytes, seconds=scale.seconds)

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        context.tell(f"{NEIGHBOUR_ROW}: round {number + 1}")
        with watch.over(neighbour.pid):
            alone = run_job(job, neighbour.uri, core=core).p99_us
        name = f"zeroed-{number}"
        with _zeroing(daemon.volume(name, size), size, core):
            beside = run_job(job, neighbour.uri, core=core).p99_us
        daemon.bock("volume", "delete", name)
        write_back(neighbour.directory)
        return beside, alone

    rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    beside, alone = zip(*[one.values for one in rounds], strict=True)
    shares = tuple(one.foreign_share for one in rounds)
    return Comparison(
        NEIGHBOUR_ROW, "beside zeros", "alone", "us", beside, alone, PATIENCE, foreign_shares=shares
    )


@contextmanager
def _zeroing(served: Served, size: int, core: int | None) -> Iterator[None]:
    """Zero all of an export again and again for the duration of the context. Raises BenchError when
    that fails."""
    ending = threading.Event()
    failed: list[BenchError] = []

    def run() -> None:
        try:
            while not ending.is_set():
                seconds_of("allocate", served.uri, size, core=core)
        except BenchError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    if failed:
        raise failed[0]
