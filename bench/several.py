"""Several at once: four connections to one volume, and four volumes of one daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.files import write_back
from bench.fio import Job, Outcome, run_jobs
from bench.results import Comparison, Section, Target
from bench.servers import Served, bockd_daemon
from bench.throughput import fill, verify
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import KIB

SEVERAL = 4
SAME_TOTAL = Target(1.0)
DEPTH = 32
VOLUMES = {"4-volumes-4k-randread-qd32": "randread", "4-volumes-4k-randwrite-qd32": "randwrite"}
CONNECTIONS = {
    "4-connections-4k-randread-qd32": "randread",
    "4-connections-4k-randwrite-qd32": "randwrite",
}
ROWS = (*VOLUMES, *CONNECTIONS)


def measure_several(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    directory = context.directory / "several"
    size = scale.size_bytes // SEVERAL
    comparisons: list[Comparison] = []
    with bockd_daemon(directory, context.placement) as daemon:
        volumes = [daemon.volume(f"v{number}", size) for number in range(SEVERAL)]
        for served in volumes:
            fill(served, size, context.placement)
        uris = [served.uri for served in volumes]

        def many(name: str, job: Job, targets: Sequence[str]) -> Contestant:
            def run(_: Served) -> Outcome:
                return run_jobs(job, targets, core=context.placement.client)

            return Contestant(
                name, run, prepare=lambda: volumes[0], after=lambda: write_back(directory)
            )

        for row in rows:
            mode = {**VOLUMES, **CONNECTIONS}[row]
            one = Job(mode, 4 * KIB, DEPTH, size, seconds=scale.seconds)
            alone = many("one", one, uris[:1])
            if row in VOLUMES:
                found = in_turn(row, [many("four volumes", one, uris), alone], scale, context)
                comparisons.append(found.against("one", SAME_TOTAL))
            else:
                four = Job(mode, 4 * KIB, DEPTH, size, seconds=scale.seconds, connections=SEVERAL)
                found = in_turn(
                    row, [many("four connections", four, uris[:1]), alone], scale, context
                )
                comparisons.append(found.against("one"))
        verify(uris[0], replace(scale, size_bytes=size), context)
    method = (
        f"The total of {SEVERAL} fio jobs at depth {DEPTH} each, against one job with one "
        f"connection to one volume. All clients share one core; {method_of_turns(scale, context)}"
    )
    return Section("Several at once", method, tuple(comparisons))
