"""A volume while its requests are recorded (`bock trace record`), beside the same unrecorded."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.processes import BenchError, pinned
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, EXPORT, Daemon, Served, bockd_daemon, program
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import KIB

READ_ROW, WRITE_ROW = "4k-randread-qd32-recorded", "4k-randwrite-qd32-recorded"
_MODES = {READ_ROW: "randread", WRITE_ROW: "randwrite"}
ROWS = tuple(_MODES)
RECORDED = "bockd, recorded"
NEARLY = Target(0.97)
DEPTH = 32


class _Recorder:
    """`bock trace record`, on the clients' core."""

    def __init__(self, daemon: Daemon, context: BenchContext) -> None:
        self._daemon = daemon
        self._file = context.directory / "trace"
        self._core = context.placement.client
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Record the volume; the daemon has been told when this returns."""
        with pinned(self._core):
            self._process = subprocess.Popen(
                [program("bock"), "trace", "record", EXPORT, "-o", self._file, "--force"],
                env=self._daemon.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        while self._process.poll() is None and not _begun(self._file):
            pass

    def end(self) -> None:
        """End the recording, and take it away."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate()
        if self._process.returncode:
            raise BenchError(f"bock trace record failed:\n{said}")
        self._file.unlink()


def _begun(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def measure_recorded(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    comparisons: list[Comparison] = []
    with bockd_daemon(context.directory / "recorded", context.placement) as daemon:
        served = daemon.volume(EXPORT, scale.size_bytes)
        fill(served, scale.size_bytes, context.placement)
        recorder = _Recorder(daemon, context)

        def recorded() -> Served:
            recorder.begin()
            return served

        def after() -> None:
            recorder.end()
            write_back(served.directory)

        for row in rows:
            job = Job(_MODES[row], 4 * KIB, DEPTH, scale.size_bytes, seconds=scale.seconds)

            def run(served: Served, job: Job = job) -> Outcome:
                return run_job(job, served.uri, core=context.placement.client)

            contestants = (
                Contestant(RECORDED, run, recorded, after),
                Contestant(BOCKD, run, lambda: served, lambda: write_back(served.directory)),
            )
            turns = in_turn(row, contestants, scale, context, watched=False)
            comparisons.append(turns.against(BOCKD, NEARLY))
    method = (
        f"fio's nbd engine over a Unix socket, {DEPTH} requests of 4 KiB at once, on a full volume "
        f"of {scale.size_bytes >> 20} MiB, with `bock trace record` at work on the clients' core, "
        f"and without; {method_of_turns(scale, context)}"
    )
    return Section("While requests are recorded", method, tuple(comparisons))
