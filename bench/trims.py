"""Trims: of a whole map, of a huge empty volume in many requests, and the checkpoint after one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.files import write_back
from bench.fio import Outcome
from bench.nbdclient import seconds_of
from bench.processes import TICK_SECONDS, cpu_seconds, run
from bench.results import Comparison, Section, Target
from bench.servers import (
    BOCKD,
    NBDKIT_FILE,
    PEERS,
    QCOW2_THREADS,
    Served,
    bockd_daemon,
    serve_bockd,
    serve_image,
)
from bench.snapshotcost import open_pool
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns, timed
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.drivers.local.format.journal import Change, Kind
from bockd.model import BLOCK_SIZE, GIB, MIB
from bockd.pool.index import Transaction

TRIM_ROW, CHECKPOINT_ROW, MANY_ROW = "trim-full-map", "trim-full-map-checkpoint", "many-trims"
ROWS = (TRIM_ROW, CHECKPOINT_ROW, MANY_ROW)

FASTER_TRIM = Target(5.0)
TRIM_PIECE_BYTES = 1 * GIB
"""One request; qemu-nbd takes no more than 2 GiB - 1."""
CHECKPOINT_CPU_SECONDS = 0.3
"""What is allowed."""
MANY_PIECE_BYTES = 128 * MIB
"""What the kernel's client sends at most: mkfs trims a volume of 1 TiB in 8,192 of them."""
MANY_TIME = Target(1.5, at_most=True)


def measure_trims(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    found: list[Comparison] = []
    if TRIM_ROW in rows or CHECKPOINT_ROW in rows:
        found += _full_maps(scale, context)
    if MANY_ROW in rows:
        found.append(_many(scale, context))
    method = (
        f"Trim of {scale.trim_bytes // GIB} GiB in requests of 1 GiB, one after another, until it "
        "is acknowledged. Every block is mapped (for qcow2: preallocation=metadata, discard=unmap) "
        "and none has bytes on the disk, so that the map alone is measured. The checkpoint is what "
        "the daemon's process takes from there on until it has told the volume's space, for which "
        f"it brings the index up to date. `{MANY_ROW}`: {scale.many_trims:,} requests of 128 MiB, "
        "one after another, for all of a volume where nothing is yet, as mkfs sends them; "
        f"{method_of_turns(scale, context)}"
    )
    return Section("Trims", method, tuple(one for one in found if one.row in rows))


def _full_maps(scale: Scale, context: BenchContext) -> list[Comparison]:
    size_bytes = scale.trim_bytes
    checkpoints: list[float] = []

    def trim(served: Served) -> Outcome:
        core = context.placement.client
        seconds = seconds_of("trim", served.uri, size_bytes, TRIM_PIECE_BYTES, core=core)
        return Outcome(size_bytes // GIB, size_bytes / GIB / seconds)

    with ExitStack() as stack:
        ours = stack.enter_context(
            _full_map(size_bytes, scale.rounds + scale.repeats, context, checkpoints)
        )
        theirs = _FullImage(size_bytes, context)
        stack.callback(theirs.end)
        contestants = [
            Contestant(BOCKD, trim, *ours),
            Contestant(QCOW2_THREADS, trim, theirs.renew, theirs.end),
        ]
        turns = in_turn(TRIM_ROW, contestants, scale, context, unit="GiB/s")
    allowed = (CHECKPOINT_CPU_SECONDS,) * len(checkpoints)
    return [
        turns.against(QCOW2_THREADS, FASTER_TRIM),
        Comparison(
            CHECKPOINT_ROW,
            "checkpoint",
            f"{CHECKPOINT_CPU_SECONDS:g} s",
            "CPU s",
            tuple(checkpoints),
            allowed,
            Target(1.0, at_most=True),
        ),
    ]


def _many(scale: Scale, context: BenchContext) -> Comparison:
    size_bytes = scale.many_trims * MANY_PIECE_BYTES
    core = context.placement.client

    def trim(served: Served) -> Outcome:
        return timed(
            seconds_of("trim", served.uri, size_bytes, MANY_PIECE_BYTES, core=core),
            scale.many_trims,
        )

    with ExitStack() as stack:
        contestants = []
        for name, serve in ((BOCKD, serve_bockd), (NBDKIT_FILE, PEERS[NBDKIT_FILE].serve)):
            directory = context.directory / f"many-{name.split()[0]}"
            served = stack.enter_context(serve(directory, size_bytes, context.placement))
            contestants.append(Contestant(name, trim, partial(_same, served)))
        turns = in_turn(MANY_ROW, contestants, scale, context, unit="s")
    return turns.against(NBDKIT_FILE, MANY_TIME)


def _same(served: Served) -> Served:
    return served


@contextmanager
def _full_map(
    size_bytes: int, count: int, context: BenchContext, checkpoints: list[float]
) -> Iterator[tuple[Callable[[], Served], Callable[[], None]]]:
    """A daemon with `count` volumes whose heads own every block. Gives what takes the next one, and
    what is to be called once it is trimmed, which appends the processor seconds of its
    checkpoint."""
    directory = context.directory / "trim"
    context.tell(f"mapping {count} volumes of {size_bytes // GIB} GiB")
    names = [f"full-{number}" for number in range(count)]
    with open_pool(directory) as pool:
        for name in names:
            made = pool.run(pool.pool.create_volume(name, size_bytes, None))
            with pool.pool.nodes() as nodes:
                record = nodes.volume(made.id)
            pool.pool.index.update(partial(_map_all, record=record))
    with bockd_daemon(directory, context.placement) as daemon:
        waiting = iter(names)
        trimmed: list[str] = []

        def next_one() -> Served:
            trimmed.append(next(waiting))
            return Served(BOCKD, daemon.pid, daemon.uri(trimmed[-1]), directory, "bockd serve")

        def checkpoint() -> None:
            before = cpu_seconds(daemon.pid)
            daemon.space(trimmed[-1])
            checkpoints.append(max(cpu_seconds(daemon.pid) - before, TICK_SECONDS))

        yield next_one, checkpoint


def _map_all(txn: Transaction, record: LocalVolumeRecord) -> None:
    """The head owns every block, as if all had been written."""
    changes = MapChanges(txn, record.map, record.head)
    changes.apply(Change(1, Kind.REDIRECT, 0, record.size_bytes // BLOCK_SIZE))
    changes.store()


class _FullImage:
    """A qcow2 image with every cluster mapped, made anew for each run."""

    def __init__(self, size_bytes: int, context: BenchContext) -> None:
        self._size_bytes = size_bytes
        self._ground = context
        self._stack = ExitStack()
        self._image = context.directory / "trim-qcow2" / "image"
        self._image.parent.mkdir()

    def renew(self) -> Served:
        self._image.unlink(missing_ok=True)
        options = ["-o", "preallocation=metadata", str(self._image), str(self._size_bytes)]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *options])
        write_back(self._image.parent)
        setting = ("--format=qcow2", "--cache=writeback", "--aio=threads", "--discard=unmap")
        return self._stack.enter_context(serve_image(self._image, setting, self._ground.placement))

    def end(self) -> None:
        self._stack.close()
