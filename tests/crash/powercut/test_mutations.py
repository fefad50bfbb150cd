"""Power cuts with one thing left out that durability rests on: each is noticed."""

from __future__ import annotations

import pytest

from tests.crash.powercut.apart import HistoryFailedError, play
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.powercut.mutations import MUTATIONS
from tests.crash.powercut.scenario import CUTS_OF_A_RUN

NEEDS_A_SCENARIO = {
    "flush: the barrier covers only what came before",
    "seal: sync of the journal",
    "settled layer: sync",
}
"""What random histories notice too seldom, once in 150 power cuts or less, to be relied upon:
tests/crash/scenarios has a scenario by name for each, which fails without it."""

MOST_CUTS = 1500
"""In which each mutation must be found out. The seeds are fixed, so it either is or is not."""

FIRST_SEEDS = {
    "cells: a trim takes them out of the index": 31,
    "cells: the tail begins behind the end of the file": 45,
    "flush: joins only one that has not begun": 4,
    "grown layer: fsync": 25,
    "index: LMDB's sync of its meta page": 4,
    "index: what whole leaves became holes": 14,
    "sweep: only what the file had when it was opened": 7,
}
"""Where to begin with those that few histories notice: seeds that did when this was written. The
others come after, so a seed that does not any more costs time only."""


@pytest.mark.parametrize("missing", sorted(MUTATIONS.keys() - NEEDS_A_SCENARIO))
def test_the_laboratory_notices_what_is_missing(disk: PowerCutDisk, missing: str) -> None:
    with MUTATIONS[missing]():
        histories = MOST_CUTS // CUTS_OF_A_RUN
        first = FIRST_SEEDS.get(missing, 0)
        for seed in (*range(first, histories), *range(first)):
            try:
                play(disk, seed, CUTS_OF_A_RUN)
            except HistoryFailedError:
                return
    pytest.fail(f"{MOST_CUTS} power cuts without '{missing}', and nothing noticed")
