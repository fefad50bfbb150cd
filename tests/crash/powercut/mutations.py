"""The engine with one thing left out that its durability rests on: what the laboratory must notice.

Each mutation is a context manager, named for what is missing while it lasts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import lmdb

from bockd.drivers.local import poolfiles
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import journal, layer, layerfiles
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.journal import (
    BARRIERS,
    CellBlocks,
    CellRun,
    Change,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
)
from bockd.drivers.local.format.journalreading import SegmentContents
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.maintenance import reclaim
from bockd.drivers.local.volume import cells, recovery, volume
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.cellpunching import CellPuncher
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.flushing import Flusher
from bockd.drivers.local.volume.heads import Heads
from bockd.drivers.local.volume.recovery import Replay
from bockd.drivers.local.volume.sweeping import Sweep
from bockd.drivers.local.volume.volume import Volume
from bockd.model import LayerId
from bockd.runtime.steps import Blocking, Signal, Steps, blocking

Mutation = Callable[[], Any]


def _nothing(*_: object) -> None:
    """In the place of a sync."""


class _OsWithoutFsync:
    """The module `os`, whose fsync does nothing when it is called from `function`."""

    def __init__(self, function: str) -> None:
        self._function = function

    def __getattr__(self, name: str) -> Any:
        if name == "fsync" and sys._getframe(1).f_code.co_name == self._function:
            return _nothing
        return getattr(os, name)


def _caller_of(function: str, frame: FrameType) -> FrameType:
    """The frame that called `function`, if that is what the given one runs; else the given one."""
    caller = frame.f_back if frame.f_code.co_name == function else frame
    assert caller is not None
    return caller


def _without_final(matches: Callable[[FrameType, str], bool]) -> Mutation:
    """One of the syncs whose failure would be final for the volume."""

    @contextmanager
    def mutation() -> Generator[None]:
        real = Flusher._final

        def final(self: Flusher, sync: Blocking[None], doing: str) -> Steps[None]:
            left_out = matches(_caller_of("sync_head", sys._getframe(1)), doing)
            return real(self, blocking(_nothing) if left_out else sync, doing)

        with mock.patch.object(Flusher, "_final", final):
            yield

    return mutation


def _round(kind: Kind, what: str) -> Mutation:
    """The sync of the head or of the journal, in a flush or when a segment is sealed."""
    return _without_final(
        lambda frame, doing: (
            frame.f_code.co_name == "sync_all" and frame.f_locals["kind"] is kind and what in doing
        )
    )


def _without(module: Any, name: str = "sync_directory") -> Mutation:
    return lambda: mock.patch.object(module, name, _nothing)


def _without_fsync(module: Any, function: str) -> Mutation:
    return lambda: mock.patch.object(module, "os", _OsWithoutFsync(function))


def _without_layer_sync(function: str) -> Mutation:
    """Layer.sync, when it is called from `function` of whatever module."""
    real = Layer.sync

    def sync(self: Layer) -> None:
        if sys._getframe(1).f_code.co_name != function:
            real(self)

    return lambda: mock.patch.object(Layer, "sync", sync)


def _lmdb_with(**options: bool) -> Mutation:
    real: Any = lmdb.open
    return lambda: mock.patch.object(
        lmdb, "open", lambda *given, **named: real(*given, **named, **options)
    )


@contextmanager
def _late_barrier() -> Generator[None]:
    """A barrier that covers what came while the head was synced."""
    real = JournalSegment.append

    def append(self: JournalSegment, entries: list[Entry]) -> None:
        real(self, [late(entry, self.last_sequence) for entry in entries])

    def late(entry: Entry, sequence: int) -> Entry:
        if isinstance(entry, list | ZeroBlocks | CellRun | CellBlocks) or entry[0] not in BARRIERS:
            return entry
        return entry[0], sequence, 0

    with mock.patch.object(JournalSegment, "append", append):
        yield


@contextmanager
def _late_join() -> Generator[None]:
    """A flush that is content with one that has already begun."""
    real = Flusher.flush
    running: dict[Flusher, Signal] = {}

    async def flush(self: Flusher) -> None:
        if self in running:
            await running[self]
            return
        done = running[self] = Signal()
        try:
            await real(self)
        finally:
            del running[self]
            done.fire()

    with mock.patch.object(Flusher, "flush", flush):
        yield


@contextmanager
def _replay_of_everything() -> Generator[None]:
    """A recovery that takes what no barrier covers."""

    def plan(segments: list[SegmentContents], _boot: str, _head: Layer) -> Replay:
        return Replay(tuple(change for segment in segments for change in segment.changes), 0)

    with mock.patch.object(recovery, "plan_replay", plan):
        yield


@contextmanager
def _untold_allocations() -> Generator[None]:
    """Zeros that are allocated without a word to the journal. Those of a write are a list."""
    real = JournalTail.stage_zeros

    def stage_zeros(self: JournalTail, blocks: Sequence[int]) -> None:
        if not isinstance(blocks, range):
            real(self, blocks)

    with mock.patch.object(JournalTail, "stage_zeros", stage_zeros):
        yield


@contextmanager
def _cells_used_before_the_barrier() -> Generator[None]:
    """A cell that is used again once it is punched, durably, whatever a power cut may bring back of
    the map."""
    real = CellPuncher._punch

    def punch(self: CellPuncher, emptied: range) -> bool:
        punched = real(self, emptied)
        os.fsync(self.head.descriptors[0])
        return punched

    with (
        mock.patch.object(CellPuncher, "_punch", punch),
        mock.patch.object(HeadCells, "note_punched", _make_free),
    ):
        yield


def _make_free(self: HeadCells, emptied: range) -> None:
    self._free.add(emptied.start, emptied.stop)


@contextmanager
def _tail_behind_what_is_named() -> Generator[None]:
    """A head whose cells begin behind the last one that the index names."""

    def tail(self: Heads, head: Layer) -> int:
        with self._store.index.reading() as txn:
            return Catalogue(txn).layer(head.id).cells

    with mock.patch.object(Heads, "_tail_of", tail):
        yield


@contextmanager
def _recovery_at_own_offsets() -> Generator[None]:
    """A recovery that takes a block's number for its cell."""

    class OwnOffsets(MapChanges):
        def _give_cells(self, change: Change) -> None:
            super()._give_cells(change._replace(cell=change.start))

    with mock.patch.object(recovery, "MapChanges", OwnOffsets):
        yield


@contextmanager
def _sweep_of_new_cells() -> Generator[None]:
    """A sweep that goes on behind the end that the file had."""
    real = Sweep.of

    def of(store: StoreAccess, head: LayerId) -> Sweep | None:
        sweep = real(store, head)
        if sweep is not None:
            sweep._tail = cells.MAX_CELLS
        return sweep

    with mock.patch.object(Sweep, "of", of):
        yield


MUTATIONS: dict[str, Mutation] = {
    "flush: sync of the head": _round(Kind.BARRIER, "head"),
    "flush: sync of the journal": _round(Kind.BARRIER, "journal"),
    "flush: the barrier covers only what came before": _late_barrier,
    "flush: joins only one that has not begun": _late_join,
    "seal: sync of the head": _round(Kind.SEAL, "head"),
    "seal: sync of the journal": _round(Kind.SEAL, "journal"),
    "snapshot: sync of the old head": _without_final(
        lambda frame, _doing: frame.f_code.co_name == "_swap"
    ),
    "journal segment: fsync": _without_fsync(journal, "create"),
    "journal segment: fsync of its directory": _without(journal),
    "new layer: fsync": _without_fsync(layerfiles, "create_layer"),
    "new layer: fsync of its directory": _without(layerfiles),
    "grown layer: fsync": _without_fsync(layer, "grow"),
    "merged layer: sync": _without_layer_sync("_copy"),
    "settled layer: sync": _without_layer_sync("_copy_window"),
    "index: all of LMDB's syncs": _lmdb_with(sync=False),
    "index: LMDB's sync of its meta page": _lmdb_with(metasync=False),
    "new pool: fsync of its directories": _without(poolfiles),
    "index: what whole leaves became holes": lambda: mock.patch.object(
        MapChanges, "_erase", return_value=False
    ),
    "recovery: sync of the head": _without_layer_sync("recover"),
    "recovery: only what a barrier covers counts": _replay_of_everything,
    "journal: where a redirect has zeros": lambda: mock.patch.object(
        volume, "zero_blocks", return_value=[]
    ),
    "journal: where a write in place will leave zeros": lambda: mock.patch.object(
        Volume, "foretell_zeros", _nothing
    ),
    "journal: which zeros are allocated": _untold_allocations,
    "removed layers: fsync of their directory": _without(reclaim),
    "cells: not used again before the barrier": _cells_used_before_the_barrier,
    "cells: the tail begins behind the end of the file": _tail_behind_what_is_named,
    "cells: a checkpoint stores them": lambda: mock.patch.object(
        MapChanges, "_give_cells", _nothing
    ),
    "cells: a trim takes them out of the index": lambda: mock.patch.object(
        MapChanges, "_take_cells", _nothing
    ),
    "recovery: in which cells the blocks of a record are": _recovery_at_own_offsets,
    "sweep: only what the file had when it was opened": _sweep_of_new_cells,
}
