"""Hits of the cache on the local disk, beside a pool in Ceph without it, and a local pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from bench.cephcluster import ceph_cluster
from bench.fio import Job, run_job
from bench.rbd import Row, compiled_client, contestant, serve_rbd
from bench.results import Comparison, Section, Target
from bench.servers import EXPORT, NULL, Served, bockd_daemon, serve_null
from bench.throughput import fill, verify
from bench.turns import BenchContext, Scale, in_turn, method_of_turns
from bockd.model import GIB, MIB

if TYPE_CHECKING:  # it starts processes of Ceph's, which not every machine has
    from tests.drivers.rbd.cluster import Cluster

CACHED, UNCACHED, LOCAL = "bockd", "bockd without the cache", "bockd with a local pool"
FASTER = Target(10.0)
AS_LOCAL = Target(0.9)
_ROWS = {
    "cache-hits-4k-randread-qd32": Row("randread", 32, FASTER),
    "cache-hits-4k-randread-qd32-simple": Row("randread", 32, FASTER, simple=True),
}
ROWS = tuple(_ROWS)


def measure_cache_hits(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for. Where Ceph is not installed the section says so, and is
    empty."""
    from tests.drivers.rbd.cluster import missing

    if lacking := missing():
        return _section(f"Not measured: {lacking}.", ())
    with ceph_cluster(context) as cluster, _servers(cluster, scale, context) as servers:
        client = compiled_client(context.directory)
        comparisons: list[Comparison] = []
        for name in rows:
            contestants = [
                contestant(one, _ROWS[name], served, client, scale, context.placement)
                for one, served in servers.items()
            ]
            turns = in_turn(name, contestants, scale, context, watched=False)
            comparisons.append(turns.against(UNCACHED, FASTER))
            comparisons.append(turns.against(LOCAL, AS_LOCAL))
            comparisons.append(turns.against(NULL))
        verify(servers[CACHED].uri, scale, context)
    return _section(
        "Two daemons with a volume each in one cluster (a monitor and an OSD, on the core of the "
        "clients), one of them with a cache, in which all of its volume is, and one with a local "
        f"pool; volumes of {scale.size_bytes >> 20} MiB, full. `null` answers without storage, so "
        "that it shows what the client can do at most. fio's nbd engine over a Unix socket; in "
        "rows named `simple` a client that costs next to nothing (`bench/micro/volumes.c`). "
        f"{method_of_turns(scale, context)}",
        tuple(comparisons),
    )


def _section(method: str, comparisons: tuple[Comparison, ...]) -> Section:
    return Section("Hits of the cache before a pool in Ceph", method, comparisons)


@contextmanager
def _servers(cluster: Cluster, scale: Scale, context: BenchContext) -> Iterator[dict[str, Served]]:
    """Run all of them, with full volumes that were read once."""
    size, place = scale.size_bytes, context.placement
    gibibytes = -(-2 * size // GIB)
    cache = f'[cache]\ndirectory = "{context.directory / "cache"}"\nsize_gib = {gibibytes}\n'
    with ExitStack() as stack:
        enter = stack.enter_context
        local = enter(bockd_daemon(context.directory / "local", place))
        servers = {
            CACHED: enter(serve_rbd("cached", cluster, scale, context, cache)),
            UNCACHED: enter(serve_rbd("uncached", cluster, scale, context)),
            LOCAL: local.volume(EXPORT, size),
            NULL: enter(serve_null(context.directory / "null", size, place)),
        }
        for name, served in servers.items():
            context.tell(f"filling the volume of {name}")
            fill(served, size, place, MIB)
            job = Job("read", MIB, 4, size, io_bytes=size)
            run_job(job, served.uri, core=place.client)
        yield servers
