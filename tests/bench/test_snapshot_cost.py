"""A snapshot and a clone cost the same for any size of volume, and copy no leaf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.cli import DEFAULT_DIRECTORY
from bench.snapshotcost import (
    LARGE_BYTES,
    SMALL_BYTES,
    count_leaves,
    time_copies,
)

PAIRS = 25
"""What else the machine does only adds to a time, so the fastest of this many are compared: on a
busy machine their medians differed by 1.7."""

LEAVES = 10_000
"""A copy of a single one is noticed. To free the blocks of ten times as many took half a minute."""


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a disk's file system, gone afterwards."""
    with TemporaryDirectory(dir=DEFAULT_DIRECTORY) as path:
        yield Path(path)


def test_snapshot_and_clone_take_the_same_time_for_any_size(disk: Path) -> None:
    pairs = time_copies(disk, (SMALL_BYTES, LARGE_BYTES), PAIRS)

    def ratio(times: list[tuple[float, float]]) -> float:
        return min(large for _, large in times) / min(small for small, _ in times)

    assert ratio([(small.snapshot, large.snapshot) for small, large in pairs]) <= 1.5
    assert ratio([(small.clone, large.clone) for small, large in pairs]) <= 1.5


def test_copies_of_a_scattered_volume_copy_no_leaf(disk: Path) -> None:
    counts = count_leaves(disk, LEAVES)

    assert counts.before == LEAVES
    assert counts.after_snapshot == counts.before
    assert counts.after_clone == counts.before
