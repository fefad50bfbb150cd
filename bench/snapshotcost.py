"""What a snapshot and a clone cost: the same time for any size of volume, and no copied leaf.

Measured on the engine itself, in this process, since a frontend would add the same to both sides of
a ratio. Times are taken in pairs of a small and a large volume that hold the same data;
before each pair both are written to and flushed, so that every snapshot freezes a head that holds
something, and none is charged for the flush of data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.results import Comparison, Section, Target
from bench.turns import BenchContext, Scale
from bockd.drivers.local.format.leaf import LEAF_BYTES, LEAVES
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, GIB, KIB, MIB, TIB, VolumeId
from bockd.runtime.steps import Background, Steps, run_inline

SMALL_BYTES = 1 * GIB
LARGE_BYTES = 16 * TIB
WRITTEN_BYTES = 64 * MIB
SCATTERED_BLOCKS = 100_000
"""One to a leaf, over 98 GiB: more leaves than a snapshot could copy unnoticed."""

PAIRS_PER_ROUND = 5
"""They are short, and vary."""

SAME_TIME = Target(1.5, at_most=True)
SAME_COUNT = Target(1.0, at_most=True)
SNAPSHOT_ROW, CLONE_ROW = "snapshot-time-16tib", "clone-time-16tib"
SNAPSHOT_LEAVES_ROW, CLONE_LEAVES_ROW = "snapshot-leaves", "clone-leaves"
ROWS = (SNAPSHOT_ROW, CLONE_ROW, SNAPSHOT_LEAVES_ROW, CLONE_LEAVES_ROW)

_PIECE = memoryview(bytes(range(1, 256)) * 257)[: 64 * KIB]
_BLOCK = _PIECE[:BLOCK_SIZE]

T = TypeVar("T")


class OpenPool:
    """A pool for one thread: operations run on the spot, the engine's background work after."""

    def __init__(self, root: Path) -> None:
        self._background = Background()
        self.pool = LocalPool.open(root, self._background.spawn)

    def run(self, steps: Steps[T]) -> T:
        """Run an operation of the engine to its end."""
        return run_inline(steps)

    def volume(self, name: str, size_bytes: int) -> Volume:
        """Create a volume and open it."""
        record = self.run(self.pool.create_volume(name, size_bytes, None))
        return self.run(self.pool.registry.use_volume(record.id)).volume

    def write(self, volume: Volume, offset: int, data: memoryview) -> None:
        """Write, and do what that gave the background to do."""
        self.run(volume.write(offset, data))
        self._background.run()

    def checkpoint(self, volume: Volume) -> None:
        """Flush a volume and bring the index up to date."""
        self.run(volume.durability.checkpoint())
        self._background.run()

    def leaves(self) -> int:
        """Count the entries in the index's table of leaves."""
        with self.pool.index.reading() as txn:
            return txn.count(LEAVES)

    def close(self) -> None:
        """Close everything."""
        try:
            self._background.run()  # a checkpoint that has begun needs its volume open
            self.run(self.pool.close_all())
            self._background.run()
        finally:
            self.pool.release()


@contextmanager
def open_pool(root: Path) -> Iterator[OpenPool]:
    """Open a new pool, for as long as the context lasts."""
    pool = OpenPool(root)
    try:
        yield pool
    finally:
        pool.close()


@dataclass(frozen=True)
class Times:
    """How long one snapshot took, and one clone of it, in seconds."""

    snapshot: float
    clone: float


def time_copies(root: Path, sizes: Sequence[int], pairs: int) -> list[tuple[Times, ...]]:
    """Snapshot and clone volumes of several sizes in turn, `pairs` times: one tuple each time, in
    the order of `sizes`, measured forwards and backwards alternately."""
    with open_pool(root) as pool:
        volumes = [pool.volume(f"v{index}", size) for index, size in enumerate(sizes)]
        for volume in volumes:
            _write_spread(pool, volume)
        measured = []
        for number in range(pairs):
            for volume in volumes:
                pool.write(volume, number * MIB, _PIECE)
                pool.checkpoint(volume)
            times = {}
            order = range(len(volumes))
            for index in order if number % 2 == 0 else reversed(order):
                times[index] = time_one(pool, volumes[index], f"{index}-{number}")
            measured.append(tuple(times[index] for index in order))
        return measured


def _write_spread(pool: OpenPool, volume: Volume) -> None:
    """The same data for each volume: WRITTEN_BYTES in pieces, evenly over the smallest one."""
    pieces = WRITTEN_BYTES // len(_PIECE)
    for number in range(pieces):
        pool.write(volume, number * (SMALL_BYTES // pieces), _PIECE)


def time_one(pool: OpenPool, volume: Volume, label: str) -> Times:
    """Snapshot a volume, and clone the snapshot."""
    owner = VolumeId(volume.durability.record.id)
    began = time.perf_counter()
    snapshot = pool.run(pool.pool.create_snapshot(owner, f"snapshot-{label}"))
    between = time.perf_counter()
    pool.run(pool.pool.create_volume(f"clone-{label}", None, snapshot.id))
    return Times(between - began, time.perf_counter() - between)


@dataclass(frozen=True)
class LeafCounts:
    """Stored leaves before a snapshot, after it, and after a clone of it."""

    before: int
    after_snapshot: int
    after_clone: int


def count_leaves(root: Path, blocks: int) -> LeafCounts:
    """Scatter `blocks` blocks over a volume, no two in one leaf, and copy it."""
    with open_pool(root) as pool:
        volume = pool.volume("scattered", blocks * LEAF_BYTES)
        for number in range(blocks):
            pool.write(volume, number * LEAF_BYTES, _BLOCK)
        pool.checkpoint(volume)  # so that only the snapshot itself is seen
        before = pool.leaves()
        owner = VolumeId(volume.durability.record.id)
        snapshot = pool.run(pool.pool.create_snapshot(owner, "snapshot"))
        after_snapshot = pool.leaves()
        pool.run(pool.pool.create_volume("clone", None, snapshot.id))
        return LeafCounts(before, after_snapshot, pool.leaves())


def measure_snapshot_cost(scale: Scale, context: BenchContext) -> Section:
    """Measure all rows."""
    root, tell, pairs = context.directory, context.tell, PAIRS_PER_ROUND * scale.rounds
    tell("snapshot-time: volumes of 1 GiB and 16 TiB")
    pairs_of_times = time_copies(root / "times", (SMALL_BYTES, LARGE_BYTES), pairs)
    tell(f"snapshot-leaves: writing {SCATTERED_BLOCKS:,} scattered blocks")
    leaves = count_leaves(root / "leaves", SCATTERED_BLOCKS)
    comparisons = (
        _times_row(SNAPSHOT_ROW, [(a.snapshot, b.snapshot) for a, b in pairs_of_times]),
        _times_row(CLONE_ROW, [(a.clone, b.clone) for a, b in pairs_of_times]),
        _leaves_row(SNAPSHOT_LEAVES_ROW, "a snapshot", leaves.after_snapshot, leaves.before),
        _leaves_row(CLONE_LEAVES_ROW, "a clone", leaves.after_clone, leaves.after_snapshot),
    )
    method = (
        f"The engine in one process, volumes with the same {WRITTEN_BYTES // MIB} MiB written, "
        f"{pairs} pairs; the ratio of the medians counts. Leaves: entries of the index's table "
        f"of leaves, for a volume of 98 GiB with {SCATTERED_BLOCKS:,} blocks written, one in each."
    )
    return Section("What a snapshot and a clone cost", method, comparisons)


def _times_row(row: str, pairs: Sequence[tuple[float, float]]) -> Comparison:
    small, large = zip(*[(a * 1000, b * 1000) for a, b in pairs], strict=True)
    return Comparison(row, "16 TiB", "1 GiB", "ms", large, small, SAME_TIME, of_medians=True)


def _leaves_row(row: str, what: str, after: int, before: int) -> Comparison:
    return Comparison(row, f"after {what}", "before it", "leaves", (after,), (before,), SAME_COUNT)
