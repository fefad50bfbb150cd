"""bockd and its peers under fio, side by side, row by row.

A server with a filled image is started when a row first asks for it and stays; idle ones use no
processor. After a run that writes, the server's files are written back before the next run begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.processes import BenchError, Placement
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES, Row
from bench.servers import BOCKD, PEERS, Peer, Served, serve_bockd
from bench.turns import BenchContext, Contestant, Scale, Turns, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE, MIB

FILL_DEPTH = 4
VERIFY_DEPTH = 32
VERIFYING = "verifying"
_VERIFIED_BYTES = 64 * MIB


def fill(
    served: Served, size_bytes: int, placement: Placement, block_bytes: int = FILL_BLOCK_BYTES
) -> None:
    """Write all of an export; as it is here every server's image is filled."""
    job = Job("write", block_bytes, FILL_DEPTH, size_bytes, io_bytes=size_bytes)
    run_job(job, served.uri, core=placement.client)
    write_back(served.directory)


def verify(target: str, scale: Scale, context: BenchContext) -> None:
    """Write to an export or a file and read all of it back. Raises BenchError if that is not the
    same."""
    size = min(scale.size_bytes, _VERIFIED_BYTES)
    context.tell(f"{VERIFYING} {target}")
    job = Job("randwrite", BLOCK_SIZE, VERIFY_DEPTH, size, io_bytes=size, verify=True)
    run_job(job, target, core=context.placement.client)


class Fleet:
    """Servers with filled images, each started when it is first asked for."""

    def __init__(self, stack: ExitStack, scale: Scale, context: BenchContext) -> None:
        self._stack = stack
        self._scale = scale
        self._ground = context
        self._servers: dict[tuple[str, int, bool], Served | None] = {}

    def get(self, name: str, fill_bytes: int, *, tcp: bool) -> Served | None:
        """Return the server, or None if it does not run on this machine."""
        key = (name, fill_bytes, tcp)
        if key not in self._servers:
            self._servers[key] = self._start(name, fill_bytes, tcp)
        return self._servers[key]

    @property
    def settings(self) -> dict[str, str]:
        """How each server ran."""
        return {name: served.setting for (name, *_), served in self._servers.items() if served}

    def verify(self) -> None:
        """Verify, after all that was measured, that our servers still keep what is written. Raises
        BenchError."""
        for (name, *_), served in self._servers.items():
            if served is not None and name == BOCKD:
                verify(served.uri, self._scale, self._ground)

    def _start(self, name: str, fill_bytes: int, tcp: bool) -> Served | None:
        context, size = self._ground, self._scale.size_bytes
        peer = Peer(serve_bockd) if name == BOCKD else PEERS[name]
        context.tell(f"starting {name} and filling its image")
        # Short: the paths of sockets must be.
        directory = context.directory / f"s{len(self._servers)}"
        try:
            served = self._stack.enter_context(
                peer.serve(directory, size, context.placement, tcp=tcp)
            )
        except BenchError as error:
            if not peer.optional:
                raise
            context.tell(f"{name} does not run here: {error}")
            return None
        fill(served, size, context.placement, fill_bytes)
        return served


def measure_throughput(
    rows: Sequence[Row], peers: Sequence[str], scale: Scale, context: BenchContext
) -> tuple[Section, dict[str, str]]:
    """Measure all rows, against the peers that each row names or, if there are any, against
    `peers`. Return the section, and the setting that each server ran with."""
    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        comparisons = [
            one for row in rows for one in _measure_row(row, peers, fleet, scale, context)
        ]
        fleet.verify()
        settings = fleet.settings
    return Section("Against other servers", _method(scale, context), tuple(comparisons)), settings


def _method(scale: Scale, context: BenchContext) -> str:
    return (
        "fio's nbd engine over a Unix socket (in the rows that say so, over TCP on the loopback "
        f"interface), one connection, {scale.seconds:g} s a run on an image of "
        f"{scale.size_bytes >> 20} MiB filled by writes of 64 KiB or of the size that the row "
        "names; writes are overwrites; `flush-32` is a flush after every 32 writes, and bockd's "
        "own count says that all were carried out. `null` answers without storage, so that it "
        "shows what the client can do at most: small requests are held to it and not to a "
        "multiple of another server, because one fio on one core cannot show more. "
        f"{method_of_turns(scale, context)}"
    )


def _measure_row(
    row: Row, peers: Sequence[str], fleet: Fleet, scale: Scale, context: BenchContext
) -> list[Comparison]:
    job = row.job(scale.size_bytes, scale.seconds)
    contestants = []
    for name in (BOCKD, *(peers or row.peers)):
        served = fleet.get(name, row.fill_bytes, tcp=row.tcp)
        if served is not None:
            contestants.append(_contestant(name, row, job, served, context.placement))
    return _comparisons(row, in_turn(row.name, contestants, scale, context))


def _contestant(name: str, row: Row, job: Job, served: Served, placement: Placement) -> Contestant:
    def after() -> None:
        if row.writes:
            write_back(served.directory)

    def run(_: Served) -> Outcome:
        with flushes_counted(job, served) as ended:
            ended.append(run_job(job, served.uri, core=placement.client))
        return ended[0]

    return Contestant(
        name,
        run=run,
        prepare=lambda: served,
        after=after,
    )


@contextmanager
def flushes_counted(job: Job, served: Served) -> Iterator[list[Outcome]]:
    """Look whether the server has carried out the flushes of a run, whose outcome is appended to
    what this yields: fio's nbd engine takes no notice of one that fails. Raises BenchError when
    there were fewer, or a request failed. A server that does not count is trusted."""
    ended: list[Outcome] = []
    if not job.flush_every or served.flushes is None:
        yield ended
        return
    before = served.flushes()
    yield ended
    after = served.flushes()
    # At the end of its time fio sends no flush for the writes that are left.
    due = ended[0].operations // job.flush_every - 1
    done, errors = after.done - before.done, after.errors - before.errors
    if errors or done < due:
        raise BenchError(f"{served.name}: {errors} failed requests, {done} flushes of {due}")


def _comparisons(row: Row, turns: Turns) -> list[Comparison]:
    """Each peer beside us; where a target is for the best of some, it stands beside that one."""
    aims: dict[str, tuple[Target, list[str]]] = {}
    found = []
    for aim in row.aims:
        took_part = [name for name in aim.peers if name in turns.rates]
        if aim.cpu and took_part:
            found.append(turns.cpu_against(took_part[0], aim.target))
        elif took_part:
            aims[turns.best_of(took_part)] = aim.target, took_part
    peers = [name for name in turns.rates if name != turns.subject]
    beside = []
    for name in peers:
        target, best_of = aims.get(name, (None, []))
        beside.append(turns.against(name, target, best_of=best_of))
    return beside + found
