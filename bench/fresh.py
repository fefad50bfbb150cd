"""Writes where nothing is yet: into an empty volume, and just after a snapshot beside qemu-nbd with
a fresh qcow2 overlay on a full image, which is how qcow2 goes on after a snapshot.

No block is met twice, so every write allocates. What the files then occupy more is held against
what a peer takes for the same writes. An overlay copies a cluster of 64 KiB for the first block in
it and takes no more for the other fifteen: what it takes, and its speed, depend on how scattered
the writes are. So few blocks of a large image are written, as by a guest that goes on working.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.files import occupied_bytes, write_back
from bench.fio import Job, Outcome, run_job
from bench.processes import run
from bench.results import Comparison, Section, Target
from bench.rows import FILL_BLOCK_BYTES
from bench.servers import (
    BOCKD,
    NBDKIT_FILE,
    PEERS,
    QCOW2_THREADS,
    Daemon,
    Serve,
    Served,
    bockd_daemon,
    serve_image,
)
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE

DEPTH = 32
EMPTY_SHARE, OVERLAY_SHARE = 4, 16
"""A run writes one block in so many; of an overlay's cluster, which has sixteen, one or two."""
OVERLAY_SIZES = 4
"""Images just snapshotted are so many times as large, so that runs are as long as with others."""

EMPTY_ROW = "empty-4k-randwrite-qd32"
OVERLAY_ROW, SPACE_ROW = "after-snapshot-against-overlay", "after-snapshot-space-against-overlay"
ROWS = (EMPTY_ROW, OVERLAY_ROW, SPACE_ROW)
OVERLAY = "qemu-nbd qcow2 overlay"
FASTER, SMALLER = Target(5.0), Target(0.1, at_most=True)
"""Than the overlay: the writes, and the space that they take."""


def measure_fresh(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    comparisons: list[Comparison] = []
    job = _job(scale.size_bytes, EMPTY_SHARE)
    overlay_job = _job(scale.size_bytes * OVERLAY_SIZES, OVERLAY_SHARE)
    with bockd_daemon(context.directory / "fresh", context.placement) as daemon:
        if EMPTY_ROW in rows:
            contestants: list[Fresh] = [EmptyVolume(daemon, job, context)]
            contestants += [EmptyPeer(name, job, context) for name in (NBDKIT_FILE, QCOW2_THREADS)]
            turns = in_turn(EMPTY_ROW, [one.contestant() for one in contestants], scale, context)
            comparisons += [turns.against(NBDKIT_FILE), turns.against(QCOW2_THREADS)]
        if OVERLAY_ROW in rows or SPACE_ROW in rows:
            comparisons += _against_overlay(daemon, overlay_job, scale, context)
    method = (
        f"Random 4 KiB writes at depth {DEPTH}, each block once: to one block in {EMPTY_SHARE} of "
        f"an empty image of {job.size_bytes >> 20} MiB; and to one block in {OVERLAY_SHARE} of a "
        f"full image of {overlay_job.size_bytes >> 20} MiB that was just snapshotted, beside a "
        "qcow2 overlay just made on a full qcow2 image. Space is what all files occupy more after "
        "the writes. An overlay takes and copies 64 KiB for the first write to a cluster of as "
        "much, and nothing for the next ones: where more blocks are written, it takes less for "
        f"each. {method_of_turns(scale, context)}"
    )
    found = tuple(one for one in comparisons if one.row in rows)
    return Section("Writes where nothing is yet", method, found)


def _job(size_bytes: int, share: int) -> Job:
    written = size_bytes // BLOCK_SIZE // share * BLOCK_SIZE
    return Job("randwrite", BLOCK_SIZE, DEPTH, size_bytes, io_bytes=written)


def _against_overlay(
    daemon: Daemon, job: Job, scale: Scale, context: BenchContext
) -> list[Comparison]:
    with _overlay(job, context) as theirs:
        ours = _JustSnapshotted(daemon, job, context)
        contestants = [ours.contestant(), theirs.contestant()]
        turns = in_turn(OVERLAY_ROW, contestants, scale, context)
    rounds = min(len(ours.grown), len(theirs.grown))
    return [
        turns.against(OVERLAY, FASTER),
        Comparison(
            SPACE_ROW,
            BOCKD,
            OVERLAY,
            "bytes",
            tuple(float(grown) for grown in ours.grown[:rounds]),
            tuple(float(grown) for grown in theirs.grown[:rounds]),
            SMALLER,
        ),
    ]


class Fresh:
    """A contestant that begins each run with something new."""

    name: str

    def __init__(self, job: Job, context: BenchContext) -> None:
        self.job = job
        self.context = context
        self._numbers = count()
        self._before = 0
        self.served: Served | None = None
        self.grown: list[int] = []

    def renew(self, number: int) -> Served:
        """Start the server with a new image, the `number`-th."""
        raise NotImplementedError

    def dispose(self) -> None:
        """Take the image away."""
        raise NotImplementedError

    def contestant(self) -> Contestant:
        """Return the contestant for `in_turn`."""
        return Contestant(self.name, self.run, self._prepare, self._after)

    def _prepare(self) -> Served:
        self.served = self.renew(next(self._numbers))
        self._before = _occupied(self.served.directory)
        return self.served

    def run(self, served: Served) -> Outcome:
        """Do what is measured."""
        return run_job(self.job, served.uri, core=self.context.placement.client)

    def _after(self) -> None:
        assert self.served is not None
        write_back(self.served.directory)
        self.grown.append(_occupied(self.served.directory) - self._before)
        self.dispose()


class EmptyVolume(Fresh):
    """A new volume for each run."""

    name = BOCKD

    def __init__(self, daemon: Daemon, job: Job, context: BenchContext) -> None:
        super().__init__(job, context)
        self._daemon = daemon
        self._volume = ""

    def renew(self, number: int) -> Served:
        self._volume = f"empty-{number}"
        return self._daemon.volume(self._volume, self.job.size_bytes)

    def dispose(self) -> None:
        self._daemon.bock("volume", "delete", self._volume)


class EmptyPeer(Fresh):
    """A server with a new image for each run."""

    def __init__(self, name: str, job: Job, context: BenchContext) -> None:
        super().__init__(job, context)
        self.name = name
        self._serve: Serve = PEERS[name].serve
        self._stack = ExitStack()

    def renew(self, number: int) -> Served:
        directory = self.context.directory / f"e-{self.name.split()[0]}-{number}"
        context = self._serve(directory, self.job.size_bytes, self.context.placement)
        return self._stack.enter_context(context)

    def dispose(self) -> None:
        assert self.served is not None
        self._stack.close()
        shutil.rmtree(self.served.directory)


class _JustSnapshotted(Fresh):
    name = BOCKD

    def __init__(self, daemon: Daemon, job: Job, context: BenchContext) -> None:
        super().__init__(job, context)
        self._daemon = daemon
        self._volume = daemon.volume("snapshotted", job.size_bytes)
        fill(self._volume, job.size_bytes, context.placement)

    def renew(self, number: int) -> Served:
        self._daemon.bock("snapshot", "create", "snapshotted", f"before-{number}")
        return self._volume

    def dispose(self) -> None:
        pass  # the next snapshot freezes what was written


@dataclass
class _OverlayImage:
    base: Path
    directory: Path


class _FreshOverlay(Fresh):
    name = OVERLAY

    def __init__(self, images: _OverlayImage, job: Job, context: BenchContext) -> None:
        super().__init__(job, context)
        self._images = images
        self._stack = ExitStack()

    def renew(self, number: int) -> Served:
        overlay = self._images.directory / "overlay"
        overlay.unlink(missing_ok=True)
        backing = ["-b", str(self._images.base), "-F", "qcow2"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)])
        options = ("--format=qcow2", "--cache=writeback", "--aio=threads")
        context = serve_image(overlay, options, self.context.placement)
        return self._stack.enter_context(context)

    def dispose(self) -> None:
        self._stack.close()


@contextmanager
def _overlay(job: Job, context: BenchContext) -> Iterator[_FreshOverlay]:
    """Overlays on a qcow2 image that is filled as ours is."""
    directory = context.directory / "overlay"
    directory.mkdir()
    base = context.directory / "overlay-base"
    peer = PEERS[QCOW2_THREADS]
    with peer.serve(base, job.size_bytes, context.placement) as served:
        fill(served, job.size_bytes, context.placement, FILL_BLOCK_BYTES)
    overlay = _FreshOverlay(_OverlayImage(base / "image", directory), job, context)
    try:
        yield overlay
    finally:
        overlay.dispose()


def _occupied(directory: Path) -> int:
    return occupied_bytes(path for path in directory.rglob("*") if path.is_file())
