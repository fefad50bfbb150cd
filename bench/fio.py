"""fio: jobs against NBD exports and files, their numbers read from its JSON."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import BenchError, pinned

HANG_SECONDS = 300.0
"""Far beyond any job here: a server that has stopped answering."""


@dataclass(frozen=True)
class Job:
    """What fio does. Either `seconds` or `io_bytes` ends it."""

    mode: str
    """fio's rw: randread, randwrite, randrw, read, write."""
    block_bytes: int
    depth: int
    size_bytes: int
    seconds: float | None = None
    io_bytes: int | None = None
    """With a random mode no block is met twice before all were; the same job meets the same blocks
    in the same order each time."""
    verify: bool = False
    """Read everything back and compare its checksums."""
    connections: int = 1
    """Each with `depth` requests under way."""
    flush_every: int = 0
    """A flush after so many writes; 0: none."""
    read_percent: int = 50
    """Of randrw."""
    seed: int = 0
    """Chooses the order of a random mode."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    operations: int
    rate: float
    """Each second; of operations, or of what else the row counts."""
    p99_us: float = 0.0
    """What 99 of 100 operations took no longer than, of those that took the longest kind."""
    longest_us: float = 0.0
    """The one that took longest."""


def run_job(job: Job, target: str, *, core: int | None = None) -> Outcome:
    """Run one job on an NBD URI or, by O_DIRECT and libaio, on a file. Raises BenchError when fio
    or one of its requests fails."""
    return run_jobs(job, (target,), core=core)


def run_jobs(job: Job, targets: Sequence[str], *, core: int | None = None) -> Outcome:
    """Run the same job on several exports at once. Return the operations of all."""
    with tempfile.TemporaryDirectory(prefix="bench-fio-") as scratch:
        # fio's standard output may carry other lines than its JSON.
        output = Path(scratch) / "fio.json"
        with pinned(core):
            process = subprocess.Popen(
                ["fio", *_arguments(job, targets), f"--output={output}", "--output-format=json"],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            printed, _ = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            # What went wrong stands before the document, if there is one.
            told = output.read_text().partition("{")[0] if output.exists() else ""
            raise BenchError(f"fio {job.mode} on {targets[0]} failed:\n{printed}{told}")
        return _outcome(json.loads(output.read_text()), job)


def _arguments(job: Job, targets: Sequence[str]) -> list[str]:
    arguments = [
        f"--rw={job.mode}",
        f"--bs={job.block_bytes}",
        f"--iodepth={job.depth}",
        f"--size={job.size_bytes}",
        f"--numjobs={job.connections}",
        "--group_reporting",
    ]
    if job.seed:
        arguments.append(f"--randseed={job.seed}")
    if job.mode == "randrw":
        arguments.append(f"--rwmixread={job.read_percent}")
    if job.flush_every:
        arguments.append(f"--fsync={job.flush_every}")
    if job.seconds is not None:
        arguments += ["--time_based", f"--runtime={round(job.seconds * 1000)}ms"]
    if job.io_bytes is not None:
        arguments.append(f"--io_size={job.io_bytes}")
    if job.verify:
        arguments += ["--verify=crc32c", "--verify_fatal=1"]
    for number, target in enumerate(targets):
        arguments.append(f"--name=bench{number}")
        if target.startswith("/"):
            arguments += ["--ioengine=libaio", "--direct=1", f"--filename={target}"]
        else:
            arguments += ["--ioengine=nbd", f"--uri={target}"]
    return arguments


def _outcome(document: dict[str, Any], job: Job) -> Outcome:
    kinds = [kind for kind in ("read", "write") if kind in job.mode or job.mode == "randrw"]
    parts = [one[kind] for one in document["jobs"] for kind in kinds]
    operations = int(sum(part["total_ios"] for part in parts))
    rate = float(sum(part["iops"] for part in parts))
    if not operations or not rate:
        raise BenchError(f"fio {job.mode} did nothing in the time it was given")
    slowest = max(part["clat_ns"]["percentile"]["99.000000"] for part in parts if part["total_ios"])
    longest = max(part["clat_ns"]["max"] for part in parts)
    return Outcome(operations, rate, slowest / 1000, longest / 1000)
