"""What the daemon takes: memory, the time to start, a snapshot of a volume that has many."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.apicost import make_pool
from bench.fio import Job, run_job
from bench.results import Comparison, Section, Target
from bench.servers import bockd_daemon
from bench.snapshotcost import OpenPool, open_pool
from bench.turns import Field, Scale
from bockd.engine.volume import Volume
from bockd.model import BLOCK_SIZE, GIB, TIB, VolumeId

IDLE_ROW, OPEN_ROW = "memory-idle", "memory-1tib-scattered"
START_ROW = "start-with-many-volumes"
SNAPSHOT_ROW = "snapshot-time-many-snapshots"
ROWS = (IDLE_ROW, OPEN_ROW, START_ROW, SNAPSHOT_ROW)

IDLE_MIB, OPEN_MIB = 60.0, 64.0
"""What is allowed: to a daemon that does nothing, and for the volume more."""
SNAPSHOT_PAIRS = 25
STARTS = 3

_PIECE = memoryview(bytes(range(1, 256)) * 17)[:BLOCK_SIZE]


def measure_footprint(scale: Scale, ground: Field, rows: Sequence[str] = ROWS) -> Section:
    """The rows that are asked for."""
    found: list[Comparison] = []
    if IDLE_ROW in rows or OPEN_ROW in rows:
        found += _memory(scale, ground)
    if START_ROW in rows:
        found.append(_start(scale.many_volumes, ground))
    if SNAPSHOT_ROW in rows:
        found.append(_snapshots(scale.many_snapshots, ground))
    method = (
        "Memory is what the daemon's process has for itself (RssAnon and RssShmem); pages of "
        "files, the index among them, belong to the page cache. The volume of 1 TiB has "
        f"{scale.scattered_bytes >> 20} MiB of it written, in single blocks of 4 KiB at random "
        "places, at depth 32 through one connection; what it takes is what there is after that, "
        "less the idle daemon's. Starting: from the process to its "
        f"last socket, {STARTS} times. Snapshots: the engine in one process, {SNAPSHOT_PAIRS} "
        "pairs."
    )
    return Section("What the daemon takes", method, tuple(one for one in found if one.row in rows))


def own_memory_mib(pid: int) -> float:
    """Resident memory of a process that is no file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    kibibytes = re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+)", status, re.M)
    return sum(int(one) for one in kibibytes) / 1024


def _memory(scale: Scale, ground: Field) -> list[Comparison]:
    ground.tell(f"{IDLE_ROW}, {OPEN_ROW}")
    size = 1 * TIB
    job = Job("randwrite", BLOCK_SIZE, 32, size, io_bytes=scale.scattered_bytes)
    idle, opened = [], []
    for number in range(min(scale.rounds, STARTS)):
        with bockd_daemon(ground.directory / f"memory-{number}", ground.placement) as daemon:
            idle.append(own_memory_mib(daemon.pid))
            served = daemon.volume("large", size)
            run_job(job, served.uri, core=ground.placement.client)
            opened.append(own_memory_mib(daemon.pid) - idle[-1])
            daemon.bock("volume", "delete", "large")
    return [
        _allowed(IDLE_ROW, "idle", idle, IDLE_MIB),
        _allowed(OPEN_ROW, "more with the volume", opened, OPEN_MIB),
    ]


def _allowed(row: str, what: str, values: Sequence[float], most: float) -> Comparison:
    allowed = (most,) * len(values)
    target = Target(1.0, at_most=True)
    return Comparison(row, what, f"{most:g} MiB", "MiB", tuple(values), allowed, target)


def _start(volumes: int, ground: Field) -> Comparison:
    ground.tell(f"{START_ROW}: making {volumes:,} volumes")
    full, empty = ground.directory / "many", ground.directory / "none"
    make_pool(full, volumes)
    times: dict[Path, list[float]] = {full: [], empty: []}
    for _ in range(STARTS):
        for directory, found in times.items():
            began = time.perf_counter()
            with bockd_daemon(directory, ground.placement):
                found.append((time.perf_counter() - began) * 1000)
    return Comparison(
        START_ROW, f"{volumes:,} volumes", "none", "ms", tuple(times[full]), tuple(times[empty])
    )


def _snapshots(snapshots: int, ground: Field) -> Comparison:
    ground.tell(f"{SNAPSHOT_ROW}: making {snapshots:,} snapshots")
    with open_pool(ground.directory / "snapshots") as pool:
        many, few = pool.volume("many", 1 * GIB), pool.volume("few", 1 * GIB)
        for number in range(snapshots):
            _snapshot(pool, many, f"early-{number}")
        pairs = []
        for number in range(SNAPSHOT_PAIRS):
            names = [(many, f"many-{number}"), (few, f"few-{number}")]
            times = {}
            for volume, name in names if number % 2 == 0 else reversed(names):
                times[volume] = _snapshot(pool, volume, name)
            pairs.append((times[many], times[few]))
    slow, fast = zip(*pairs, strict=True)
    assert statistics.median(fast) > 0
    return Comparison(
        SNAPSHOT_ROW,
        f"{snapshots:,} before it",
        "few before it",
        "ms",
        slow,
        fast,
        Target(1.5, at_most=True),
        of_medians=True,
    )


def _snapshot(pool: OpenPool, volume: Volume, name: str) -> float:
    """Write a block, and the milliseconds that a snapshot then takes."""
    pool.write(volume, 0, _PIECE)
    pool.settle(volume)
    owner = VolumeId(volume.durability.record.id)
    began = time.perf_counter()
    pool.run(pool.pool.create_snapshot(owner, name))
    return (time.perf_counter() - began) * 1000
