"""Clones that boot, beside qcow2 overlays, and a snapshot that is deleted, beside a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from bench.files import drop_from_cache, write_back
from bench.fio import Job, Outcome, run_job, run_jobs
from bench.processes import BenchError, run
from bench.results import Comparison, Section
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import EXPORT, PEERS, QCOW2_THREADS, Daemon, Served, bockd_daemon, serve_image
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns, timed
from bockd.model import BLOCK_SIZE, KIB

ONE_ROW, STORM_ROW, DELETE_ROW = "clone-and-cold-read", "boot-storm", "delete-scattered-snapshot"
ROWS = (ONE_ROW, STORM_ROW, DELETE_ROW)
OVERLAYS, FILE = "qemu-nbd qcow2 overlays", "a file"

BOOT_SHARE = 32
"""A boot reads one part in so many of its image: the same for all."""
BOOT_BLOCK_BYTES = 16 * KIB
SPARSE_SHARE = 10
"""The scattered volume is so many times as large as what is written to it."""
BACK_SHARE = 0.9
"""Of the space of what is deleted; others write to the same disk meanwhile."""
BACK_SECONDS = 120.0
"""Far beyond what that takes."""
MOST_ROUNDS = 3
"""They are long."""


def measure_clones(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    scale = replace(scale, rounds=min(scale.rounds, MOST_ROUNDS))
    comparisons: list[Comparison] = []
    directory = context.directory / "clones"
    with bockd_daemon(directory, context.placement) as daemon:
        if ONE_ROW in rows or STORM_ROW in rows:
            boots = _Boots(daemon, scale, context)
            for row, clones in ((ONE_ROW, 1), (STORM_ROW, scale.clones)):
                if row in rows:
                    contestants = [boots.of_clones(clones), boots.of_overlays(clones)]
                    turns = in_turn(row, contestants, scale, context, "s", watched=False)
                    comparisons.append(turns.against(OVERLAYS))
        if DELETE_ROW in rows:
            comparisons.append(_deletion(daemon, scale, context))
    method = (
        f"Boots: {scale.clones} clones (or one) of a snapshot of {scale.size_bytes >> 20} MiB that "
        "is not in the page cache, from the first `bock volume create` on until each was "
        f"read in {_boot_bytes(scale) // BOOT_BLOCK_BYTES} random requests of 16 KiB, one after "
        "another in each and all at once; qemu-img create and one qemu-nbd each for the overlays. "
        f"Deleting: a snapshot of {scale.scattered_snapshot_bytes >> 20} MiB in single blocks of "
        f"4 KiB at random places, until the file system has {BACK_SHARE:.0%} of that back (the "
        "volume itself is deleted before); the file has the same blocks and is unlinked. "
        f"{method_of_turns(scale, context)}"
    )
    return Section("Clones and deletion", method, tuple(comparisons))


def _boot_bytes(scale: Scale) -> int:
    return scale.size_bytes // BOOT_SHARE


class _Boots:
    """A full image, as a snapshot of ours and as a qcow2 file, and copies of it that are read."""

    def __init__(self, daemon: Daemon, scale: Scale, context: BenchContext) -> None:
        self._daemon, self._scale, self._context = daemon, scale, context
        size = scale.size_bytes
        self._numbers = count()
        self._served = daemon.volume(EXPORT, size)
        fill(self._served, size, context.placement)
        daemon.bock("snapshot", "create", EXPORT, "image")
        base = context.directory / "base"
        with PEERS[QCOW2_THREADS].serve(base, size, context.placement) as served:
            fill(served, size, context.placement, FILL_BLOCK_BYTES)
        self._base = base / "image"
        self._job = Job("randread", BOOT_BLOCK_BYTES, 1, size, io_bytes=_boot_bytes(scale))

    def of_clones(self, number: int) -> Contestant:
        made: list[str] = []

        def boot(_: Served) -> Outcome:
            began = time.perf_counter()
            for _unused in range(number):
                made.append(f"clone-{next(self._numbers)}")
                self._daemon.bock("volume", "create", made[-1], "--from-snapshot", "image")
            self._read([self._daemon.uri(name) for name in made])
            return timed(time.perf_counter() - began, number)

        def after() -> None:
            while made:
                self._daemon.bock("volume", "delete", made.pop())

        return Contestant("bockd", boot, partial(self._cold, self._served), after)

    def of_overlays(self, number: int) -> Contestant:
        stack = ExitStack()
        directories: list[Path] = []

        def boot(_: Served) -> Outcome:
            began = time.perf_counter()
            uris = []
            for _unused in range(number):
                directories.append(self._context.directory / f"o{next(self._numbers)}")
                uris.append(self._overlay(directories[-1], stack).uri)
            self._read(uris)
            return timed(time.perf_counter() - began, number)

        idle = Served(OVERLAYS, os.getpid(), "", self._base.parent, "")
        return Contestant(OVERLAYS, boot, partial(self._cold, idle), stack.close)

    def _overlay(self, directory: Path, stack: ExitStack) -> Served:
        directory.mkdir()
        overlay = directory / "overlay"
        backing = ["-b", str(self._base), "-F", "qcow2"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)])
        options = ("--format=qcow2", "--cache=writeback", "--aio=threads")
        return stack.enter_context(serve_image(overlay, options, self._context.placement))

    def _read(self, uris: Sequence[str]) -> None:
        run_jobs(self._job, uris, core=self._context.placement.client)

    def _cold(self, served: Served) -> Served:
        write_back(served.directory)
        drop_from_cache(served.directory)
        return served


def _deletion(daemon: Daemon, scale: Scale, context: BenchContext) -> Comparison:
    written = scale.scattered_snapshot_bytes
    size = written * SPARSE_SHARE
    job = Job("randwrite", BLOCK_SIZE, 32, size, io_bytes=written)
    core = context.placement.client
    path = context.directory / "scattered"
    idle = daemon.volume("idle", size)

    def ours() -> Served:
        served = daemon.volume("scattered", size)
        run_job(job, served.uri, core=core)
        daemon.bock("snapshot", "create", "scattered", "last")
        daemon.bock("volume", "delete", "scattered")
        write_back(served.directory)
        return served

    def theirs() -> Served:
        path.touch()
        os.truncate(path, size)
        run_job(job, str(path), core=core)
        write_back(path.parent)
        return idle

    def delete_ours(served: Served) -> Outcome:
        delete = partial(daemon.bock, "snapshot", "delete", "last")
        return timed(seconds_until_free(delete, served.directory, written))

    def delete_theirs(_: Served) -> Outcome:
        return timed(seconds_until_free(path.unlink, path.parent, written))

    contestants = [
        Contestant("bockd", delete_ours, ours),
        Contestant(FILE, delete_theirs, theirs),
    ]
    turns = in_turn(DELETE_ROW, contestants, scale, context, "s")
    return turns.against(FILE)


def seconds_until_free(delete: Callable[[], object], directory: Path, size_bytes: int) -> float:
    """Delete something that occupies so much. Measure the seconds until the file system has nearly
    all of it back. Raises BenchError when it does not get it."""
    wanted = _free_bytes(directory) + int(size_bytes * BACK_SHARE)
    began = time.perf_counter()
    delete()
    while _free_bytes(directory) < wanted:
        if time.perf_counter() - began > BACK_SECONDS:
            raise BenchError("the space of what was deleted did not come back")
        time.sleep(0.01)
    return time.perf_counter() - began


def _free_bytes(directory: Path) -> int:
    """A file that is gone may still have its blocks, so that files are not asked."""
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize
