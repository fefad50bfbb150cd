"""Room in an open volume's journal and in the index: who may change the map, and who waits.

Invariants:
* A segment has room for what was let in (`JournalRoom.has_room`): nobody has to wait with a change
  half made.
* A checkpoint is asked for in good time, so that few ever wait, and whenever somebody has to.
* What the index keeps in reserve is only for operations that make room.
"""

from __future__ import annotations

from collections.abc import Callable

from bockd.drivers.local.format.journal import SEGMENT_RECORDS
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.failing import Failure
from bockd.errors import BockdError
from bockd.index.index import LmdbIndex
from bockd.runtime.steps import Steps, blocking
from bockd.runtime.waiting import Pulse, WriteGate

RESERVED_RECORDS = 64
"""Kept free in a segment for barriers and the seal."""

RECORDS_PER_OPERATION = 7
"""No engine operation on a raw head appends more, unless it was promised more: one record of a
change, and up to three places that say twice which of its blocks, 257 at most, are zeros: what the
head has already, before the write, and all of them after it."""

PACKED_RECORDS_PER_OPERATION = 37
"""Nor one on a packed head: 257 blocks in runs that the head does not hold take 30 places at most,
in records of runs or in one of single blocks, and three say twice which of them are zeros."""

ALLOWANCE_BLOCKS = 256
"""Single blocks redirected between two looks at how much room there is; each takes a place of its
own in the journal at most."""

CHECKPOINT_RECORDS = SEGMENT_RECORDS // 2
"""A checkpoint begins when half of a segment is used, so that it ends before the other half is."""

CHECKPOINT_DIRTY_LEAVES = 16 * 1024
"""Or when this many leaves and holed groups wait to be stored: they are pinned in memory, 0.9 KiB
for a leaf at most (2 KiB if it leads to a packed layer), less for a group."""

MAX_DIRTY_LEAVES = 4 * CHECKPOINT_DIRTY_LEAVES
"""At this many, writes wait for the checkpoint."""


class JournalRoom:
    """Admission to the journal: `tail` has room, and not too many leaves are `unstored`."""

    def __init__(
        self,
        tail: JournalTail,
        unstored: Callable[[], int],
        gate: WriteGate,
        index: LmdbIndex,
        failure: Failure,
        changed: Pulse,
        *,
        begin: Callable[[bool], Steps[None]],
        want_checkpoint: Callable[[], None],
    ) -> None:
        """`changed` wakes whoever waits, to look again; `begin` makes the journal, from the
        reserve if it may; `want_checkpoint` starts one, unless one is about to begin."""
        self.checkpoint_error: BockdError | None = None
        """Why the last checkpoint has made no room."""
        self.per_operation = RECORDS_PER_OPERATION
        """What each operation may append; it depends on the head."""
        self.promised = 0
        """Places promised to operations that are inside, beside `per_operation` to each."""
        self._tail = tail
        self._unstored = unstored
        self._gate = gate
        self._index = index
        self._failure = failure
        self._changed = changed
        self._begin = begin
        self._want_checkpoint = want_checkpoint

    def has_room(self, more: int = 0, *, entered: bool = False) -> bool:
        """Return whether one more operation may change the map, and append `more` places than
        `per_operation`. One that has `entered` the gate is counted there. Ask for a
        checkpoint in good time."""
        tail = self._tail
        if not tail.begun:
            return False
        free = tail.free()
        dirty = self._unstored()
        if free < SEGMENT_RECORDS - CHECKPOINT_RECORDS or dirty > CHECKPOINT_DIRTY_LEAVES:
            self._want_checkpoint()
        inside = self._gate.inside + (not entered)
        promised = self.per_operation * inside + self.promised + more
        needed = RESERVED_RECORDS + promised + ALLOWANCE_BLOCKS
        if free >= needed and dirty < MAX_DIRTY_LEAVES:
            tail.allowance = ALLOWANCE_BLOCKS
            return True
        tail.allowance = 0
        # Due or not: its end wakes those who wait, also where only operations inside take the room.
        self._want_checkpoint()
        return False

    def may_redirect(self) -> bool:
        """Return whether an operation may take new space: `has_room`, and the index is not short of
        space."""
        return not self._index.short and self.has_room()

    async def wait_for_index(self) -> None:
        """Return when the index may take more space. Raises NoSpaceError: what the index has left
        is kept for operations that make room."""
        if self._index.short:
            await blocking(self._index.replenish)

    async def wait(self, *, reserve: bool, more: int = 0) -> None:
        """Wait until there is room in the journal (`has_room`), which a checkpoint makes. If there
        is no journal yet, create one, from the `reserve` if the disk is full. Raises what prevents
        that."""
        if not self._tail.begun:
            await self._begin(reserve)
        asked = False
        while not self.has_room(more):
            self._failure.check_usable()
            if asked and self.checkpoint_error is not None:
                raise self.checkpoint_error
            asked = True
            await self._changed.wait()
