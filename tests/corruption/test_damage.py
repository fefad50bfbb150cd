"""A damage of every kind. `make damage` does all of them; it prints its seed, as these do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.corruption.__main__ import complaints, memory
from tests.corruption.damages import Damage, all_damages, sample
from tests.corruption.judge import Verdict, judge, judge_all, with_answers
from tests.corruption.specimen import Truth, make_specimen

SEED = int(time.time())


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(prefix="damage-", dir=memory()) as path:
        yield Path(path)


@pytest.fixture(scope="module", params=["closed", "killed"])
def truth(request: pytest.FixtureRequest, scratch: Path) -> Truth:
    made = make_specimen(scratch / request.param, killed=request.param == "killed")
    return with_answers(made, scratch / "copy")


def test_an_undamaged_copy_is_right(truth: Truth, scratch: Path) -> None:
    verdict = judge(truth, Damage("none", "nothing", lambda _: None), scratch / "copy")
    assert verdict == Verdict("clean", right=[f"{kind} {node}" for kind, node in truth.content])


@pytest.mark.parametrize("part", ["index", "journal", "files"])
def test_damage_is_detected_repaired_or_refused(truth: Truth, scratch: Path, part: str) -> None:
    """Never other bytes, a traceback or a death; and others are served."""
    random = Random(SEED)
    damages = [one for one in all_damages(truth, random) if one.part == part]
    chosen = sample(damages, random, each=1)
    if truth.dirty and part != "journal":  # the rest is as in the closed pool, almost
        others = random.sample(chosen, 10)
        chosen = [one for one in chosen if one.kind.startswith("journal") or one in others]
    found = []
    for damage, verdict in judge_all(truth, chosen, scratch):
        wrong = complaints(truth, damage, verdict)
        found += [f"{damage.kind}, {damage.what}: {problem}" for problem in wrong]
    assert not found, f"seed {SEED}: " + "\n".join(found)
