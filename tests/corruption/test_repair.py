"""`check --repair` of a damaged index takes nothing that the damaged entry may have shown: with the
index as it was before, all is there again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.corruption.__main__ import complaints_of_repair, memory
from tests.corruption.damages import all_damages, sample
from tests.corruption.judge import judge_all
from tests.corruption.specimen import Truth, make_specimen

SEED = int(time.time())

TABLES = ("leaves", "cells", "maps", "layers", "volumes", "snapshots")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(prefix="repair-", dir=memory()) as path:
        yield Path(path)


@pytest.fixture(scope="module", params=["closed", "killed"])
def truth(request: pytest.FixtureRequest, scratch: Path) -> Truth:
    return make_specimen(scratch / request.param, killed=request.param == "killed")


def test_what_damaged_entries_may_show_is_left_alone(truth: Truth, scratch: Path) -> None:
    """Whatever table the entry is of, and be it the key that is wrong."""
    random = Random(SEED)
    damages = [one for one in all_damages(truth, random) if one.part == "index"]
    entries = [one for one in damages if one.kind.split(":")[0] in TABLES]
    found = []
    for damage, verdict in judge_all(truth, sample(entries, random, each=1), scratch, repair=True):
        wrong = complaints_of_repair(truth, verdict)
        found += [f"{damage.kind}, {damage.what}: {problem}" for problem in wrong]
    assert not found, f"seed {SEED}: " + "\n".join(found)
