"""The log of one volume while it is open: appended to, synced, freed from its beginning.

Invariants:
* A record is in the page cache before anybody is told (promise D1), and synced, with its barrier,
  before a flush is (D2).
* An epoch is handed out only when its barrier is synced.
* A segment is unlinked only when a durable progress says that all of it is below.
* An append or sync that fails is final: the log is *broken*, and nothing is appended any more. What
  was appended is still read, and verified.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bockd import failpoints
from bockd.drivers.writeback.dirtyrecords import DirtyRecords
from bockd.drivers.writeback.epochs import Epoch
from bockd.drivers.writeback.flight import Lane
from bockd.drivers.writeback.progress import Progress, ProgressFile
from bockd.drivers.writeback.records import HEADER_BYTES, Header, Kind, Record, microseconds, padded
from bockd.drivers.writeback.segment import (
    NOT_OF_THE_DISK,
    Segment,
    log_call,
    records_in,
    segment_path,
    syncing,
)
from bockd.drivers.writeback.space import Space
from bockd.failpoints import Failpoint, hit
from bockd.model import MIB
from bockd.runtime.steps import Spawn, try_spawn
from bockd.runtime.waiting import Mutex, Pulse

log = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 100 * MIB
"""About what is kept in memory of one log: 262,000 dirty ranges of one epoch, or 109,000 of an
epoch each, as of a client that flushes after each write."""

MAX_RECORDS = 2_000_000
"""Of one log that are not below, overwritten or not: recovery reads them all, some ten seconds."""

_REASON_CHARACTERS = 500
"""Of a reason in a slot of the progress, which is short."""


class BrokenLogError(Exception):
    """The local disk has failed: `Log.broken` says how. Or the log is closed."""


@dataclass
class Opened:
    """What an open log begins with: as it was made, or as recovery has found it."""

    path: Path
    file: ProgressFile
    progress: Progress
    segments: list[Segment]
    records: DirtyRecords
    sequence: int
    """Of the last record."""
    needless_bytes: int = 0
    """What segments take that are not needed, and could not be removed."""
    unnotable: bool = False
    """The disk does not take the progress: that may be in memory only, and an older one durable."""


class Log:
    """For the owner thread."""

    def __init__(
        self, opened: Opened, space: Space, spawn: Spawn, clock: Callable[[], float]
    ) -> None:
        self.path = opened.path
        self.id = opened.progress.log
        self.announced = False
        """The driver has committed that this log is dirty."""
        self.ending = False
        """The driver was asked to commit that nothing is dirty: whatever came of that, nothing is
        answered from it any more."""
        self.broken = opened.progress.broken
        """Why nothing may be appended any more; empty if it may."""
        self.no_room = ""
        """Why there was no room for another segment when that was last tried."""
        self.records = opened.records
        self.dirty = opened.records.map
        self.memory_bytes = 0
        """About what is taken for `records`, as the space counts it."""
        self.segments = deque(opened.segments)
        self.spare: Segment | None = None
        self.preparing = False
        self.sequence = opened.sequence
        self.synced = opened.progress.synced
        self.done = opened.progress.done
        """All up to this sequence is below."""
        self.noted = self.done
        """The same, as a durable progress says."""
        self.lane = Lane(space.flight)
        """What the writer has on its way below."""
        self.carried_out = 0
        """Requests of the writer's that the device below has carried out. For any thread."""
        self.changed = Pulse()
        """Something may go on: there is room, or a reason that there is none."""
        self.ended = False
        """It is closed: nothing of it is changed any more."""
        self._progress = opened.progress
        self._known = opened.progress.known_done, opened.progress.known_synced
        self.unnotable = opened.unnotable
        """Noting the progress has failed: with each epoch, it would take its time again."""
        self._file = opened.file
        self._space = space
        space.set(self.path, opened.needless_bytes + sum(one.size_bytes for one in opened.segments))
        self._spawn = spawn
        self._clock = clock
        self._turn = Mutex()
        self._noting = Mutex()
        self._segment_bytes = opened.segments[-1].size_bytes
        self.longest_data = records_in(self._segment_bytes)
        if self.broken:
            log.error("the write-back log %s is not used any more: %s", self.path, self.broken)
        self._weigh()

    # -- appending -----------------------------------------------------------------------------

    def has_room(self, data_bytes: int) -> bool:
        """Return whether a record with so much data may be appended now."""
        return (
            not self.broken
            and HEADER_BYTES + padded(data_bytes) <= self.segments[-1].free_bytes
            and not self.crowded
        )

    @property
    def crowded(self) -> bool:
        """Return whether so much is dirty that some must be written below first."""
        return (
            self.memory_bytes >= MAX_MEMORY_BYTES
            or self.sequence - self.done >= MAX_RECORDS
            or self._space.is_crowded(self.memory_bytes)
        )

    @property
    def dirty_bytes(self) -> int:
        """Return what the records take that are not below. For any thread."""
        return self.records.bytes

    def _weigh(self) -> None:
        """Count the memory that is taken now."""
        if not self.ended:
            now = self.records.memory_bytes
            self._space.memory_bytes += now - self.memory_bytes
            self.memory_bytes = now

    def append(self, kind: Kind, offset: int, length: int, data: memoryview | bytes = b"") -> None:
        """Append a record, for which there is room; it counts from now on. Raises BrokenLogError:
        it does not."""
        segment, now = self.segments[-1], self._clock()
        header = Header(kind, self.sequence + 1, offset, length, self.synced, microseconds(now))
        if failpoints.armed is not None:
            hit(Failpoint.WRITEBACK_APPENDING)
        try:
            at = segment.append(header, data)
        except OSError as error:
            self.fail(f"appending to it: {error}")
            raise BrokenLogError from error
        if failpoints.armed is not None:
            hit(Failpoint.WRITEBACK_APPENDED)
        self.sequence = header.sequence
        record = Record(kind, header.sequence, offset, length, segment, at)
        self.records.enter(record, header.size_bytes, now)
        self._weigh()

    def fail(self, reason: str) -> None:
        """Append nothing any more. The first reason stays."""
        if not self.broken:
            self.broken = reason
            log.error("the write-back log %s has failed: %s", self.path, reason)
            self.changed.fire()

    # -- syncing -------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Make all that was appended before the call durable, with a barrier behind it. Raises
        BrokenLogError."""
        wanted = self.sequence
        async with self._turn:
            # Whoever had the turn may have synced this, too. What recovery has synced may lack a
            # barrier.
            if self.synced < wanted or 0 < self.records.current.first <= wanted:
                await self._sync()

    async def _sync(self) -> None:
        if self.broken or self.ended:
            raise BrokenLogError
        if not self.records.current.empty:
            self.append(Kind.BARRIER, 0, 0)
        covered = self.sequence
        hit(Failpoint.WRITEBACK_BARRIER)
        unsynced = [one for one in self.segments if one.last_sequence > self.synced]
        for segment in unsynced:
            segment.pin()
        try:
            await syncing(unsynced)
        except BaseException as error:
            # Also if nobody has heard its end: the next sync would not tell of an error.
            self.fail(f"syncing it: {error!r}")
            if isinstance(error, OSError):
                raise BrokenLogError from error
            raise
        finally:
            for segment in unsynced:
                segment.unpin()
        self.synced = covered
        hit(Failpoint.WRITEBACK_SYNCED)

    def close_unsynced(self) -> None:
        """End the epoch that goes on, of a log that is broken: there is nothing to wait for."""
        assert self.broken
        if not self.records.current.empty:
            self.records.close_epoch(self.sequence)
            self._weigh()

    # -- what is below -------------------------------------------------------------------------

    def ready(self) -> Epoch | None:
        """Return the next epoch that may be sent below."""
        epochs = self.records.epochs
        if epochs and (self.broken or epochs[0].barrier <= self.synced):
            return epochs[0]
        return None

    @property
    def settled(self) -> int:
        """Return the sequence up to which all is below for good."""
        return self.done if self.broken else self.noted

    @property
    def clean(self) -> bool:
        """Return whether all is below for good."""
        return (
            self.records.current.empty
            and not self.records.epochs
            and (bool(self.broken) or self.noted >= self.done)
        )

    @property
    def may_be_passed(self) -> bool:
        """Return whether a change may go below, though there is this log. It would be undone if the
        log were replayed later, so the durable progress must say that there is nothing to do."""
        return not self.announced and not self.broken and self.clean

    def dirty_since(self) -> float | None:
        """Return when the oldest record that is not below was appended, in seconds since the
        epoch."""
        records = self.records
        oldest = records.epochs[0] if records.epochs else records.current
        return None if oldest.empty else oldest.began

    def settle(self, epoch: Epoch) -> bool:
        """Drop some of an epoch, the oldest, that is below and flushed there. Return whether that
        was all of it, and is noted: else it is to be dropped on."""
        settled = self.records.settle(epoch)
        if settled:
            self.done = epoch.barrier
        self._weigh()
        return settled

    async def note(self) -> None:
        """Make durable how much is below, and free what of the log is not needed any more. Raises
        BrokenLogError: that has broken it. Of one that is broken, it is done as long as it can
        be."""
        async with self._noting:
            if self.noted < self.done and not (self.unnotable or self.ended):
                broken = self.broken
                try:
                    await self._note()
                except BrokenLogError:
                    if not broken:
                        raise

    async def note_end(self) -> None:
        """Make durable what is synced and what is below, and why the log has failed, if it has.
        Raises BrokenLogError."""
        async with self._noting:
            if not self.ended:
                await self._note()

    async def note_known(self, done: int, synced: int) -> None:
        """Make durable how far the log has come as the driver has committed it. Raises
        BrokenLogError: that has broken it."""
        async with self._noting:
            if not (self.ended or self.unnotable or self.broken) and (done, synced) > self._known:
                self._known = done, synced
                await self._note()

    async def _note(self) -> None:
        done, needed = self.done, self._first_needed(self.done)
        progress = self._progress_at(done, needed)
        hit(Failpoint.WRITEBACK_NOTING)
        try:
            await log_call(self._file.write, progress)
        except OSError as error:
            self.unnotable = True
            self.fail(f"noting its progress: {error}")
            raise BrokenLogError from error
        self._progress, self.noted = progress, done
        hit(Failpoint.WRITEBACK_NOTED)
        await self._free(needed)

    def _first_needed(self, done: int) -> Segment:
        return next((one for one in self.segments if one.last_sequence > done), self.segments[-1])

    def _progress_at(self, done: int, needed: Segment) -> Progress:
        old = self._progress
        return Progress(
            log=old.log,
            image=old.image,
            count=old.count + 1,
            done=done,
            first=needed.number,
            first_sequence=needed.first_sequence or self.sequence + 1,
            synced=self.synced,
            boot=old.boot,
            broken=self.broken[:_REASON_CHARACTERS],
            drained=bool(self.broken) and self.clean,
            known_done=self._known[0],
            known_synced=self._known[1],
        )

    async def _free(self, needed: Segment) -> None:
        while self.segments[0] is not needed:
            segment = self.segments.popleft()
            try:
                await log_call(segment.path.unlink)
            except OSError:
                pass  # it is left to the log's end, and counts
            else:
                self._space.give_back(self.path, segment.size_bytes)
            segment.close()
            hit(Failpoint.WRITEBACK_FREED)
            self.changed.fire()

    # -- room ----------------------------------------------------------------------------------

    def foresee(self) -> None:
        """Begin to make the next segment, when half of this one is used."""
        used_up = self.segments[-1].free_bytes < self._segment_bytes // 2
        if used_up and self.spare is None and not self.preparing and not self.broken:
            try_spawn(self._spawn, self.prepare())

    async def prepare(self) -> None:
        """Make the next segment, if there is room for it; `spare` and `no_room` say what came of
        it."""
        if self.preparing or self.spare is not None or self.ended:
            return
        size = self._segment_bytes
        if not self._space.take(self.path, size):
            self.no_room = "the logs have used what they may (write-back size)"
            return
        self.preparing = True
        number = self.segments[-1].number + 1
        try:
            spare = await log_call(Segment.create, self.path, number, size, self.id)
        except OSError as error:
            if not await log_call(os.path.exists, segment_path(self.path, number)):
                self._space.give_back(self.path, size)
            self.no_room = str(error)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, *NOT_OF_THE_DISK):
                self.fail(f"making a segment: {error}")
        else:
            self.no_room = ""
            self.spare = spare
        finally:
            self.preparing = False
            self.changed.fire()

    def switch(self) -> None:
        """Append to the spare segment from now on."""
        assert self.spare is not None
        self.segments.append(self.spare)
        self.spare = None

    # -- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close its files, which stay. What is under way has ended then: the next opening makes
        files of the same names."""
        if not self.ended:
            self.ended = True
            self._space.memory_bytes -= self.memory_bytes
        async with self._turn, self._noting:
            pass
        while self.preparing:
            await self.changed.wait()
        self._file.close()
        for segment in self._all():
            segment.close()

    async def remove(self) -> None:
        """Close and remove it. Raises OSError."""
        await self.close()
        await self._space.remove(self.path)
        hit(Failpoint.WRITEBACK_REMOVED)

    def _all(self) -> list[Segment]:
        return [*self.segments, *(() if self.spare is None else (self.spare,))]
