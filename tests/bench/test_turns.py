"""Contestants in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fio import Outcome
from bench.processes import TICK_SECONDS, place, serving
from bench.servers import Served
from bench.turns import BenchContext, Contestant, Scale, in_turn
from bockd.model import MIB

SCALE = Scale(rounds=2, seconds=0.1, size_bytes=1 * MIB, repeats=0)
OPERATIONS = 1000


def test_a_server_whose_time_is_too_short_to_tell_has_used_a_tick(tmp_path: Path) -> None:
    """nbdkit, which nobody asks for anything: the ratio of two such is one, and no error."""
    address = tmp_path / "nbd.sock"
    command = ["nbdkit", "--foreground", f"--unix={address}", "null"]
    with serving(command, address=address, core=None, log=tmp_path / "log") as pid:
        idle = Served("idle", pid, "", tmp_path, "")

        def contestant(name: str) -> Contestant:
            return Contestant(name, lambda _: Outcome(OPERATIONS, 1.0), prepare=lambda: idle)

        contestants = [contestant("one"), contestant("other")]
        turns = in_turn("row", contestants, SCALE, BenchContext(tmp_path, place(), lambda _: None))

    found = turns.cpu_against("other")
    assert found.ratio.median == 1.0
    assert found.subject_values == pytest.approx((TICK_SECONDS / OPERATIONS * 1e6,) * 2)
