"""The file view compared with NBD, the same volume of one daemon through both frontends, and with
a raw file that qemu-storage-daemon shows as a file (its FUSE export)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.processes import serving
from bench.results import Comparison, Section, Target
from bench.servers import EXPORT, Served, bockd_daemon
from bench.throughput import fill, verify
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import KIB, MIB

FUSE, NBD, QEMU = "bockd file view", "bockd", "qemu-storage-daemon fuse"
AS_QEMU = Target(0.8)

JOBS = {
    "fuse-4k-randread-qd1": ("randread", 4 * KIB, 1),
    "fuse-4k-randread-qd32": ("randread", 4 * KIB, 32),
    "fuse-4k-randwrite-qd32": ("randwrite", 4 * KIB, 32),
    "fuse-1m-read-qd8": ("read", 1 * MIB, 8),
    "fuse-1m-write-qd8": ("write", 1 * MIB, 8),
}
ROWS = tuple(JOBS)


def measure_file_view(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    directory, mount = context.directory / "fuse", context.directory / "view"
    comparisons: list[Comparison] = []
    with (
        bockd_daemon(directory, context.placement, mount=mount) as daemon,
        _shown_by_qemu(context.directory / "qemu", scale.size_bytes, context) as (theirs, shown),
    ):
        served = daemon.volume(EXPORT, scale.size_bytes)
        fill(served, scale.size_bytes, context.placement)
        frontends = {
            FUSE: (str(mount / "volumes" / EXPORT), served),
            NBD: (served.uri, served),
            QEMU: (shown, theirs),
        }
        for row in rows:
            mode, block_bytes, depth = JOBS[row]
            job = Job(mode, block_bytes, depth, scale.size_bytes, seconds=scale.seconds)
            contestants = [
                _through(name, to, job, server, context) for name, (to, server) in frontends.items()
            ]
            turns = in_turn(row, contestants, scale, context)
            comparisons += [turns.against(NBD), turns.against(QEMU, AS_QEMU)]
        verify(frontends[FUSE][0], scale, context)
    method = (
        "fio's libaio engine with O_DIRECT on a file of the view, its nbd engine on the same "
        "volume's export, and the first on the FUSE export of a raw file by qemu-storage-daemon; "
        f"{method_of_turns(scale, context)}"
    )
    return Section("The file view", method, tuple(comparisons))


@contextmanager
def _shown_by_qemu(
    directory: Path, size_bytes: int, context: BenchContext
) -> Iterator[tuple[Served, str]]:
    """A full raw file behind a FUSE export: the server, and where the export is."""
    directory.mkdir()
    image, shown = directory / "image", directory / "shown"
    image.write_bytes(os.urandom(MIB) * (size_bytes // MIB))
    write_back(directory)
    shown.touch()
    socket_path = directory / "qmp.sock"
    with serving(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=image,filename={image}"),
            *("--export", f"type=fuse,id=shown,node-name=image,mountpoint={shown},writable=on"),
            *("--chardev", f"socket,id=qmp,path={socket_path},server=on,wait=off"),
            *("--monitor", "chardev=qmp"),
        ],
        address=socket_path,
        core=context.placement.server,
        log=directory.with_suffix(".log"),
    ) as pid:
        yield Served("qemu-storage-daemon", pid, "", directory, ""), str(shown)


def _through(name: str, target: str, job: Job, served: Served, context: BenchContext) -> Contestant:
    def run(_: Served) -> Outcome:
        return run_job(job, target, core=context.placement.client)

    return Contestant(name, run, prepare=lambda: served, after=lambda: write_back(served.directory))
