"""The file view compared with NBD: the same volume of one daemon through both frontends."""

from __future__ import annotations

from collections.abc import Sequence

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.results import Comparison, Section
from bench.servers import EXPORT, Served, bockd_daemon
from bench.throughput import fill, verify
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import KIB, MIB

FUSE, NBD = "bockd file view", "bockd"

JOBS = {
    "fuse-4k-randread-qd1": ("randread", 4 * KIB, 1),
    "fuse-4k-randread-qd32": ("randread", 4 * KIB, 32),
    "fuse-4k-randwrite-qd32": ("randwrite", 4 * KIB, 32),
    "fuse-1m-read-qd8": ("read", 1 * MIB, 8),
}
ROWS = tuple(JOBS)


def measure_file_view(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    directory, mount = context.directory / "fuse", context.directory / "view"
    comparisons: list[Comparison] = []
    with bockd_daemon(directory, context.placement, mount=mount) as daemon:
        served = daemon.volume(EXPORT, scale.size_bytes)
        fill(served, scale.size_bytes, context.placement)
        frontends = {FUSE: str(mount / "volumes" / EXPORT), NBD: served.uri}
        for row in rows:
            mode, block_bytes, depth = JOBS[row]
            job = Job(mode, block_bytes, depth, scale.size_bytes, seconds=scale.seconds)
            contestants = [
                _through(name, to, job, served, context) for name, to in frontends.items()
            ]
            comparisons.append(in_turn(row, contestants, scale, context).against(NBD))
        verify(frontends[FUSE], scale, context)
    method = (
        "fio's libaio engine with O_DIRECT on a file of the view, and its nbd engine on the same "
        f"volume's export; {method_of_turns(scale, context)}"
    )
    return Section("The file view", method, tuple(comparisons))


def _through(name: str, target: str, job: Job, served: Served, context: BenchContext) -> Contestant:
    def run(_: Served) -> Outcome:
        return run_job(job, target, core=context.placement.client)

    return Contestant(name, run, prepare=lambda: served, after=lambda: write_back(served.directory))
