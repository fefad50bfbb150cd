"""Random lives of a volume with write-back.

`python -m tests.drivers.writeback.lives --seed 1000 --lives 5000` plays more of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .lives import live
from .mutations import nothing

LIVES = 30
STEPS = 120


def test_nothing_that_was_promised_is_lost(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(LIVES):
        counts.update(live(seed, tmp_path / str(seed), nothing, STEPS).counts)
    assert counts["dirty"] > 20 * LIVES, "hardly anything was ever dirty"
    for end in ("kill", "cut", "loss", "close", "others", "broken"):
        assert counts[end], f"no {end} in {LIVES} lives"
