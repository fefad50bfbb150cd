"""The block storage API: how fast it answers, and what it takes from the volumes meanwhile.

The pool has a thousand volumes of one tenant. NBD throughput is measured in pairs, with a steady
load of requests on the API and without, in turns.
"""

from __future__ import annotations

from pathlib import Path

from bench.files import write_back
from bench.fio import Job, run_job
from bench.http import Api, answers_per_second, authenticate, steady
from bench.quiet import MAX_FOREIGN_SHARE, Watch, quiet_rounds
from bench.results import Comparison, Section, Target
from bench.servers import EXPORT, Daemon, Served, bockd_daemon
from bench.throughput import fill
from bench.turns import BenchContext, Scale
from bockd.blockstorage.contract import UNLIMITED, NewVolume, Quota
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.blockstorage.volumes import Volumes
from bockd.drivers.local.pool import LocalPool
from bockd.identity.accounts import Accounts
from bockd.identity.credentialsfile import CREDENTIALS_FILE, establish
from bockd.model import VolumeId
from bockd.runtime.steps import Background, run_inline

VOLUMES = 1_000
CONNECTIONS = 4
"""At once, for what the API can do at most."""

REQUESTS_PER_SECOND = 100
"""The load besides which volumes are measured."""

WANTED_PER_SECOND = 500
DEPTH = 32
BLOCK_BYTES = 4096

SHOW_ROW, LIST_ROW = "api-show", "api-list-1000"
LONG_LIST_ROW = "api-list-5000"
BESIDE_ROWS = {
    "api-load-4k-randread-qd32": "randread",
    "api-load-4k-randwrite-qd32": "randwrite",
}
ROWS = (SHOW_ROW, LIST_ROW, *BESIDE_ROWS, LONG_LIST_ROW)

FAST_ENOUGH = Target(1.0)
KEEPS_MOST = Target(0.85)


def measure_api_cost(scale: Scale, context: BenchContext) -> Section:
    """Measure all rows: shows and lists, and what a load of shows takes from a volume."""
    directory = context.directory / "api"
    context.tell(f"making {VOLUMES} volumes")
    volume = make_pool(directory)
    with bockd_daemon(directory, context.placement, public=True) as daemon:
        served = daemon.volume(EXPORT, scale.size_bytes)
        fill(served, scale.size_bytes, context.placement)
        api = authenticate(daemon.api_port, directory / CREDENTIALS_FILE)
        show = f"/volumes/{volume}"
        comparisons = [
            *_answers(api, show, daemon, scale, context),
            *(
                _beside(row, mode, api, show, served, scale, context)
                for row, mode in BESIDE_ROWS.items()
            ),
        ]
    comparisons.append(_long_list(scale, context))
    return Section("The block storage API", _method(scale, context), tuple(comparisons))


def _method(scale: Scale, context: BenchContext) -> str:
    return (
        f"{VOLUMES:,} volumes of one tenant, shown one by one and listed (`/volumes/detail`) over "
        f"{CONNECTIONS} keep-alive connections, {scale.seconds:g} s each; a list counts for all of "
        f"its volumes, and so does one of {scale.listed_volumes:,} in another pool, beside pages "
        f"of {VOLUMES:,} of them. Then fio as above on another volume, beside "
        f"{REQUESTS_PER_SECOND} shows a second on one connection, and without; "
        f"{context.placement}. {scale.rounds} rounds, the order "
        "reversed each time; a round in which other processes took more than "
        f"{MAX_FOREIGN_SHARE:.0%} of a core during a run is measured again."
    )


def make_pool(directory: Path, volumes: int = VOLUMES) -> VolumeId:
    """Make a pool with so many volumes of its first tenant. Return one from their middle."""
    directory.mkdir(parents=True)
    background = Background()
    pool = LocalPool.open(directory, background.spawn)
    try:
        index = pool.index
        establish(index, directory)
        with index.reading() as txn:
            tenant = Ledger(txn).tenants()[0].tenant.id
        Accounts(index).set_quota(tenant, lambda _: Quota(UNLIMITED, UNLIMITED, UNLIMITED))
        context = Volumes(StorageContext(pool, NoPublisher()))
        made = [
            run_inline(context.create(tenant, NewVolume(1, f"volume {number}")))
            for number in range(volumes)
        ]
    finally:
        pool.release()
    return made[volumes // 2].id


def _answers(
    api: Api, show: str, daemon: Daemon, scale: Scale, context: BenchContext
) -> tuple[Comparison, Comparison]:
    core = context.placement.client

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        context.tell(f"{SHOW_ROW}, {LIST_ROW}: round {number + 1}")
        with watch.over(daemon.pid):
            shows = answers_per_second(api, show, scale.seconds, CONNECTIONS, core)
            lists = answers_per_second(api, "/volumes/detail", scale.seconds, CONNECTIONS, core)
        return shows, lists * VOLUMES

    rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    shown, listed = zip(*[one.values for one in rounds], strict=True)
    shares = tuple(one.foreign_share for one in rounds)
    return (
        Comparison(
            row=SHOW_ROW,
            subject="shows",
            baseline=f"{WANTED_PER_SECOND} a second",
            unit="requests/s",
            subject_values=shown,
            baseline_values=(float(WANTED_PER_SECOND),) * len(shown),
            target=FAST_ENOUGH,
            foreign_shares=shares,
        ),
        Comparison(
            row=LIST_ROW,
            subject="listed",
            baseline="shown one by one",
            unit="volumes/s",
            subject_values=listed,
            baseline_values=shown,
            foreign_shares=shares,
        ),
    )


def _long_list(scale: Scale, context: BenchContext) -> Comparison:
    """All volumes of a large tenant in one answer, beside as many as the other pool has."""
    directory = context.directory / "long"
    context.tell(f"making {scale.listed_volumes:,} volumes")
    make_pool(directory, scale.listed_volumes)
    page = min(VOLUMES, scale.listed_volumes)
    core = context.placement.client
    with bockd_daemon(directory, context.placement, public=True) as daemon:
        api = authenticate(daemon.api_port, directory / CREDENTIALS_FILE)

        def listed(query: str, volumes: int) -> float:
            path = f"/volumes/detail{query}"
            return answers_per_second(api, path, scale.seconds, CONNECTIONS, core) * volumes

        def measure(number: int, watch: Watch) -> tuple[float, ...]:
            context.tell(f"{LONG_LIST_ROW}: round {number + 1}")
            with watch.over(daemon.pid):
                return listed("", scale.listed_volumes), listed(f"?limit={page}", page)

        rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    long, short = zip(*[one.values for one in rounds], strict=True)
    return Comparison(
        row=LONG_LIST_ROW,
        subject=f"{scale.listed_volumes:,} volumes",
        baseline=f"pages of {page:,}",
        unit="volumes/s",
        subject_values=long,
        baseline_values=short,
        foreign_shares=tuple(one.foreign_share for one in rounds),
    )


def _beside(
    row: str, mode: str, api: Api, show: str, served: Served, scale: Scale, context: BenchContext
) -> Comparison:
    job = Job(mode, BLOCK_BYTES, DEPTH, scale.size_bytes, seconds=scale.seconds)
    core = context.placement.client

    def alone(watch: Watch) -> float:
        with watch.over(served.pid):
            return run_job(job, served.uri, core=core).rate

    def beside(watch: Watch) -> float:
        with steady(api, show, REQUESTS_PER_SECOND, core):
            return alone(watch)

    def measure(number: int, watch: Watch) -> tuple[float, ...]:
        context.tell(f"{row}: round {number + 1}")
        values = {}
        order = (beside, alone) if number % 2 else (alone, beside)
        for run in order:
            values[run] = run(watch)
            write_back(served.directory)
        return values[beside], values[alone]

    rounds = quiet_rounds(scale.rounds, scale.repeats, measure)
    loaded, free = zip(*[one.values for one in rounds], strict=True)
    return Comparison(
        row=row,
        subject=f"{REQUESTS_PER_SECOND} requests/s",
        baseline="without",
        unit="IOPS",
        subject_values=loaded,
        baseline_values=free,
        target=KEEPS_MOST,
        foreign_shares=tuple(one.foreign_share for one in rounds),
    )
