"""Random writes just after a snapshot, against the same writes just before it.

A pair is: a window of writes to blocks that the volume's head holds (overwrites in place), a
snapshot, and the same window again, block for block. After the snapshot the new head holds
nothing, no block is met twice in a window, and so every write of it is a redirect. What the new
head then occupies is held against what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.files import occupied_bytes, settle
from bench.fio import Job, run_job
from bench.processes import BenchError
from bench.quiet import Watch, quiet_rounds
from bench.results import Comparison, Section, Target
from bench.servers import EXPORT, Daemon, Served, bockd_daemon
from bench.throughput import Field, Scale, fill
from bockd.store.layout import Layout

BLOCK_BYTES = 4096
DEPTH = 32
SPEED_ROW = "after-snapshot-4k-randwrite-qd32"
SPACE_ROW = "after-snapshot-growth"
ROWS = (SPEED_ROW, SPACE_ROW)

WINDOW_SHARE = 4
"""A window writes one block in so many: enough that most leaves have old and new blocks."""


def measure_after_snapshot(scale: Scale, ground: Field) -> Section:
    """Both rows; they come from the same windows."""
    directory = ground.directory / "after-snapshot"
    ground.tell("after-snapshot: filling a volume")
    with bockd_daemon(directory, ground.placement) as daemon:
        daemon.bock("volume", "create", EXPORT, "--size", str(scale.size_bytes))
        served = Served("bockd", daemon.pid, daemon.uri(EXPORT), directory, "")
        fill(served, scale.size_bytes, ground.placement)
        volume = _Windows(daemon, served, scale.size_bytes, ground)
        volume.write()  # so that the first pair, too, overwrites what windows have written
        rounds = quiet_rounds(scale.rounds, scale.repeats, volume.pair)
    after, before, occupied, written = zip(*[one.values for one in rounds], strict=True)
    speed = Comparison(
        SPEED_ROW,
        "after",
        "before",
        "IOPS",
        after,
        before,
        Target(0.75),
        foreign_shares=tuple(one.foreign_share for one in rounds),
    )
    space = Comparison(
        SPACE_ROW, "occupied", "written", "bytes", occupied, written, Target(1.05, at_most=True)
    )
    return Section("Writes just after a snapshot", _method(scale), (speed, space))


def _method(scale: Scale) -> str:
    blocks = _window_blocks(scale.size_bytes)
    return (
        f"One volume of {scale.size_bytes >> 20} MiB, full. {scale.rounds} pairs of windows of "
        f"{blocks} random 4 KiB writes at depth {DEPTH}, each block once: overwrites of the head, "
        "then, after `bock snapshot create`, the same blocks again into the new head. Growth is "
        "what the new head's files occupy after that, against the bytes written."
    )


def _window_blocks(size_bytes: int) -> int:
    return size_bytes // BLOCK_BYTES // WINDOW_SHARE


class _Windows:
    """One served volume, and windows of writes to it."""

    def __init__(self, daemon: Daemon, served: Served, size_bytes: int, ground: Field) -> None:
        self._daemon = daemon
        self._served = served
        self._layout = Layout(daemon.data_dir)
        self._ground = ground
        self._blocks = _window_blocks(size_bytes)
        self._job = Job(
            "randwrite", BLOCK_BYTES, DEPTH, size_bytes, io_bytes=self._blocks * BLOCK_BYTES
        )

    def write(self) -> float:
        """One window; its IOPS. The data is on the disk when it returns."""
        outcome = run_job(self._job, self._served.uri, core=self._ground.placement.client)
        if outcome.operations != self._blocks:
            raise BenchError(f"fio wrote {outcome.operations} blocks instead of {self._blocks}")
        settle(self._served.directory)
        return outcome.iops

    def pair(self, number: int, watch: Watch) -> tuple[float, ...]:
        """After, before, bytes that the new head occupies, bytes written to it."""
        self._ground.tell(f"after-snapshot: pair {number + 1}")
        with watch.over(self._served.pid):
            before = self.write()
        known = set(self._layout.layer_segments())
        self._daemon.bock("snapshot", "create", EXPORT, f"pair-{number}")
        fresh = [one for one in self._layout.layer_segments() if one not in known]
        with watch.over(self._served.pid):
            after = self.write()
        return after, before, occupied_bytes(self._paths(fresh)), self._blocks * BLOCK_BYTES

    def _paths(self, segments: Sequence[tuple[int, int]]) -> list[Path]:
        return [self._layout.layers / f"{layer}.{number}" for layer, number in segments]
