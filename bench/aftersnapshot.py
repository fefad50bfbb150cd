"""Random writes just after a snapshot, against the same writes just before it.

A pair is: a volume that is filled anew, a window of random writes to it (overwrites in place), a
snapshot, and the same window again, block for block. After the snapshot the new head holds
nothing, no block is met twice in a window, and so every write of it is a redirect. What the new
head then occupies is held against what was written.

How fast an overwrite is depends on how large the writes were that the page cache got the block by:
the kernel keeps the pages of a large write together, and finding one of them takes longer. So the
pairs are made for three kinds of volumes: filled by writes of 64 KiB, of 1 MiB, as images and
copies are, and of 4 KiB.

A guest's file system flushes what it has written. One row has a flush after every 32 writes: then
what the kernel puts off at a first write has to be paid, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.files import occupied_bytes, write_back
from bench.fio import Job, run_job
from bench.processes import BenchError
from bench.quiet import Watch, quiet_rounds
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import Daemon, Served, bockd_daemon
from bench.throughput import fill, flushes_counted
from bench.turns import BenchContext, Scale
from bockd.drivers.local.format.layout import Layout
from bockd.model import MIB

BLOCK_BYTES = 4096
DEPTH = 32
SPACE_ROW = "after-snapshot-growth"


@dataclass(frozen=True)
class Kind:
    """What is written to which volumes."""

    fill_bytes: int
    flush_every: int = 0


SPEED_ROWS = {
    "after-snapshot-4k-randwrite-qd32-fill-64k": Kind(FILL_BLOCK_BYTES),
    "after-snapshot-4k-randwrite-qd32-fill-1m": Kind(MIB),
    "after-snapshot-4k-randwrite-qd32-fill-4k": Kind(BLOCK_BYTES),
    "after-snapshot-4k-randwrite-qd32-flush-32": Kind(FILL_BLOCK_BYTES, flush_every=32),
}
ROWS = (*SPEED_ROWS, SPACE_ROW)
_SPACE_FROM = ROWS[0]

KEPT = Target(0.9)
"""Of the speed before the snapshot, without flushes."""

WINDOW_SHARE = 4
"""A window writes one block in so many: enough that most leaves have old and new blocks."""


def measure_after_snapshot(
    scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS
) -> Section:
    """Measure the rows that are asked for. Growth comes from the same windows as the first fill's
    speed."""
    directory = context.directory / "after-snapshot"
    comparisons: list[Comparison] = []
    with bockd_daemon(directory, context.placement) as daemon:
        windows = _Windows(daemon, scale.size_bytes, context)
        for row, kind in SPEED_ROWS.items():
            asked = {row, SPACE_ROW} if row == _SPACE_FROM else {row}
            asked.intersection_update(rows)
            if asked:
                found = _measure_kind(windows, row, kind, scale)
                comparisons += [one for one in found if one.row in asked]
    return Section("Writes just after a snapshot", _method(scale), tuple(comparisons))


def _measure_kind(windows: _Windows, row: str, kind: Kind, scale: Scale) -> list[Comparison]:
    """The pairs of one kind: speed, and growth."""
    rounds = quiet_rounds(
        scale.rounds, scale.repeats, lambda number, watch: windows.pair(row, number, watch, kind)
    )
    after, before, occupied, written = zip(*[one.values for one in rounds], strict=True)
    shares = tuple(one.foreign_share for one in rounds)
    speed = Comparison(
        row,
        "after",
        "before",
        "IOPS",
        after,
        before,
        None if kind.flush_every else KEPT,
        foreign_shares=shares,
    )
    growth = Target(1.05, at_most=True)
    space = Comparison(SPACE_ROW, "occupied", "written", "bytes", occupied, written, growth)
    return [speed, space]


def _method(scale: Scale) -> str:
    blocks = _window_blocks(scale.size_bytes)
    return (
        f"{scale.rounds} volumes of {scale.size_bytes >> 20} MiB, filled by writes of the size "
        f"that the row's name ends in, or else of 64 KiB (`flush-32` is a flush after every 32 "
        f"writes). On each, {blocks} random 4 KiB writes at depth {DEPTH}, "
        "each block once: overwrites of the head; then, after `bock snapshot create`, the same "
        "blocks again into the new head. Growth is what the new head's files occupy after that, "
        "against the bytes written. Images and copies fill a volume by large writes; overwriting "
        "what 4 KiB writes made is cheaper for the kernel, so that is the harder comparison."
    )


def _window_blocks(size_bytes: int) -> int:
    return size_bytes // BLOCK_BYTES // WINDOW_SHARE


class _Windows:
    """Volumes of one daemon, and windows of writes to them."""

    def __init__(self, daemon: Daemon, size_bytes: int, context: BenchContext) -> None:
        self._daemon = daemon
        self._size_bytes = size_bytes
        self._layout = Layout(daemon.data_dir)
        self._ground = context
        self._blocks = _window_blocks(size_bytes)

    def _write(self, served: Served, flush_every: int) -> float:
        """One window; its IOPS. The data is on the disk when it returns."""
        job = Job(
            "randwrite",
            BLOCK_BYTES,
            DEPTH,
            self._size_bytes,
            io_bytes=self._blocks * BLOCK_BYTES,
            flush_every=flush_every,
        )
        with flushes_counted(job, served) as ended:
            outcome = run_job(job, served.uri, core=self._ground.placement.client)
            ended.append(outcome)
        if outcome.operations != self._blocks:
            raise BenchError(f"fio wrote {outcome.operations} blocks instead of {self._blocks}")
        write_back(served.directory)
        return outcome.rate

    def pair(self, row: str, number: int, watch: Watch, kind: Kind) -> tuple[float, ...]:
        """Run one pair. Return the IOPS after and before the snapshot, the bytes that the new head
        occupies, and the bytes written to it."""
        name = f"{row}-{number}"
        self._ground.tell(f"after-snapshot: volume {name}")
        daemon = self._daemon
        served = daemon.volume(name, self._size_bytes)
        fill(served, self._size_bytes, self._ground.placement, kind.fill_bytes)
        with watch.over(served.pid):
            before = self._write(served, kind.flush_every)
        known = set(self._layout.layer_segments())
        daemon.bock("snapshot", "create", name, f"{name}-before")
        fresh = [one for one in self._layout.layer_segments() if one not in known]
        with watch.over(served.pid):
            after = self._write(served, kind.flush_every)
        occupied = occupied_bytes(self._paths(fresh))
        daemon.bock("volume", "delete", name)
        daemon.bock("snapshot", "delete", f"{name}-before")
        return after, before, occupied, self._blocks * BLOCK_BYTES

    def _paths(self, segments: Sequence[tuple[int, int]]) -> list[Path]:
        return [self._layout.layers / f"{layer}.{number}" for layer, number in segments]
