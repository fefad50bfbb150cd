"""The engine broken in one thing that promise D1 or D4 rests on: what a storm must notice.

Each says what to put in the place of what. A storm's daemons are broken so for as long as they
live, a test's own engine for the length of a `with broken(...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.journal import Change, Kind
from bockd.drivers.local.format.journalreading import SegmentContents
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.ranges import RangeSet
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.volume import recovery
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.recovery import Replay
from bockd.drivers.local.volume.volume import Volume
from bockd.runtime.waiting import HeldRange, RangeLocks

Replacements = list[tuple[Any, str, Any]]
"""Where something lives, its name there, and what to put in its place."""

Mutation = Callable[[], Replacements]

EVERY = 3
"""Of the records of a checkpoint, which are left out."""

APPENDS_OF_COMMITS = 64
"""Of the commits, which append."""


def reply_before_the_journal() -> Replacements:
    """Of the requests' commits only some append; the others leave it to a later one."""
    real, calls = JournalTail.commit, 0

    def commit(self: JournalTail) -> None:
        nonlocal calls
        calls += 1
        caller = sys._getframe(1).f_code.co_name
        if caller in ("sync_all", "_seal", "_swap") or calls % APPENDS_OF_COMMITS == 0:
            real(self)

    return [(JournalTail, "commit", commit)]


def forget_a_redirect_on_replay() -> Replacements:
    real = recovery.plan_replay

    def plan(segments: list[SegmentContents], boot: str, head: Layer) -> Replay:
        replay = real(segments, boot, head)
        redirects = [c for c in replay.changes if c.kind is Kind.REDIRECT]
        return Replay(tuple(c for c in replay.changes if c not in redirects[-1:]), 0)

    return [(recovery, "plan_replay", plan)]


def skip_a_record_in_a_checkpoint() -> Replacements:
    real, calls = MapChanges.apply, 0

    def apply(self: MapChanges, change: Change) -> None:
        nonlocal calls
        calls += 1
        if calls % EVERY:
            real(self, change)

    return [(MapChanges, "apply", apply)]


def checkpoint_forgets_what_came_meanwhile() -> Replacements:
    """Leaves that changed during a checkpoint count as stored, and are dropped from memory."""
    real = LeafCache.mark_clean
    return [(LeafCache, "mark_clean", lambda self, _applied: real(self, 1 << 62))]


def snapshot_without_freezing() -> Replacements:
    """The volume goes on writing to the head that has become the snapshot's."""
    real = Volume.adopt_head

    def adopt_head(self: Volume, head: Layer) -> None:
        first = not hasattr(self, "_head_slot")
        kept = None if first else (self._head_slot, self._head_descriptor)
        real(self, head)
        if kept is not None:
            self._head_slot, self._head_descriptor = kept

    return [(Volume, "adopt_head", adopt_head)]


def punch_what_was_written_since() -> Replacements:
    """A write leaves its blocks on the list of what a trim lets be punched."""
    real = RangeSet.remove

    def remove(self: RangeSet, first: int, end: int) -> list[tuple[int, int]]:
        ours = sys._getframe(1).f_code.co_name in ("_punch_piece", "_pass_over_holes")
        return real(self, first, end) if ours else []

    return [(RangeSet, "remove", remove)]


def copy_up_without_locks() -> Replacements:
    """Two writes to parts of one frozen block both copy it."""

    async def acquire(self: RangeLocks, first: int, end: int) -> HeldRange:
        held = HeldRange(first, end)
        self.held.append(held)
        return held

    return [(RangeLocks, "acquire", acquire), (RangeLocks, "busy", lambda *_: False)]


def partial_write_without_the_rest() -> Replacements:
    """What a write leaves of a block is not taken over from the block it replaces."""

    def blank(self: Volume, offset: int, end: int) -> tuple[memoryview, memoryview]:
        before, after = self._edge_lengths(offset, end)
        return memoryview(bytes(before)), memoryview(bytes(after))

    async def edges(self: Volume, offset: int, end: int) -> tuple[memoryview, memoryview]:
        return blank(self, offset, end)

    return [(Volume, "edges", edges), (Volume, "try_edges", blank)]


def use_emptied_cells_at_once() -> Replacements:
    """A cell that a trim has emptied is given out before it is punched, and punched all the
    same."""
    real = HeadCells.empty

    def empty(self: HeadCells, first: int, end: int) -> None:
        real(self, first, end)
        self._free.add(first, end)

    return [(HeadCells, "empty", empty), (HeadCells, "note_punched", lambda *_: None)]


def move_without_copying() -> Replacements:
    def copy_nothing(*_given: object) -> None:
        """Leave the place empty that maps are led to."""

    return [(Settler, "_copy_window", copy_nothing)]


MUTATIONS: dict[str, Mutation] = {
    "a reply comes after the journal's append": reply_before_the_journal,
    "recovery replays every redirect": forget_a_redirect_on_replay,
    "a checkpoint applies every record": skip_a_record_in_a_checkpoint,
    "what comes during a checkpoint is not in the index": checkpoint_forgets_what_came_meanwhile,
    "a snapshot's layer is frozen": snapshot_without_freezing,
    "a write takes its blocks off the punches": punch_what_was_written_since,
    "partial writes to one block exclude each other": copy_up_without_locks,
    "a partial write takes over the rest of its block": partial_write_without_the_rest,
}
"""By the rule that is broken, of pools whose heads are raw."""

PACKED_MUTATIONS: dict[str, Mutation] = {
    "a cell is not used again before it is punched": use_emptied_cells_at_once,
    "what has moved was copied": move_without_copying,
}
"""The same of packed heads."""


def break_for_good(mutation: Mutation) -> None:
    """Break the engine of this process."""
    for owner, name, value in mutation():
        setattr(owner, name, value)


@contextmanager
def broken(mutation: Mutation) -> Iterator[None]:
    """Break the engine of this process for the duration."""
    with ExitStack() as patches:
        for owner, name, value in mutation():
            patches.enter_context(mock.patch.object(owner, name, value))
        yield
