"""Whether the machine was ours while something was measured.

A neighbour that takes turns on a server's core does not slow all servers alike: one that keeps its
core busy loses half of it, one that sleeps between requests is woken first. So a round in which
others used too much is measured again, whatever it showed; the rule looks at their processor time
and never at a result.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.processes import cpu_seconds, kernel_cpu_seconds, machine_cpu_seconds

MAX_FOREIGN_SHARE = 0.2
"""Of one core. The kernel's own threads, which write back what a server wrote, are not others."""


class Watch:
    """Processor time that neither the server nor this benchmark used, run by run."""

    def __init__(self) -> None:
        self.worst_share = 0.0

    @contextmanager
    def over(self, server_pid: int) -> Iterator[None]:
        """Watch one run of a client against a server."""
        began, before = time.monotonic(), _foreign_seconds(server_pid)
        yield
        used, elapsed = _foreign_seconds(server_pid) - before, time.monotonic() - began
        self.worst_share = max(self.worst_share, used / elapsed)


def _foreign_seconds(server_pid: int) -> float:
    ours = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        ours += usage.ru_utime + usage.ru_stime
    return machine_cpu_seconds() - kernel_cpu_seconds() - cpu_seconds(server_pid) - ours


@dataclass(frozen=True)
class Round:
    """One value of each that is compared, in their order, and how disturbed it was."""

    values: tuple[float, ...]
    foreign_share: float


def quiet_rounds(
    count: int, repeats: int, measure: Callable[[int, Watch], tuple[float, ...]]
) -> list[Round]:
    """Measure until `count` rounds were undisturbed, or `repeats` more than that were made; the
    `count` least disturbed rounds, in the order in which they ran, so that on a machine that is
    never quiet there is a result, too. `measure` is told the round's number."""
    rounds: list[Round] = []
    quiet = 0
    for number in range(count + repeats):
        watch = Watch()
        rounds.append(Round(measure(number, watch), watch.worst_share))
        quiet += watch.worst_share <= MAX_FOREIGN_SHARE
        if quiet == count:
            break
    best = sorted(range(len(rounds)), key=lambda index: rounds[index].foreign_share)[:count]
    return [rounds[index] for index in sorted(best)]
