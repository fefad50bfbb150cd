"""Contestants measured in turn, round by round, and what comes of it: comparisons.

In each round every contestant is measured once, in an order that is reversed from round to round;
the ratios are those within a round. A server's processor time is taken with every run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.fio import Outcome
from bench.processes import TICK_SECONDS, Placement, cpu_seconds
from bench.quiet import MAX_FOREIGN_SHARE, Watch, quiet_rounds
from bench.results import Comparison, Target
from bench.servers import Served
from bockd.model import GIB, MIB

if TYPE_CHECKING:
    from bench.cephcluster import LentCluster

Tell = Callable[[str], None]
"""Takes what is being done, for whoever watches."""


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
    many_volumes: int = 10_000
    """In the pool whose daemon is started."""
    many_snapshots: int = 1_000
    """Of the volume that is snapshotted once more."""
    most_snapshots: int = 100
    """Through which is read."""
    trim_bytes: int = 100 * GIB
    many_trims: int = 8_192
    """Of 128 MiB each."""
    pieces: int = 16_384
    """Of an image whose data lies scattered, so that its map is what counts."""
    zeroed_bytes: int = 1 * GIB
    """In one request."""
    wide_blocks: int = 32_768
    """Written and read all over a volume of 256 GiB."""
    listed_volumes: int = 5_000
    """In one answer of the API."""
    clones: int = 20
    """That boot at once."""
    scattered_snapshot_bytes: int = 400 * MIB
    """In single blocks of 4 KiB, of the snapshot that is deleted."""
    scattered_bytes: int = 1 * GIB
    """Written in single blocks all over the volume whose memory is measured."""


@dataclass(frozen=True)
class BenchContext:
    """Where it is measured: the directory of the data, and the cores."""

    directory: Path
    placement: Placement
    tell: Tell
    cluster: LentCluster | None = None
    """Of Ceph, which sections share; without it each runs one of its own."""


def timed(seconds: float, operations: int = 1) -> Outcome:
    """Return the outcome of a row whose unit is seconds, where less is better."""
    return Outcome(operations, seconds)


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Contestant:
    """Who is measured."""

    name: str
    run: Callable[[Served], Outcome]
    """What is measured."""
    prepare: Callable[[], Served]
    """Before each run: the server, in the state that the run begins with."""
    after: Callable[[], None] = _nothing
    """After each run, unmeasured: bring the data to the disk, take things away."""


@dataclass(frozen=True)
class Turns:
    """What each contestant reached in each round; rates are those of `Outcome`."""

    row: str
    unit: str
    rates: dict[str, tuple[float, ...]]
    cpu: dict[str, tuple[float, ...]]
    """Processor seconds of the server for a million operations."""
    foreign_shares: tuple[float, ...] = field(default=())

    @property
    def subject(self) -> str:
        """The first contestant."""
        return next(iter(self.rates))

    def against(
        self, baseline: str, target: Target | None = None, *, best_of: Sequence[str] = ()
    ) -> Comparison:
        """Compare the subject's rates with another contestant's."""
        return Comparison(
            row=self.row,
            subject=self.subject,
            baseline=baseline,
            unit=self.unit,
            subject_values=self.rates[self.subject],
            baseline_values=self.rates[baseline],
            target=target,
            foreign_shares=self.foreign_shares,
            best_of=tuple(best_of),
        )

    def best_of(self, names: Sequence[str]) -> str:
        """Return the fastest of those of `names` that took part, by its median."""
        return max(
            (name for name in names if name in self.rates),
            key=lambda name: statistics.median(self.rates[name]),
        )

    def cpu_against(self, baseline: str, target: Target | None = None) -> Comparison:
        """Compare the server's processor time for a million operations with another's."""
        return Comparison(
            row=f"{self.row}-cpu",
            subject=self.subject,
            baseline=baseline,
            unit="CPU s per million",
            subject_values=self.cpu[self.subject],
            baseline_values=self.cpu[baseline],
            target=target,
            foreign_shares=self.foreign_shares,
        )


def in_turn(
    row: str,
    contestants: Sequence[Contestant],
    scale: Scale,
    context: BenchContext,
    unit: str = "IOPS",
    *,
    watched: bool = True,
) -> Turns:
    """Measure all contestants in each round. Not `watched`, rounds count whatever else ran: where a
    contestant starts servers of its own, they would be taken for others."""

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        context.tell(f"{row}: round {number + 1}")
        found: dict[str, tuple[float, float]] = {}
        for one in contestants if number % 2 == 0 else reversed(contestants):
            found[one.name] = _run(one, watch if watched else None)
        return tuple(value for one in contestants for value in found[one.name])

    rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    columns = list(zip(*[one.values for one in rounds], strict=True))
    names = [one.name for one in contestants]
    return Turns(
        row,
        unit,
        rates=dict(zip(names, columns[0::2], strict=True)),
        cpu=dict(zip(names, columns[1::2], strict=True)),
        foreign_shares=tuple(one.foreign_share for one in rounds) if watched else (),
    )


def _run(contestant: Contestant, watch: Watch | None) -> tuple[float, float]:
    """The rate, and processor seconds for a million operations."""
    served = contestant.prepare()
    before = cpu_seconds(served.pid)
    with nullcontext() if watch is None else watch.over(served.pid):
        outcome = contestant.run(served)
    # A short run may take less than the kernel's clock tells from nothing.
    used = max(cpu_seconds(served.pid) - before, TICK_SECONDS)
    contestant.after()
    return outcome.rate, used / outcome.operations * 1e6


def method_of_turns(scale: Scale, context: BenchContext) -> str:
    """Describe how `in_turn` measures, in sentences, for a report."""
    return (
        f"{context.placement}. {scale.rounds} rounds with the contestants in turn, the order "
        "reversed each time; ratios are those within a round. A round in which other processes "
        f"took more than {MAX_FOREIGN_SHARE:.0%} of a core during a run is measured again."
    )
