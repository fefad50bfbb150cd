"""Where the daemon's time goes: a flame graph of the hot path, as SVG.

    python -m bench.profile [--mode randread] [--depth 32] [--output profile.svg]

A daemon with a full volume serves fio while py-spy samples it from outside, so what is measured is
what users run. Only Python's own functions show, with the system calls inside them.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bench.cli import DEFAULT_DIRECTORY
from bench.fio import Job, run_job
from bench.processes import BenchError, place
from bench.servers import EXPORT, bockd_daemon, program
from bench.throughput import fill
from bockd.model import KIB, MIB

SIZE_BYTES = 256 * MIB
SECONDS = 5
SAMPLES_PER_SECOND = 500


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--mode", default="randread", show_default=True, help="fio's rw.")
@click.option("--depth", default=32, show_default=True, type=click.IntRange(1))
@click.option("--block-kib", default=4, show_default=True, type=click.IntRange(1))
@click.option(
    "--output",
    default="profile.svg",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the picture goes; a browser shows it.",
)
def main(mode: str, depth: int, block_kib: int, output: Path) -> None:
    """Draw a flame graph of the daemon under one workload."""
    placement = place()
    try:
        with (
            TemporaryDirectory(prefix="bockd-bench-", dir=DEFAULT_DIRECTORY) as scratch,
            bockd_daemon(Path(scratch) / "pool", placement) as daemon,
            ThreadPoolExecutor() as beside,
        ):
            served = daemon.volume(EXPORT, SIZE_BYTES)
            fill(served, SIZE_BYTES, placement)
            job = Job(mode, block_kib * KIB, depth, SIZE_BYTES, seconds=SECONDS + 2)
            running = beside.submit(run_job, job, served.uri, core=placement.client)
            _sample(daemon.pid, output)
            outcome = running.result()
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{outcome.rate:,.0f} operations/s while it was sampled; see {output}")


def _sample(pid: int, output: Path) -> None:
    command = [program("py-spy"), "record", "--pid", str(pid), "--output", str(output)]
    options = ["--duration", str(SECONDS), "--rate", str(SAMPLES_PER_SECOND), "--nolineno"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchError(f"py-spy failed; it needs the right to trace:\n{ended.stderr}")


if __name__ == "__main__":
    main(prog_name="python -m bench.profile")
