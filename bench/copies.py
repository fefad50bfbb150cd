"""Whole images: copied out and in with nbdcopy, and given back with trim."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.files import write_back
from bench.fio import Outcome
from bench.processes import pinned, run
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import (
    BOCKD,
    NBDKIT_FILE,
    QCOW2_THREADS,
    RAW_THREADS,
    Served,
    bockd_daemon,
    serve_image,
)
from bench.snapshotcost import open_pool
from bench.throughput import Fleet
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.drivers.local.format.journal import Change, Kind
from bockd.model import BLOCK_SIZE, GIB, MIB
from bockd.pool.index import Transaction

OUT_ROW, IN_ROW = "nbdcopy-out", "nbdcopy-in"
TRIM_ROW = "trim-full-map"
COPY_ROWS = (OUT_ROW, IN_ROW)
ROWS = (*COPY_ROWS, TRIM_ROW)

FASTER_TRIM = Target(5.0)
TRIM_PIECE_BYTES = 1 * GIB
"""One request; qemu-nbd takes no more than 2 GiB - 1."""


def measure_copies(scale: Scale, context: BenchContext, rows: Sequence[str] = COPY_ROWS) -> Section:
    """Measure copies of whole images, out of a server and into it."""
    image = context.directory / "copied"
    uris: dict[str, Callable[[Served], list[str]]] = {
        OUT_ROW: lambda served: [served.uri, "null:"],
        IN_ROW: lambda served: ["--destination-is-zero", str(image), served.uri],
    }
    comparisons: list[Comparison] = []
    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        contestants = []
        for name in (BOCKD, NBDKIT_FILE, RAW_THREADS):
            served = fleet.get(name, FILL_BLOCK_BYTES, tcp=False)
            assert served is not None
            contestants.append((name, served))
        run(["nbdcopy", contestants[0][1].uri, str(image)])
        for row in rows:
            copying = [
                _copying(name, served, uris[row](served), scale, context)
                for name, served in contestants
            ]
            turns = in_turn(row, copying, scale, context, unit="MiB/s")
            comparisons += [turns.against(NBDKIT_FILE), turns.against(RAW_THREADS)]
    method = (
        f"nbdcopy of an image of {scale.size_bytes >> 20} MiB with its own choice of connections "
        "and requests: out of the server to nowhere, and from a file into the server, over what "
        f"is there; {method_of_turns(scale, context)}"
    )
    return Section("Copies of whole images", method, tuple(comparisons))


def _copying(
    name: str, served: Served, arguments: Sequence[str], scale: Scale, context: BenchContext
) -> Contestant:
    def copy(_: Served) -> Outcome:
        began = time.perf_counter()
        with pinned(context.placement.client):
            run(["nbdcopy", *arguments])
        mebibytes = scale.size_bytes // MIB
        return Outcome(mebibytes, mebibytes / (time.perf_counter() - began))

    return Contestant(
        name, copy, prepare=lambda: served, after=lambda: write_back(served.directory)
    )


def measure_trim(scale: Scale, context: BenchContext) -> Section:
    """Measure a trim of a whole image whose map is full, until it is acknowledged."""
    size_bytes = scale.trim_bytes
    with ExitStack() as stack:
        ours = stack.enter_context(_full_map(size_bytes, scale.rounds + scale.repeats, context))
        theirs = _FullImage(size_bytes, context)
        stack.callback(theirs.end)
        contestants = [
            Contestant(BOCKD, lambda served: _trim(served.uri, size_bytes, context), ours),
            Contestant(
                QCOW2_THREADS,
                lambda served: _trim(served.uri, size_bytes, context),
                theirs.renew,
                theirs.end,
            ),
        ]
        turns = in_turn(TRIM_ROW, contestants, scale, context, unit="GiB/s")
    method = (
        f"Trim of {size_bytes // GIB} GiB in requests of 1 GiB, one after another. Every block is "
        "mapped (for qcow2: preallocation=metadata, discard=unmap) and none has bytes on the disk, "
        f"so that the map alone is measured; {method_of_turns(scale, context)}"
    )
    return Section("Trim of a full map", method, (turns.against(QCOW2_THREADS, FASTER_TRIM),))


@contextmanager
def _full_map(size_bytes: int, count: int, context: BenchContext) -> Iterator[Callable[[], Served]]:
    """A daemon with `count` volumes whose heads own every block; gives one after the other."""
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

        def next_one() -> Served:
            name = next(waiting)
            return Served(BOCKD, daemon.pid, daemon.uri(name), directory, "bockd serve")

        yield next_one


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


_TRIM = """
import nbd, sys, time
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
size, piece = int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
for offset in range(0, size, piece):
    handle.trim(min(piece, size - offset), offset)
print(time.perf_counter() - began)
"""
"""A program of its own, so that it can be pinned to the clients' core."""


def _trim(uri: str, size_bytes: int, context: BenchContext) -> Outcome:
    with pinned(context.placement.client):
        arguments = [uri, str(size_bytes), str(TRIM_PIECE_BYTES)]
        seconds = float(run([sys.executable, "-c", _TRIM, *arguments]))
    return Outcome(size_bytes // GIB, size_bytes / GIB / seconds)
