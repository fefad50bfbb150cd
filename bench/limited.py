"""What limits of I/O let through, measured by fio: `python -m bench.limited [SECONDS]`.

Each line has what passed and what the limits allow, computed: the rate times the time, and what the
bucket held at the beginning. QEMU's own throttle gets the same numbers from the same job. The last
lines are of two volumes without limits, one of which has far more requests under way.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

from bench.fio import Job, run_job, run_jobs
from bench.processes import Placement, run, serving
from bench.servers import Daemon, bockd_daemon, unix_uri
from bockd.cli.sizes import parse_size
from bockd.model import KIB, MIB

VOLUME_BYTES = 256 * MIB

LIMITS: tuple[tuple[tuple[str, ...], Job, float, float], ...] = (
    # options, job (without its time), operations in a second, and at once
    (("--iops", "500"), Job("randread", 4 * KIB, 1, VOLUME_BYTES), 500, 50),
    (("--iops", "500"), Job("randwrite", 4 * KIB, 32, VOLUME_BYTES), 500, 50),
    (("--iops", "20000"), Job("randread", 4 * KIB, 32, VOLUME_BYTES), 20000, 2000),
    (("--bps", "20MiB"), Job("randwrite", 64 * KIB, 8, VOLUME_BYTES), 320, 32),
    (("--bps", "20MiB"), Job("randread", 1 * MIB, 4, VOLUME_BYTES), 20, 2),
    (("--bps", "20MiB"), Job("randwrite", 4 * MIB, 2, VOLUME_BYTES), 5, 1),
    (
        ("--iops", "200", "--burst", "iops=2000:3"),
        Job("randread", 4 * KIB, 32, VOLUME_BYTES),
        200,
        6000,
    ),
)

QEMU_IMG = ("qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=full")
"""Without holes: QEMU's NBD server answers reads of them before they come to the throttle."""

QEMU = {
    "--iops": "x-iops-total",
    "--bps": "x-bps-total",
}


def main() -> None:
    """Print what was measured."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory(prefix="bench-limited-", dir=Path.cwd()) as scratch:
        with bockd_daemon(Path(scratch) / "bockd", Placement(None, None)) as daemon:
            served = daemon.volume("limited", VOLUME_BYTES)
            for options, job, rate, at_once in LIMITS:
                daemon.bock("volume", "limit", "limited", *options)
                _measure("bockd", served.uri, options, job, rate, at_once, seconds)
            _share(daemon, seconds)
        for options, job, rate, at_once in LIMITS:
            with _qemu(Path(scratch), options) as uri:
                _measure("QEMU", uri, options, job, rate, at_once, seconds)


def _measure(
    who: str,
    uri: str,
    options: tuple[str, ...],
    job: Job,
    rate: float,
    at_once: float,
    seconds: float,
) -> None:
    done = run_job(replace(job, seconds=seconds), uri).operations
    allowed = at_once + rate * seconds
    print(
        f"{who:5} {' '.join(options):38} {job.mode:9} {job.block_bytes // KIB:4} KiB, depth "
        f"{job.depth:2}: {done:7} of {allowed:8.0f}, {100 * done / allowed:5.1f} %",
        flush=True,
    )


@contextmanager
def _qemu(scratch: Path, options: tuple[str, ...]) -> Iterator[str]:
    """Run QEMU's storage daemon with the same limits."""
    image, socket = scratch / "image", scratch / "qemu.sock"
    image.unlink(missing_ok=True)
    run([*QEMU_IMG, str(image), str(VOLUME_BYTES)])
    group = [f"{QEMU[options[0]]}={parse_size(options[1])}"]
    if len(options) > 2:
        burst, _, length = options[3].removeprefix("iops=").partition(":")
        group += [f"x-iops-total-max={burst}", f"x-iops-total-max-length={length}"]
    command = [
        "qemu-storage-daemon",
        *("--object", f"throttle-group,id=limits,{','.join(group)}"),
        *("--blockdev", f"driver=file,node-name=file,filename={image},discard=unmap"),
        *("--blockdev", "driver=throttle,node-name=disk,throttle-group=limits,file=file"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
        *("--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"),
    ]
    with serving(command, address=socket, core=None, log=scratch / "qemu.log"):
        yield unix_uri("disk", socket)


def _share(daemon: Daemon, seconds: float) -> None:
    """Two volumes without limits: one alone, and beside one with 4 connections of 32 requests."""
    few, many = (daemon.volume(name, VOLUME_BYTES).uri for name in ("few", "many"))
    for uri in (few, many):  # nothing is new afterwards
        run_job(Job("write", MIB, 4, VOLUME_BYTES, io_bytes=VOLUME_BYTES), uri)
    for depth in (1, 32):
        job = Job("randread", 4 * KIB, depth, VOLUME_BYTES, seconds=seconds)
        alone = run_job(job, few).rate
        print(f"fair  depth {depth}, alone: {alone:.0f} reads a second", flush=True)
        both = run_jobs(job, (few, many)).rate
        print(f"fair  depth {depth}, two of them: {both:.0f} together", flush=True)
        loud = replace(job, depth=32, seconds=seconds + 2, connections=4)
        with _beside(loud, many):
            beside = run_job(job, few).rate
        print(f"fair  depth {depth}, beside 4 x 32: {beside:.0f}", flush=True)


@contextmanager
def _beside(job: Job, uri: str) -> Iterator[None]:
    """Run a job in another thread for the duration."""
    rates: list[float] = []
    thread = Thread(target=lambda: rates.append(run_job(job, uri).rate))
    thread.start()
    try:
        yield
    finally:
        thread.join()
    print(f"fair  those 4 x 32: {rates[0]:.0f}", flush=True)


if __name__ == "__main__":
    main()
