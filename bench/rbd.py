"""A pool in a Ceph cluster, beside qemu-nbd on an image of the same cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cephcluster import ceph_cluster
from bench.fio import Job, Outcome, run_job
from bench.processes import BenchError, Placement, pinned, run, serving
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, EXPORT, Served, bockd_daemon, unix_uri
from bench.throughput import fill, verify
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.config.rbd import RbdSettings
from bockd.model import KIB, MIB

if TYPE_CHECKING:  # it starts processes of Ceph's, which not every machine has
    from tests.drivers.rbd.cluster import Cluster

QEMU = "qemu-nbd rbd"
CLIENT_SOURCE = Path(__file__).parent / "micro" / "volumes.c"
LESS_CPU = Target(1.0, at_most=True)


@dataclass(frozen=True)
class Row:
    """What a client does, and how its rate should compare with that of qemu-nbd's."""

    mode: str
    depth: int
    target: Target
    block_bytes: int = 4 * KIB
    simple: bool = False
    """Whether the client takes simple replies, as the kernel's does; libnbd asks for structured
    ones, which cost qemu-nbd a look at the image's holes for each read."""


_ROWS = {
    "rbd-4k-randread-qd32": Row("randread", 32, Target(2.0)),
    "rbd-4k-randread-qd32-simple": Row("randread", 32, Target(1.0), simple=True),
    "rbd-4k-randwrite-qd32": Row("randwrite", 32, Target(1.1)),
    "rbd-4k-randread-qd1-simple": Row("randread", 1, Target(1.0), simple=True),
    "rbd-4k-randwrite-qd1": Row("randwrite", 1, Target(1.0)),
    "rbd-1m-read-qd4": Row("read", 4, Target(1.0), MIB),
    "rbd-1m-write-qd4": Row("write", 4, Target(1.0), MIB),
}
ROWS = tuple(_ROWS)
TARGETS = {name: row.target for name, row in _ROWS.items()}


def measure_rbd(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for. Where Ceph is not installed the section says so, and is
    empty."""
    from tests.drivers.rbd.cluster import missing

    if lacking := missing():
        return _section(f"Not measured: {lacking}.", ())
    with ceph_cluster(context) as cluster, ExitStack() as stack:
        servers = {
            BOCKD: stack.enter_context(serve_rbd("gateway", cluster, scale, context)),
            QEMU: stack.enter_context(_qemu(cluster, scale, context)),
        }
        for name, served in servers.items():
            context.tell(f"filling the image of {name}")
            fill(served, scale.size_bytes, context.placement, MIB)
        client = compiled_client(context.directory)
        comparisons: list[Comparison] = []
        for name in rows:
            row = _ROWS[name]
            contestants = [
                contestant(one, row, served, client, scale, context.placement)
                for one, served in servers.items()
            ]
            turns = in_turn(name, contestants, scale, context, watched=False)
            comparisons.append(turns.against(QEMU, row.target))
            comparisons.append(turns.cpu_against(QEMU, LESS_CPU))
        verify(servers[BOCKD].uri, scale, context)
    return _section(
        "One monitor and one OSD on this machine, on the core of the clients, with one copy of the "
        f"data; bockd's daemon with a volume of {scale.size_bytes >> 20} MiB in the cluster, and "
        "qemu-nbd with `--cache=none` on an image of the same size and features. Both images are "
        "full. Without its cache qemu-nbd answers a write when the cluster has it, as bockd does. "
        "fio's nbd engine over a Unix socket, which takes structured replies; in rows named "
        "`simple` a client of our own (`bench/micro/volumes.c`), which takes simple ones; one "
        "connection. `cpu` is processor time of the server alone, not of the cluster. Rounds are "
        f"not repeated when others were at work; {method_of_turns(scale, context)}",
        tuple(comparisons),
    )


def _section(method: str, comparisons: tuple[Comparison, ...]) -> Section:
    return Section("A pool in a Ceph cluster", method, comparisons)


@contextmanager
def serve_rbd(
    name: str, cluster: Cluster, scale: Scale, context: BenchContext, more: str = ""
) -> Iterator[Served]:
    """Run a daemon with a volume in the cluster, in a namespace and a directory of its own. `more`
    are further lines of its configuration."""
    settings = cluster.namespace()
    config = context.directory / f"{name}.toml"
    config.write_text(
        '[pool]\ndriver = "rbd"\n[rbd]\n'
        f'conf_file = "{settings.conf_file}"\nuser = "{settings.user}"\n'
        f'keyring_file = "{settings.keyring_file}"\npool = "{settings.pool}"\n'
        f'namespace = "{settings.namespace}"\ngateway = "bench"\n{more}'
    )
    with bockd_daemon(context.directory / name, context.placement, config=config) as daemon:
        yield daemon.volume(EXPORT, scale.size_bytes)


@contextmanager
def _qemu(cluster: Cluster, scale: Scale, context: BenchContext) -> Iterator[Served]:
    """In a namespace of its own: those of bockd's may hold nothing else."""
    settings = cluster.namespace()
    directory = context.directory / "qemu"
    directory.mkdir()
    _create_image(settings, scale.size_bytes)
    socket_path = directory / "nbd.sock"
    image = (
        f"rbd:{settings.pool}/{settings.namespace}/{EXPORT}:id={settings.user}"
        f":keyring={settings.keyring_file}:conf={settings.conf_file}"
    )
    options = ("--format=raw", "--cache=none")
    command = ["qemu-nbd", "--persistent", "--shared=16", f"--export-name={EXPORT}", *options]
    with serving(
        [*command, f"--socket={socket_path}", image],
        address=socket_path,
        core=context.placement.server,
        log=directory.with_suffix(".log"),
    ) as pid:
        uri = unix_uri(EXPORT, socket_path)
        yield Served(QEMU, pid, uri, directory, " ".join(["qemu-nbd", *options, "rbd:..."]))


def _create_image(settings: RbdSettings, size_bytes: int) -> None:
    """Make an image as bockd makes its own."""
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.images import create_image
    from bockd.drivers.rbd.settings import index_options

    cluster = connect(settings, index_options(settings))
    try:
        with open_pool(cluster, settings) as ioctx:
            create_image(ioctx, EXPORT, size_bytes)
    finally:
        cluster.shutdown()


def compiled_client(directory: Path) -> Path:
    """Compile the client of rows that are `simple`, and return where it is."""
    client = directory / "volumes"
    run(["cc", "-O2", "-Wall", "-Wextra", str(CLIENT_SOURCE), "-o", str(client)])
    return client


def contestant(
    name: str, row: Row, served: Served, client: Path, scale: Scale, placement: Placement
) -> Contestant:
    """Return a server as one of those that a row compares."""

    def by_fio(_: Served) -> Outcome:
        job = Job(row.mode, row.block_bytes, row.depth, scale.size_bytes, seconds=scale.seconds)
        return run_job(job, served.uri, core=placement.client)

    def by_our_own(_: Served) -> Outcome:
        return _run_client(client, row, served, scale, placement)

    work: Callable[[Served], Outcome] = by_our_own if row.simple else by_fio
    return Contestant(name, work, prepare=lambda: served)


def _run_client(
    client: Path, row: Row, served: Served, scale: Scale, placement: Placement
) -> Outcome:
    kind = "write" if "write" in row.mode else "read"
    mebibytes = scale.size_bytes // MIB
    socket_path = served.uri.partition("socket=")[2]
    numbers = map(str, (row.block_bytes, row.depth, scale.seconds, mebibytes))
    with pinned(placement.client):
        printed = run([str(client), kind, *numbers, socket_path, EXPORT])
    found = re.match(r"(\d+) requests/s", printed)
    if found is None or not (rate := float(found[1])):
        raise BenchError(f"{client} printed {printed!r}")
    return Outcome(round(rate * scale.seconds), rate)
