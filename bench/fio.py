"""fio with its nbd engine: one job on one connection, its numbers read from its JSON."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, pinned

HANG_SECONDS = 300.0
"""Far beyond any job here: a server that has stopped answering."""


@dataclass(frozen=True)
class Job:
    """What fio does. Either `seconds` or `io_bytes` ends it."""

    mode: str
    """fio's rw: randread, randwrite, read, write."""
    block_bytes: int
    depth: int
    size_bytes: int
    seconds: float | None = None
    io_bytes: int | None = None
    """With a random mode no block is met twice before all were; the same job meets the same blocks
    in the same order each time."""
    verify: bool = False
    """Read everything back and compare its checksums."""


@dataclass(frozen=True)
class Outcome:
    """What fio measured."""

    operations: int
    iops: float


def run_job(job: Job, uri: str, *, core: int | None = None) -> Outcome:
    """Run one job; BenchError when fio or one of its requests fails."""
    with tempfile.TemporaryDirectory(prefix="bench-fio-") as scratch:
        # fio's standard output may carry other lines than its JSON.
        output = Path(scratch) / "fio.json"
        with pinned(core):
            process = subprocess.Popen(
                ["fio", *_arguments(job, uri), f"--output={output}", "--output-format=json"],
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
            raise BenchError(f"fio {job.mode} on {uri} failed:\n{printed}{told}")
        return _outcome(json.loads(output.read_text()), job)


def _arguments(job: Job, uri: str) -> list[str]:
    arguments = [
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={job.mode}",
        f"--bs={job.block_bytes}",
        f"--iodepth={job.depth}",
        f"--size={job.size_bytes}",
    ]
    if job.seconds is not None:
        arguments += ["--time_based", f"--runtime={round(job.seconds * 1000)}ms"]
    if job.io_bytes is not None:
        arguments.append(f"--io_size={job.io_bytes}")
    if job.verify:
        arguments += ["--verify=crc32c", "--verify_fatal=1"]
    return arguments


def _outcome(document: dict[str, list[dict[str, dict[str, float]]]], job: Job) -> Outcome:
    part = document["jobs"][0]["read" if "read" in job.mode else "write"]
    if not part["total_ios"] or not part["iops"]:
        raise BenchError(f"fio {job.mode} did nothing in the time it was given")
    return Outcome(int(part["total_ios"]), float(part["iops"]))
