"""What the daemon takes: memory, the time to start, copies of a volume that has many snapshots."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.apicost import make_pool
from bench.fio import Job, run_job
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import BOCKD, NBDKIT_FILE, RAW_THREADS, bockd_daemon
from bench.snapshotcost import SAME_TIME, OpenPool, open_pool, time_one
from bench.throughput import Fleet
from bench.turns import BenchContext, Scale
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, GIB, KIB, MIB, TIB, VolumeId

IDLE_ROW, OPEN_ROW, PEAK_ROW = "memory-idle", "memory-1tib-scattered", "memory-peak"
START_ROW = "start-with-many-volumes"
SNAPSHOT_ROW, CLONE_ROW = "snapshot-time-many-snapshots", "clone-time-many-snapshots"
ROWS = (IDLE_ROW, OPEN_ROW, PEAK_ROW, START_ROW, SNAPSHOT_ROW, CLONE_ROW)

IDLE_MIB, OPEN_MIB = 60.0, 64.0
"""What is allowed: to a daemon that does nothing, and for the volume more."""
PEAK_JOBS = (("randread", 4 * KIB, 128), ("randwrite", 4 * KIB, 128), ("write", 1 * MIB, 8))
PEAK_CONNECTIONS = 4
SNAPSHOT_PAIRS = 25
STARTS = 3

_PIECE = memoryview(bytes(range(1, 256)) * 17)[:BLOCK_SIZE]


def measure_footprint(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    found: list[Comparison] = []
    if IDLE_ROW in rows or OPEN_ROW in rows:
        found += _memory(scale, context)
    if PEAK_ROW in rows:
        found += _peak(scale, context)
    if START_ROW in rows:
        found.append(_start(scale, context))
    if SNAPSHOT_ROW in rows or CLONE_ROW in rows:
        found += _copies(scale.many_snapshots, context)
    method = (
        "Memory is what the daemon's process has for itself (RssAnon and RssShmem); pages of "
        "files, the index among them, belong to the page cache. The volume of 1 TiB has "
        f"{scale.scattered_bytes >> 20} MiB of it written, in single blocks of 4 KiB at random "
        "places, at depth 32 through one connection; what it takes is what there is after that, "
        "less the idle daemon's. The peak is the most that the server's process had resident, of "
        f"files too, after {scale.seconds:g} s each of 4 KiB random reads and writes at depth 128 "
        f"and 1 MiB writes at depth 8, over {PEAK_CONNECTIONS} connections. Starting: from the "
        f"process to its last socket, {min(scale.rounds, STARTS)} times; it serves NBD then, and "
        "imports its HTTP APIs in the background. Snapshots and clones: the "
        f"engine in one process, {SNAPSHOT_PAIRS} pairs; the ratio of the medians counts."
    )
    return Section("What the daemon takes", method, tuple(one for one in found if one.row in rows))


def own_memory_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB, without pages of files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kibibytes = re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+)", status, re.M)
    return sum(int(one) for one in kibibytes) / 1024


def peak_memory_mib(pid: int) -> float:
    """Return the most memory that a process ever had resident, in MiB, pages of files included."""
    found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def _memory(scale: Scale, context: BenchContext) -> list[Comparison]:
    context.tell(f"{IDLE_ROW}, {OPEN_ROW}")
    size = 1 * TIB
    job = Job("randwrite", BLOCK_SIZE, 32, size, io_bytes=scale.scattered_bytes)
    idle = []
    for number in range(min(scale.rounds, STARTS)):
        with bockd_daemon(context.directory / f"memory-{number}", context.placement) as daemon:
            daemon.bock("volume", "list")  # with the APIs, which are built when they are asked
            idle.append(own_memory_mib(daemon.pid))
            if number == 0:  # it varies little, and takes a while
                served = daemon.volume("large", size)
                run_job(job, served.uri, core=context.placement.client)
                opened = own_memory_mib(daemon.pid) - idle[0]
                daemon.bock("volume", "delete", "large")
    return [
        _allowed(IDLE_ROW, "idle", idle, IDLE_MIB),
        _allowed(OPEN_ROW, "more with the volume", [opened], OPEN_MIB),
    ]


def _allowed(row: str, what: str, values: Sequence[float], most: float) -> Comparison:
    allowed = (most,) * len(values)
    target = Target(1.0, at_most=True)
    return Comparison(row, what, f"{most:g} MiB", "MiB", tuple(values), allowed, target)


def _peak(scale: Scale, context: BenchContext) -> list[Comparison]:
    """Ours beside servers of a raw file."""
    peaks: dict[str, float] = {}
    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        for name in (BOCKD, NBDKIT_FILE, RAW_THREADS):
            served = fleet.get(name, FILL_BLOCK_BYTES, tcp=False)
            assert served is not None
            context.tell(f"{PEAK_ROW}: {name}")
            for mode, block_bytes, depth in PEAK_JOBS:
                job = Job(
                    mode,
                    block_bytes,
                    depth,
                    scale.size_bytes,
                    seconds=scale.seconds,
                    connections=PEAK_CONNECTIONS,
                )
                run_job(job, served.uri, core=context.placement.client)
            peaks[name] = peak_memory_mib(served.pid)
    return [
        Comparison(PEAK_ROW, BOCKD, name, "MiB", (peaks[BOCKD],), (peaks[name],))
        for name in (NBDKIT_FILE, RAW_THREADS)
    ]


def _start(scale: Scale, context: BenchContext) -> Comparison:
    volumes = scale.many_volumes
    context.tell(f"{START_ROW}: making {volumes:,} volumes")
    full, empty = context.directory / "many", context.directory / "none"
    make_pool(full, volumes)
    times: dict[Path, list[float]] = {full: [], empty: []}
    for _ in range(min(scale.rounds, STARTS)):
        for directory, found in times.items():
            began = time.perf_counter()
            with bockd_daemon(directory, context.placement, loaded=False):
                found.append((time.perf_counter() - began) * 1000)
    return Comparison(
        START_ROW, f"{volumes:,} volumes", "none", "ms", tuple(times[full]), tuple(times[empty])
    )


def _copies(snapshots: int, context: BenchContext) -> list[Comparison]:
    """Snapshots, and clones of them, of a volume that has many and of one that has few."""
    context.tell(f"{SNAPSHOT_ROW}: making {snapshots:,} snapshots")
    with open_pool(context.directory / "snapshots") as pool:
        many, few = pool.volume("many", 1 * GIB), pool.volume("few", 1 * GIB)
        owner = VolumeId(many.durability.record.id)
        for number in range(snapshots):
            _change(pool, many)
            pool.run(pool.pool.create_snapshot(owner, f"early-{number}"))
        pairs = []
        for number in range(SNAPSHOT_PAIRS):
            volumes = [(many, f"many-{number}"), (few, f"few-{number}")]
            times = {}
            for volume, label in volumes if number % 2 == 0 else reversed(volumes):
                _change(pool, volume)
                times[volume] = time_one(pool, volume, label)
            pairs.append((times[many], times[few]))
    return [
        _beside(SNAPSHOT_ROW, snapshots, [(a.snapshot, b.snapshot) for a, b in pairs]),
        _beside(CLONE_ROW, snapshots, [(a.clone, b.clone) for a, b in pairs]),
    ]


def _change(pool: OpenPool, volume: Volume) -> None:
    """Write a block and flush, so that the next snapshot freezes something and flushes nothing."""
    pool.write(volume, 0, _PIECE)
    pool.checkpoint(volume)


def _beside(row: str, snapshots: int, pairs: Sequence[tuple[float, float]]) -> Comparison:
    many, few = zip(*[(a * 1000, b * 1000) for a, b in pairs], strict=True)
    names = (f"{snapshots:,} before it", "few before it")
    return Comparison(row, *names, "ms", many, few, SAME_TIME, of_medians=True)
