"""Whole images: copied out of a server and into it, and by `bock`, beside qemu-img."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from bench.files import write_back
from bench.fio import Job, Outcome
from bench.fresh import EmptyPeer, EmptyVolume, Fresh
from bench.processes import pinned, run
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import BOCKD, EXPORT, NBDKIT_FILE, RAW_THREADS, Daemon, Served, bockd_daemon
from bench.throughput import Fleet, fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import MIB

OUT_ROW, IN_ROW, CONVERT_ROW = "nbdcopy-out", "nbdcopy-in", "qemu-img-convert-in"
FRESH_ROW = "nbdcopy-in-fresh"
EXPORT_ROW, IMPORT_ROW = "volume-export", "volume-import"
ROWS = (OUT_ROW, IN_ROW, CONVERT_ROW, FRESH_ROW, EXPORT_ROW, IMPORT_ROW)
TARGETS = {IN_ROW: Target(1.0), CONVERT_ROW: Target(1.0)}
"""Of what nbdkit's file plugin reaches."""
FRESH, AS_QEMU = Target(0.9), Target(1.0)
QEMU_IMG = "qemu-img"
UNIT = "MiB/s"


def measure_copies(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    image = context.directory / "copied"
    comparisons = _over_what_is_there(image, scale, context, rows)
    with bockd_daemon(context.directory / "copies", context.placement) as daemon:
        if FRESH_ROW in rows:
            job = Job("write", FILL_BLOCK_BYTES, 1, scale.size_bytes)
            fresh: list[Fresh] = [
                _FreshVolume(image, daemon, job, context),
                _FreshPeer(image, NBDKIT_FILE, job, context),
            ]
            contestants = [one.contestant() for one in fresh]
            turns = in_turn(FRESH_ROW, contestants, scale, context, UNIT)
            comparisons.append(turns.against(NBDKIT_FILE, FRESH))
        if EXPORT_ROW in rows:
            comparisons.append(_exports(daemon, scale, context))
        if IMPORT_ROW in rows:
            comparisons.append(_imports(image, daemon, scale, context))
    method = (
        f"An image of {scale.size_bytes >> 20} MiB, nbdcopy and qemu-img with their own choice of "
        "connections and requests: out of the server to nowhere; from a file into the server, over "
        "what is there and (`fresh`) where nothing is yet. `bock volume export` and `import` "
        "beside qemu-img convert, from and to the same daemon over NBD, until all is on the disk; "
        f"{method_of_turns(scale, context)}"
    )
    return Section("Copies of whole images", method, tuple(comparisons))


def _copy(command: Sequence[str], size_bytes: int, context: BenchContext) -> Outcome:
    return _timed(lambda: run(command), size_bytes, context)


def _timed(copy: Callable[[], object], size_bytes: int, context: BenchContext) -> Outcome:
    began = time.perf_counter()
    with pinned(context.placement.client):
        copy()
    mebibytes = size_bytes // MIB
    return Outcome(mebibytes, mebibytes / (time.perf_counter() - began))


def _nbdcopy_in(image: Path, uri: str) -> list[str]:
    return ["nbdcopy", "--destination-is-zero", str(image), uri]


def _qemu_img(*arguments: str) -> list[str]:
    """Until what was written is on the disk, unlike by default."""
    return ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "writeback", *arguments]


def _over_what_is_there(
    image: Path, scale: Scale, context: BenchContext, rows: Sequence[str]
) -> list[Comparison]:
    """Also copies the image to a file, for the others."""
    commands: dict[str, Callable[[Served], list[str]]] = {
        OUT_ROW: lambda served: ["nbdcopy", served.uri, "null:"],
        IN_ROW: lambda served: _nbdcopy_in(image, served.uri),
        CONVERT_ROW: lambda served: _qemu_img("-n", str(image), served.uri),
    }
    comparisons: list[Comparison] = []
    with ExitStack() as stack:
        fleet = Fleet(stack, scale, context)
        servers = {}
        for name in (BOCKD, NBDKIT_FILE, RAW_THREADS):
            served = fleet.get(name, FILL_BLOCK_BYTES, tcp=False)
            assert served is not None
            servers[name] = served
        run(["nbdcopy", servers[BOCKD].uri, str(image)])
        for row, command in commands.items():
            if row in rows:
                copying = [
                    _copying(name, served, command(served), scale, context)
                    for name, served in servers.items()
                ]
                turns = in_turn(row, copying, scale, context, UNIT)
                comparisons.append(turns.against(NBDKIT_FILE, TARGETS.get(row)))
                comparisons.append(turns.against(RAW_THREADS))
    return comparisons


def _copying(
    name: str, served: Served, command: Sequence[str], scale: Scale, context: BenchContext
) -> Contestant:
    return Contestant(
        name,
        run=lambda _: _copy(command, scale.size_bytes, context),
        prepare=lambda: served,
        after=lambda: write_back(served.directory),
    )


class _FreshVolume(EmptyVolume):
    def __init__(self, image: Path, daemon: Daemon, job: Job, context: BenchContext) -> None:
        super().__init__(daemon, job, context)
        self._image = image

    def run(self, served: Served) -> Outcome:
        return _copy(_nbdcopy_in(self._image, served.uri), self.job.size_bytes, self.context)


class _FreshPeer(EmptyPeer):
    def __init__(self, image: Path, name: str, job: Job, context: BenchContext) -> None:
        super().__init__(name, job, context)
        self._image = image

    def run(self, served: Served) -> Outcome:
        return _copy(_nbdcopy_in(self._image, served.uri), self.job.size_bytes, self.context)


def _exports(daemon: Daemon, scale: Scale, context: BenchContext) -> Comparison:
    served = daemon.volume(EXPORT, scale.size_bytes)
    fill(served, scale.size_bytes, context.placement)
    target = context.directory / "exported"

    def by_bock(_: Served) -> Outcome:
        export = ("volume", "export", EXPORT, str(target), "--format", "raw")
        return _timed(lambda: daemon.bock(*export), scale.size_bytes, context)

    def by_qemu(_: Served) -> Outcome:
        return _copy(_qemu_img(served.uri, str(target)), scale.size_bytes, context)

    def prepare() -> Served:
        target.unlink(missing_ok=True)
        return served

    contestants = [Contestant(BOCKD, by_bock, prepare), Contestant(QEMU_IMG, by_qemu, prepare)]
    return in_turn(EXPORT_ROW, contestants, scale, context, UNIT).against(QEMU_IMG, AS_QEMU)


def _imports(image: Path, daemon: Daemon, scale: Scale, context: BenchContext) -> Comparison:
    numbers = count()
    idle = daemon.volume("idle", MIB)
    made: list[str] = []

    def by_bock(_: Served) -> Outcome:
        made.append(f"imported-{next(numbers)}")
        importing = ("volume", "import", str(image), "--name", made[-1], "--format", "raw")
        return _timed(lambda: daemon.bock(*importing), scale.size_bytes, context)

    def by_qemu(_: Served) -> Outcome:
        def copy() -> None:
            served = daemon.volume(made[-1], scale.size_bytes)
            run(_qemu_img("-n", str(image), served.uri))

        made.append(f"converted-{next(numbers)}")
        return _timed(copy, scale.size_bytes, context)

    def after() -> None:
        write_back(idle.directory)
        daemon.bock("volume", "delete", made[-1])

    contestants = [
        Contestant(BOCKD, by_bock, lambda: idle, after),
        Contestant(QEMU_IMG, by_qemu, lambda: idle, after),
    ]
    return in_turn(IMPORT_ROW, contestants, scale, context, UNIT).against(QEMU_IMG, AS_QEMU)
