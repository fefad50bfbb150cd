"""bockd and its peers under fio, side by side.

All servers run at once, each with an image that was filled in the same way; idle ones use no
processor. In each round every server is measured once, in an order that is reversed from round to
round, and the ratios are those within a round. After a run that writes, the server's files are
written back before the next run begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.files import settle
from bench.fio import Job, run_job
from bench.processes import BenchError, Placement
from bench.quiet import MAX_FOREIGN_SHARE, Watch, quiet_rounds
from bench.results import Comparison, Section, Target
from bench.servers import PEERS, QCOW2_IO_URING, QCOW2_THREADS, Serve, Served, serve_bockd

KIB = 1024
FILL_BLOCK_BYTES = 64 * KIB
FILL_DEPTH = 4

Tell = Callable[[str], None]
"""Takes what is being done, for whoever watches."""


@dataclass(frozen=True)
class Row:
    """One workload, and what bockd should reach against whom."""

    name: str
    mode: str
    depth: int
    block_bytes: int = 4 * KIB
    targets: Mapping[str, Target] = field(default_factory=dict)

    def job(self, size_bytes: int, seconds: float) -> Job:
        return Job(self.mode, self.block_bytes, self.depth, size_bytes, seconds=seconds)

    @property
    def writes(self) -> bool:
        return "write" in self.mode


TWICE_QEMU = {QCOW2_THREADS: Target(2.0), QCOW2_IO_URING: Target(2.0)}
"""Whichever way qemu-nbd does its input and output."""

ROWS = (
    Row("4k-randread-qd1", "randread", 1),
    Row("4k-randread-qd32", "randread", 32, targets=TWICE_QEMU),
    Row("4k-randwrite-qd1", "randwrite", 1),
    Row("4k-randwrite-qd32", "randwrite", 32, targets=TWICE_QEMU),
)
"""Writes are overwrites: the image is full."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each run."""
    size_bytes: int
    """Of each image."""
    repeats: int
    """Rounds of each row that may be measured again because others were at work."""


@dataclass(frozen=True)
class Field:
    """Where it is measured: the directory of the data, and the cores."""

    directory: Path
    placement: Placement
    tell: Tell


def measure_throughput(
    rows: Sequence[Row], peers: Sequence[str], scale: Scale, ground: Field
) -> tuple[Section, dict[str, str]]:
    """All rows against all peers, and the setting that each server ran with."""
    with ExitStack() as stack:
        contestants = [_enter(stack, serve_bockd, "bockd", scale, ground)]
        for name in peers:
            try:
                contestants.append(_enter(stack, PEERS[name].serve, name, scale, ground))
            except BenchError as error:
                if not PEERS[name].optional:
                    raise
                ground.tell(f"{name} does not run here: {error}")
        comparisons = [
            comparison
            for row in rows
            for comparison in _measure_row(row, contestants, scale, ground)
        ]
        settings = {served.name: served.setting for served in contestants}
    return Section("Against other servers", _method(scale, ground), tuple(comparisons)), settings


def _method(scale: Scale, ground: Field) -> str:
    return (
        f"fio's nbd engine over a Unix socket, one connection, {scale.seconds:g} s a run on an "
        f"image of {scale.size_bytes >> 20} MiB filled by writes of 64 KiB; {ground.placement}. "
        f"{scale.rounds} rounds with the servers in turn, the order reversed each time; ratios are "
        "those within a round. A round in which other processes took more than "
        f"{MAX_FOREIGN_SHARE:.0%} of a core during a run is measured again."
    )


def fill(
    served: Served, size_bytes: int, placement: Placement, block_bytes: int = FILL_BLOCK_BYTES
) -> None:
    """Write all of an export; as it is here every server's image is filled."""
    job = Job("write", block_bytes, FILL_DEPTH, size_bytes, io_bytes=size_bytes)
    run_job(job, served.uri, core=placement.client)
    settle(served.directory)


def _enter(stack: ExitStack, serve: Serve, label: str, scale: Scale, ground: Field) -> Served:
    ground.tell(f"starting {label} and filling its image")
    directory = ground.directory / label.replace(" ", "-")
    served = stack.enter_context(serve(directory, scale.size_bytes, ground.placement))
    fill(served, scale.size_bytes, ground.placement)
    return served


def _measure_row(
    row: Row, contestants: Sequence[Served], scale: Scale, ground: Field
) -> list[Comparison]:
    job = row.job(scale.size_bytes, scale.seconds)

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        ground.tell(f"{row.name}: round {number + 1}")
        return _one_round(row, job, contestants, ground, watch, number)

    rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    columns = list(zip(*[one.values for one in rounds], strict=True))
    ours = contestants[0]
    return [
        Comparison(
            row=row.name,
            subject=ours.name,
            baseline=peer.name,
            unit="IOPS",
            subject_values=columns[0],
            baseline_values=column,
            target=row.targets.get(peer.name),
            foreign_shares=tuple(one.foreign_share for one in rounds),
        )
        for peer, column in zip(contestants[1:], columns[1:], strict=True)
    ]


def _one_round(
    row: Row, job: Job, contestants: Sequence[Served], ground: Field, watch: Watch, number: int
) -> tuple[float, ...]:
    """One run of each, in their order or, in odd rounds, the other way round."""
    values: dict[int, float] = {}
    order = range(len(contestants))
    for index in order if number % 2 == 0 else reversed(order):
        served = contestants[index]
        with watch.over(served.pid):
            values[index] = run_job(job, served.uri, core=ground.placement.client).iops
        if row.writes:
            settle(served.directory)
    return tuple(values[index] for index in order)
