"""Random schedules of several gateways on one log; and that leaving out a rule is noticed.

python -m tests.drivers.rbd.schedules --seed 1000 --schedules 5000      # more of them
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.errors import BockdError

from .mutations import MUTATIONS
from .schedules import ViolationError, World, play, unanswered

SCHEDULES = 100
MOST = 400
"""Schedules in which a mutation must have been noticed; the rarest one was after 66."""


def test_gateways_agree_whatever_happens(tmp_path: Path) -> None:
    for seed in range(SCHEDULES):
        play(World(seed, tmp_path / "world"))


def test_without_trouble_no_update_fails(tmp_path: Path) -> None:
    for seed in range(SCHEDULES // 3):
        play(World(seed, tmp_path / "world", trouble=0, dump_every=20))


def test_what_an_update_finds_is_final(tmp_path: Path) -> None:
    for seed in range(SCHEDULES):
        play(unanswered(seed, tmp_path / "world"))


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_rule_that_is_left_out_is_missed(
    tmp_path: Path, mutation: Callable[[int, Path], World]
) -> None:
    for seed in range(MOST):
        try:
            mutation(seed, tmp_path / "world").run()
        except (ViolationError, BockdError):
            return
        shutil.rmtree(tmp_path / "world")
    pytest.fail(f"not noticed in {MOST} schedules")
