"""Writes where nothing is yet: into an empty volume, and just after a snapshot beside qemu-nbd with
a fresh qcow2 overlay on a full image, which is how qcow2 goes on after a snapshot.

No block is met twice, so every write allocates. What the files then occupy more is held against
what a peer takes for the same writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.files import occupied_bytes, settle
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
from bench.turns import Contestant, Field, Scale, in_turn, method_of_turns
from bockd.model import BLOCK_SIZE

DEPTH = 32
SHARE = 4
"""A run writes one block in so many."""

EMPTY_ROW = "empty-4k-randwrite-qd32"
OVERLAY_ROW, SPACE_ROW = "after-snapshot-against-overlay", "after-snapshot-space-against-overlay"
ROWS = (EMPTY_ROW, OVERLAY_ROW, SPACE_ROW)
OVERLAY = "qemu-nbd qcow2 overlay"


def measure_fresh(scale: Scale, ground: Field, rows: Sequence[str] = ROWS) -> Section:
    """The rows that are asked for."""
    comparisons: list[Comparison] = []
    blocks = scale.size_bytes // BLOCK_SIZE // SHARE
    job = Job("randwrite", BLOCK_SIZE, DEPTH, scale.size_bytes, io_bytes=blocks * BLOCK_SIZE)
    with bockd_daemon(ground.directory / "fresh", ground.placement) as daemon:
        if EMPTY_ROW in rows:
            contestants: list[_Fresh] = [_EmptyVolume(daemon, job, ground)]
            contestants += [_EmptyPeer(name, job, ground) for name in (NBDKIT_FILE, QCOW2_THREADS)]
            turns = in_turn(EMPTY_ROW, [one.contestant() for one in contestants], scale, ground)
            comparisons += [turns.against(NBDKIT_FILE), turns.against(QCOW2_THREADS)]
        if OVERLAY_ROW in rows or SPACE_ROW in rows:
            comparisons += _against_overlay(daemon, job, scale, ground)
    method = (
        f"{blocks:,} random 4 KiB writes at depth {DEPTH}, each block once, of images of "
        f"{scale.size_bytes >> 20} MiB: into an empty one, and, full before, into one that was "
        "just snapshotted, beside a qcow2 overlay just made on a full qcow2 image. Space is what "
        f"all files occupy more after the writes; {method_of_turns(scale, ground)}"
    )
    found = tuple(one for one in comparisons if one.row in rows)
    return Section("Writes where nothing is yet", method, found)


def _against_overlay(daemon: Daemon, job: Job, scale: Scale, ground: Field) -> list[Comparison]:
    with _overlay(scale, job, ground) as theirs:
        ours = _JustSnapshotted(daemon, job, scale, ground)
        contestants = [ours.contestant(), theirs.contestant()]
        turns = in_turn(OVERLAY_ROW, contestants, scale, ground)
    rounds = min(len(ours.grown), len(theirs.grown))
    return [
        turns.against(OVERLAY, Target(8.0)),
        Comparison(
            SPACE_ROW,
            BOCKD,
            OVERLAY,
            "bytes",
            tuple(float(grown) for grown in ours.grown[:rounds]),
            tuple(float(grown) for grown in theirs.grown[:rounds]),
            Target(0.1, at_most=True),
        ),
    ]


class _Fresh:
    """A contestant that begins each run with something new."""

    name: str

    def __init__(self, job: Job, ground: Field) -> None:
        self._job = job
        self._ground = ground
        self._numbers = count()
        self._before = 0
        self.served: Served | None = None
        self.grown: list[int] = []

    def renew(self, number: int) -> Served:
        """The server with a new image, the `number`-th."""
        raise NotImplementedError

    def dispose(self) -> None:
        """Take the image away."""
        raise NotImplementedError

    def contestant(self) -> Contestant:
        """For `in_turn`."""
        return Contestant(self.name, self._run, self._prepare, self._after)

    def _prepare(self) -> Served:
        self.served = self.renew(next(self._numbers))
        self._before = _occupied(self.served.directory)
        return self.served

    def _run(self, served: Served) -> Outcome:
        return run_job(self._job, served.uri, core=self._ground.placement.client)

    def _after(self) -> None:
        assert self.served is not None
        settle(self.served.directory)
        self.grown.append(_occupied(self.served.directory) - self._before)
        self.dispose()


class _EmptyVolume(_Fresh):
    name = BOCKD

    def __init__(self, daemon: Daemon, job: Job, ground: Field) -> None:
        super().__init__(job, ground)
        self._daemon = daemon
        self._volume = ""

    def renew(self, number: int) -> Served:
        self._volume = f"empty-{number}"
        return self._daemon.volume(self._volume, self._job.size_bytes)

    def dispose(self) -> None:
        self._daemon.bock("volume", "delete", self._volume)


class _EmptyPeer(_Fresh):
    def __init__(self, name: str, job: Job, ground: Field) -> None:
        super().__init__(job, ground)
        self.name = name
        self._serve: Serve = PEERS[name].serve
        self._stack = ExitStack()

    def renew(self, number: int) -> Served:
        directory = self._ground.directory / f"e-{self.name.split()[0]}-{number}"
        context = self._serve(directory, self._job.size_bytes, self._ground.placement)
        return self._stack.enter_context(context)

    def dispose(self) -> None:
        assert self.served is not None
        self._stack.close()
        shutil.rmtree(self.served.directory)


class _JustSnapshotted(_Fresh):
    name = BOCKD

    def __init__(self, daemon: Daemon, job: Job, scale: Scale, ground: Field) -> None:
        super().__init__(job, ground)
        self._daemon = daemon
        self._volume = daemon.volume("snapshotted", scale.size_bytes)
        fill(self._volume, scale.size_bytes, ground.placement)

    def renew(self, number: int) -> Served:
        self._daemon.bock("snapshot", "create", "snapshotted", f"before-{number}")
        return self._volume

    def dispose(self) -> None:
        pass  # the next snapshot freezes what was written


@dataclass
class _OverlayImage:
    base: Path
    directory: Path


class _FreshOverlay(_Fresh):
    name = OVERLAY

    def __init__(self, images: _OverlayImage, job: Job, ground: Field) -> None:
        super().__init__(job, ground)
        self._images = images
        self._stack = ExitStack()

    def renew(self, number: int) -> Served:
        overlay = self._images.directory / "overlay"
        overlay.unlink(missing_ok=True)
        backing = ["-b", str(self._images.base), "-F", "qcow2"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)])
        options = ("--format=qcow2", "--cache=writeback", "--aio=threads")
        context = serve_image(overlay, options, self._ground.placement)
        return self._stack.enter_context(context)

    def dispose(self) -> None:
        self._stack.close()


@contextmanager
def _overlay(scale: Scale, job: Job, ground: Field) -> Iterator[_FreshOverlay]:
    """Overlays on a qcow2 image that is filled as ours is."""
    directory = ground.directory / "overlay"
    directory.mkdir()
    base = ground.directory / "overlay-base"
    peer = PEERS[QCOW2_THREADS]
    with peer.serve(base, scale.size_bytes, ground.placement) as served:
        fill(served, scale.size_bytes, ground.placement, FILL_BLOCK_BYTES)
    overlay = _FreshOverlay(_OverlayImage(base / "image", directory), job, ground)
    try:
        yield overlay
    finally:
        overlay.dispose()


def _occupied(directory: Path) -> int:
    return occupied_bytes(path for path in directory.rglob("*") if path.is_file())
