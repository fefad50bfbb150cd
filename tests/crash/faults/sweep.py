"""Which positions a scenario has, and what is made to fail at which."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

from tests.crash.faults.apart import FaultNotMasteredError, play
from tests.crash.faults.mounted import Fault, FaultyDisk, How
from tests.crash.faults.subject import Outcome

FINAL = frozenset({"write journal", "sync journal", "sync layers"})
"""Where a single fault may be final for a volume; at a sync of a journal it must be."""

ONCE = (How.EIO_ONCE, How.ENOSPC_ONCE)


class Positions:
    """Of the scenario when nothing fails: 1 and up, by kind."""

    def __init__(self, disk: FaultyDisk) -> None:
        self.kinds = play(disk, None).positions
        self.of_kind: dict[str, list[int]] = defaultdict(list)
        for at, kind in enumerate(self.kinds, 1):
            self.of_kind[kind].append(at)

    def everywhere(self) -> Iterator[Fault]:
        """Every fault at every position."""
        for at in range(1, len(self.kinds) + 1):
            for how in How:
                yield Fault(at, how)

    def sample(self, chance: random.Random, count: int) -> Iterator[Fault]:
        """Every fault at so many positions of each kind, chosen anew for each."""
        for where in self.of_kind.values():
            for how in How:
                for at in chance.sample(where, min(count, len(where))):
                    yield Fault(at, how)

    def master(self, disk: FaultyDisk, fault: Fault) -> Outcome:
        """Run the scenario with a fault. FaultNotMasteredError, naming the position."""
        kind = self.kinds[fault.at - 1]
        try:
            outcome = play(disk, fault)
            failed = outcome.failed_volumes
            if fault.how is How.FULL:
                assert not failed, f"{failed} failed on a full disk"
            if fault.how in ONCE:
                assert not failed or kind in FINAL, f"{failed} failed"
                assert failed or kind != "sync journal", "a failed sync was not final"
        except AssertionError as error:
            again = f"python -m tests.crash.faults --at {fault.at} --how {fault.how.name}"
            raise FaultNotMasteredError(f"{kind}, {again}: {error}") from error
        return outcome
