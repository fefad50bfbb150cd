"""A volume's map changes on their way into its journal, and what ends that: a failure.

    stage       a change joins the batch under way
    commit      the batch is appended, before it is acknowledged (promise D1)
    fail        nothing is appended or acknowledged any more; why is recorded in the index

A segment has room for what was let in (`has_room`): nobody has to wait with a change half made.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from bockd.drivers.local.access import Spawn, StoreAccess
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import (
    SEGMENT_RECORDS,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
    places,
)
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.errors import BockdError, ReadOnlyFileSystemError, volume_failed
from bockd.failpoints import Failpoint, hit
from bockd.pool.index import Transaction
from bockd.runtime.steps import Signal, Steps, blocking
from bockd.runtime.waiting import Mutex, WriteGate

log = logging.getLogger(__name__)

RESERVED_RECORDS = 64
"""Kept free in a segment for barriers and the seal."""

RECORDS_PER_OPERATION = 4
"""No engine operation appends more: one record of a change, and up to three places that say which
of its blocks, 257 at most, are zeros."""

ALLOWANCE_BLOCKS = 256
"""Single blocks redirected between two looks at how much room there is; each takes a place of its
own in the journal at most."""

CHECKPOINT_RECORDS = SEGMENT_RECORDS // 2
"""A checkpoint begins when half of a segment is used, so that it ends before the other half is."""

CHECKPOINT_DIRTY_LEAVES = 16 * 1024
"""Or when this many leaves wait to be stored: they are pinned in memory, 0.9 KiB each."""

MAX_DIRTY_LEAVES = 4 * CHECKPOINT_DIRTY_LEAVES
"""At this many, writes wait for the checkpoint."""


@dataclass(frozen=True, slots=True)
class VolumeParts:
    """What an open volume's journal is made with."""

    store: StoreAccess
    record: LocalVolumeRecord
    cache: LeafCache
    gate: WriteGate
    spawn: Spawn
    on_garbage: Callable[[], None]
    """Called when a commit leaves something to reclaim."""


class Appending(ABC):
    """The journal segment that is appended to. `record` is what the index says of the volume."""

    def __init__(self, parts: VolumeParts) -> None:
        self.record = parts.record
        self.begun = False
        """Something may have been changed since the volume was opened: it has a journal, and the
        index knows. Until then there is no head to write to."""
        self.head = Layer(parts.record.head, [], nowait=False)
        self.unsynced = False
        """The head has writes that no sync has covered."""
        self.failed: str | None = parts.record.failed
        self.sequence = 0
        """A sequence not above that of the next change to be appended, and above all earlier
        ones: what the map remembers of when a leaf changed."""
        self.allowance = 0
        """Single blocks that may still be redirected before `has_room` is to be asked."""
        self._store = parts.store
        self._cache = parts.cache
        self._gate = parts.gate
        self._spawn = parts.spawn
        self._segment = no_segment(parts.record)
        self._staged: list[Entry] = []
        self._scattered: list[int] = []
        self._last_change = 0
        self.durable = 0
        """The last sequence that a durable barrier covers."""
        self._recording = Mutex()
        self.failure_recorded = True
        """The index knows that the volume has failed, if it has."""
        self.read_only: ReadOnlyFileSystemError | None = None
        """The volume has failed, and the index could not be told because of this."""
        self._checkpoint_error: BockdError | None = None
        self._room = Signal()

    @abstractmethod
    def _want_checkpoint(self) -> None:
        """A checkpoint is due."""

    @abstractmethod
    def begin(self, *, reserve: bool) -> Steps[None]:
        """Make the volume ready for its first change."""

    def exposed(self) -> bool:
        """Return whether the map changed since the last durable barrier."""
        return self._last_change > self.durable or bool(self._staged or self._scattered)

    # -- appending ---------------------------------------------------------------------------

    def stage(self, kind: Kind, first: int, count: int) -> None:
        """Add a change of a range to the batch that `commit` appends."""
        self._gather_scattered()
        self._staged.append((kind, first, count))

    def stage_block(self, block: int) -> None:
        """Add the redirect of one block, for which there is allowance."""
        self.allowance -= 1
        self._scattered.append(block)

    def stage_zeros(self, blocks: list[int]) -> None:
        """Add to the batch that these blocks of the head, in order, may be all zeros from now on.
        They are blocks of one engine write."""
        self._gather_scattered()
        self._staged.append(ZeroBlocks(blocks))

    def _gather_scattered(self) -> None:
        """Scattered blocks so far come before whatever is staged next."""
        scattered = self._scattered
        if scattered:
            # One block alone takes a single place as a range.
            alone = len(scattered) == 1
            self._staged.append((Kind.REDIRECT, scattered[0], 1) if alone else scattered)
            self._scattered = []

    def has_room(self) -> bool:
        """Return whether one more operation may change the map. Ask for a checkpoint in good
        time."""
        if not self.begun:
            return False
        free = self._segment.free - places(self._staged) - len(self._scattered)
        dirty = len(self._cache.dirty)
        if free < SEGMENT_RECORDS - CHECKPOINT_RECORDS or dirty > CHECKPOINT_DIRTY_LEAVES:
            self._want_checkpoint()
        inside = RECORDS_PER_OPERATION * (self._gate.inside + 1)
        needed = RESERVED_RECORDS + inside + ALLOWANCE_BLOCKS
        self.allowance = ALLOWANCE_BLOCKS
        if free >= needed and dirty < MAX_DIRTY_LEAVES:
            return True
        self.allowance = 0
        return False

    def may_redirect(self) -> bool:
        """Return whether an operation may take new space: `has_room`, and the index is not short of
        space."""
        return not self._store.index.short and self.has_room()

    async def wait_for_index(self) -> None:
        """Return when the index may take more space. Raises NoSpaceError: what the index has left
        is kept for operations that make room."""
        if self._store.index.short:
            await blocking(self._store.index.replenish)

    async def wait_for_room(self, *, reserve: bool) -> None:
        """Wait until there is room in the journal, which a checkpoint makes. If there is no journal
        yet, create one, from the `reserve` if the disk is full. Raises what prevents that."""
        if not self.begun:
            await self.begin(reserve=reserve)
        asked = False
        while not self.has_room():
            self.check_usable()
            if asked and self._checkpoint_error is not None:
                raise self._checkpoint_error
            asked = True
            await self._room

    def commit(self) -> None:
        """Append the staged changes. Raises VolumeFailedError: none of them may be acknowledged
        then."""
        self._gather_scattered()
        if not self._staged:
            return
        self.check_usable()
        hit(Failpoint.WRITE_REMAPPED)
        try:
            self._segment.append(self._staged)
        except OSError as error:
            # What is staged stays: those whose changes these are must not succeed later.
            self.fail(f"appending to the journal failed: {error}")
        self.check_usable()
        self._staged = []
        hit(Failpoint.JOURNAL_APPENDED)
        self._last_change = self._segment.last_sequence
        self.sequence = self._segment.next_sequence

    # -- failing -----------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise VolumeFailedError after a failed sync or append. If recording the failure in the
        index has failed, too, try it again."""
        if self.failed is not None:
            if not (self.failure_recorded or self._recording.held):
                # A disk that fails a sync may fail the record of it too, for a while.
                self._spawn(self.record_failure())
            raise volume_failed(self.record.id, self.record.name, self.failed)

    def fail(self, reason: str) -> None:
        """Refuse the volume from now on, and record why."""
        if self.failed is not None:
            return
        self.failed = reason
        self.failure_recorded = False
        log.error("volume %s (%s) failed: %s", self.record.id, self.record.name, reason)
        self._wake_waiting()
        self._spawn(self.record_failure())

    async def record_failure(self) -> None:
        """Record a failure in the index. This is done before the volume is closed: a record that
        came after an operator has reopened the volume would undo the reopening."""
        async with self._recording:
            if not self.failure_recorded:
                await self._put_failure()

    async def _put_failure(self) -> None:
        volume, reason = self.record.id, self.failed

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            catalogue.put_volume(replace(catalogue.volume(volume), failed=reason))

        try:
            await blocking(self._store.index.update, change)
        except BockdError as error:
            self.read_only = error if isinstance(error, ReadOnlyFileSystemError) else None
            # Known to this process all the same; whoever is refused next has it tried again.
            log.error("the failure of volume %s could not be recorded: %s", volume, error)  # noqa: TRY400
        else:
            self.failure_recorded = True
            self.read_only = None

    def _wake_waiting(self) -> None:
        room, self._room = self._room, Signal()
        room.fire()


def no_segment(record: LocalVolumeRecord) -> JournalSegment:
    """Return a stand-in for the journal of a volume that has none yet: a segment without room."""
    segment = JournalSegment(JournalName(record.id, record.generation, record.segment), -1)
    segment.free = 0
    return segment
