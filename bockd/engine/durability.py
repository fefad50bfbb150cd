"""What makes a volume's writes last: journal appends, flushes, checkpoints and transitions.

    append      a batch's map changes go to the journal before it is acknowledged (promise D1)
    flush       head synced, then a barrier appended, then the journal synced (promise D2)
    checkpoint  the journal segment is sealed, its records applied to the index, its file removed
    transition  snapshot, revert, extend, close: the residue of the journal and the change itself in
                one index transaction, with a new generation

Invariants:
* A barrier covers only records appended before the data sync began; a flush joins only one that
  has not begun.
* Flushes, seals and the swap inside a transition exclude each other (`_turn`); checkpoints and
  transitions exclude each other (`_maintenance`).
* A failed sync or append is final: `failed` is set, and nothing is acknowledged any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bockd.engine.leafcache import LeafCache
from bockd.engine.waiting import Gate, Mutex
from bockd.errors import (
    BockdError,
    DamagedError,
    NoSpaceError,
    VolumeFailedError,
    from_os_error,
    volume_failed,
)
from bockd.failpoints import Failpoint, hit
from bockd.steps import Blocking, Signal, Steps
from bockd.store.ballast import Ballast
from bockd.store.blockmap import MapChanges
from bockd.store.catalogue import Catalogue, VolumeRecord
from bockd.store.index import Index, Transaction
from bockd.store.journal import SEGMENT_RECORDS, Entry, JournalSegment, Kind, places, read_segment
from bockd.store.layer import Layer
from bockd.store.layout import JournalName, Layout, unlink_if_present

log = logging.getLogger(__name__)
T = TypeVar("T")

RESERVED_RECORDS = 64
"""Kept free in a segment for barriers and the seal."""

RECORDS_PER_OPERATION = 4
"""More than any one engine operation appends."""

ALLOWANCE_BLOCKS = 256
"""Single blocks redirected between two looks at how much room there is; each takes a place of its
own in the journal at most."""

CHECKPOINT_RECORDS = SEGMENT_RECORDS // 2
"""A checkpoint begins when half of a segment is used, so that it ends before the other half is."""

CHECKPOINT_DIRTY_LEAVES = 32 * 1024
"""Or when this many leaves wait to be stored: they are pinned in memory, 0.7 KiB each."""

MAX_DIRTY_LEAVES = 4 * CHECKPOINT_DIRTY_LEAVES
"""At this many, writes wait for the checkpoint."""

Spawn = Callable[[Steps[None]], None]
"""Runs steps in the background; given by the edge that drives the engine."""


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What an open volume needs of its pool."""

    layout: Layout
    index: Index
    ballast: Ballast
    boot: str


@dataclass(eq=False)
class _Round:
    """A flush that others may join as long as it has not begun."""

    done: Signal = field(default_factory=Signal)
    error: BockdError | None = None


class Durability:
    """Journal and index of one open volume. `record` is what the index says of the volume."""

    def __init__(
        self,
        store: StoreAccess,
        record: VolumeRecord,
        segment: JournalSegment,
        head: Layer,
        cache: LeafCache,
        gate: Gate,
        spawn: Spawn,
        on_garbage: Callable[[], None],
    ) -> None:
        self.record = record
        self.head = head
        self.unsynced = False
        """The head has writes that no sync has covered."""
        self.failed: str | None = record.failed
        self.closed = False
        """The journal is closed: there is nothing to bring up to date any more."""
        self._store = store
        self._cache = cache
        self._gate = gate
        self._spawn = spawn
        self._on_garbage = on_garbage
        self._segment = segment
        self._sealed: list[JournalSegment] = []
        self.drain_reads: Callable[[], Steps[None]] = _no_reads
        """Waits for the reads that have begun; given by the volume."""
        self.sequence = segment.next_sequence
        """A sequence not above that of the next change to be appended, and above all earlier
        ones: what the map remembers of when a leaf changed."""
        self.allowance = 0
        """Single blocks that may still be redirected before `has_room` is to be asked."""
        self._staged: list[Entry] = []
        self._scattered: list[int] = []
        self._last_change = 0
        self._durable = 0
        self._turn = Mutex()
        self._maintenance = Mutex()
        self._recording = Mutex()
        self._failure_recorded = True
        self._joinable: _Round | None = None
        self._checkpoint_wanted = False
        self._checkpoint_error: BockdError | None = None
        self._room = Signal()

    # -- appending ---------------------------------------------------------------------------

    def stage(self, kind: Kind, first: int, count: int) -> None:
        """Add a change of a range to the batch that `commit` appends."""
        self._gather_scattered()
        self._staged.append((kind, first, count))

    def stage_block(self, block: int) -> None:
        """Add the redirect of one block, for which there is allowance."""
        self.allowance -= 1
        self._scattered.append(block)

    def _gather_scattered(self) -> None:
        """Scattered blocks so far come before whatever is staged next."""
        scattered = self._scattered
        if scattered:
            # One block alone takes a single place as a range.
            alone = len(scattered) == 1
            self._staged.append((Kind.REDIRECT, scattered[0], 1) if alone else scattered)
            self._scattered = []

    def has_room(self) -> bool:
        """True when one more operation may change the map; asks for a checkpoint in good time."""
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

    def wait_for_room(self) -> Steps[None]:
        """Wait until a checkpoint has made room. Raises what keeps it from doing so."""
        asked = False
        while not self.has_room():
            self.check_usable()
            if asked and self._checkpoint_error is not None:
                raise self._checkpoint_error
            asked = True
            yield self._room

    def commit(self) -> None:
        """Append the staged changes. VolumeFailedError: none of them may be acknowledged."""
        self._gather_scattered()
        if not self._staged:
            return
        self.check_usable()
        staged, self._staged = self._staged, []
        hit(Failpoint.WRITE_REMAPPED)
        try:
            self._segment.append(staged)
        except OSError as error:
            self.fail(f"appending to the journal failed: {error}")
        self.check_usable()
        hit(Failpoint.JOURNAL_APPENDED)
        self._last_change = self._segment.last_sequence
        self.sequence = self._segment.next_sequence

    # -- failing -----------------------------------------------------------------------------

    def check_usable(self) -> None:
        """VolumeFailedError after a failed sync."""
        if self.failed is not None:
            raise volume_failed(self.record.id, self.record.name, self.failed)

    def fail(self, reason: str) -> None:
        """Refuse the volume from now on, and record why."""
        if self.failed is not None:
            return
        self.failed = reason
        self._failure_recorded = False
        log.error("volume %s (%s) failed: %s", self.record.id, self.record.name, reason)
        self._wake_waiting()
        self._spawn(self.record_failure())

    def record_failure(self) -> Steps[None]:
        """Let the index know of a failure. Done before the volume is closed: a record that came
        after an operator's reopening would undo it."""
        yield from self._recording.acquire()
        try:
            if not self._failure_recorded:
                # One attempt: what cannot be recorded is still known to this process.
                self._failure_recorded = True
                yield from self._put_failure()
        finally:
            self._recording.release()

    def _put_failure(self) -> Steps[None]:
        volume, reason = self.record.id, self.failed

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            catalogue.put_volume(replace(catalogue.volume(volume), failed=reason))

        try:
            yield Blocking(lambda: self._store.index.update(change))
        except (BockdError, OSError) as error:
            log.error("the failure of volume %s could not be recorded: %s", volume, error)  # noqa: TRY400

    def _wake_waiting(self) -> None:
        room, self._room = self._room, Signal()
        room.fire()

    # -- flushing ----------------------------------------------------------------------------

    def flush(self) -> Steps[None]:
        """Make what was acknowledged before the call survive power loss."""
        if (joinable := self._joinable) is not None:
            yield joinable.done
            if joinable.error is not None:
                raise joinable.error
            return
        mine = _Round()
        if self._turn.held:
            self._joinable = mine
        try:
            yield from self._turn.acquire()
            if self._joinable is mine:
                self._joinable = None
            try:
                yield from self._sync_all(Kind.BARRIER, self._segment)
            finally:
                self._turn.release()
        except BockdError as error:
            mine.error = error
            raise
        except BaseException:
            mine.error = VolumeFailedError("the flush that this one joined was abandoned")
            raise
        finally:
            if self._joinable is mine:
                self._joinable = None
            mine.done.fire()

    def _sync_all(self, kind: Kind, segment: JournalSegment) -> Steps[None]:
        """Sync the head; if the map changed since the last durable barrier (or to seal), append a
        barrier to `segment` and sync that. With the turn held."""
        self.commit()
        self.check_usable()
        covered = self._last_change
        hit(Failpoint.FLUSH_BEGUN)
        if self.unsynced:
            # Cleared first: a write that lands during the sync needs another one.
            self.unsynced = False
            yield from self._final(self.head.sync, "syncing the head layer")
        hit(Failpoint.FLUSH_DATA)
        if covered > self._durable or kind is Kind.SEAL:
            self.check_usable()
            try:
                segment.append([(kind, covered, 0)])
            except OSError as error:
                self.fail(f"appending to the journal failed: {error}")
                self.check_usable()
            hit(Failpoint.FLUSH_BARRIER)
            yield from self._final(segment.sync, "syncing the journal")
            self._durable = max(self._durable, covered)
        hit(Failpoint.FLUSH_DONE)

    def _final(self, sync: Callable[[], None], doing: str) -> Steps[None]:
        """Run a sync whose failure is final for the volume."""
        try:
            yield Blocking(sync)
        except OSError as error:
            self.fail(f"{doing} failed: {error}")
            self.check_usable()
        self.check_usable()

    # -- checkpoint --------------------------------------------------------------------------

    def _want_checkpoint(self) -> None:
        if not self._checkpoint_wanted and self.failed is None:
            self._checkpoint_wanted = True
            hit(Failpoint.CHECKPOINT_WANTED)
            self._spawn(self._background_checkpoint())

    def _background_checkpoint(self) -> Steps[None]:
        try:
            yield from self.checkpoint()
        except BockdError as error:
            self._checkpoint_error = error
            log.warning("checkpoint of volume %s failed: %s", self.record.id, error)
        finally:
            self._checkpoint_wanted = False
            self._wake_waiting()

    def checkpoint(self) -> Steps[None]:
        """Bring the index up to date with everything acknowledged before the call.

        Raises BockdError with the volume unharmed (but for a failed sync): the journal keeps
        what the index could not take.
        """
        yield from self._maintenance.acquire()
        try:
            if self.closed:
                return
            # What an earlier attempt left comes first, so that failures do not pile up segments.
            yield from self._apply_sealed()
            yield from self._seal()
            yield from self._apply_sealed()
            self._checkpoint_error = None
        finally:
            self._maintenance.release()

    def _seal(self) -> Steps[None]:
        """Direct new records to a new segment, and complete the old one durably."""
        old = self._segment
        if old.free == SEGMENT_RECORDS and not self._staged and not self._scattered:
            return
        name = replace(old.name, number=old.name.number + 1)
        fresh: JournalSegment = yield Blocking(lambda: create_segment(self._store, name))
        hit(Failpoint.CHECKPOINT_SEGMENT)
        yield from self._turn.acquire()
        try:
            self.commit()
            self._switch_to(fresh)
            self._sealed.append(old)
            self._wake_waiting()
            hit(Failpoint.CHECKPOINT_SWITCHED)
            yield from self._sync_all(Kind.SEAL, old)
            hit(Failpoint.CHECKPOINT_SEALED)
        finally:
            self._turn.release()

    def _switch_to(self, segment: JournalSegment) -> None:
        """Append to another segment from now on. Nothing is staged."""
        self._segment = segment
        self.sequence = segment.next_sequence
        self.allowance = 0

    def _apply_sealed(self) -> Steps[None]:
        """Store what sealed segments hold, and remove them."""
        sealed = list(self._sealed)
        if not sealed:
            return
        # A commit tells whoever reclaims, which may be another process, what the volume does not
        # need any more. Reads that may still need it began before the change and end first.
        yield from self.drain_reads()
        applied = sealed[-1].last_sequence
        follower = sealed[-1].name.number + 1

        def change(txn: Transaction) -> tuple[VolumeRecord, bool]:
            record, garbage = self._apply(txn, sealed)
            record = replace(record, segment=follower)
            Catalogue(txn).put_volume(record)
            hit(Failpoint.CHECKPOINT_APPLIED)
            return record, garbage

        self.record, garbage = yield Blocking(lambda: self._store.index.update(change))
        hit(Failpoint.CHECKPOINT_COMMITTED)
        if garbage:
            self._on_garbage()
        self._cache.mark_clean(applied)
        del self._sealed[: len(sealed)]
        yield Blocking(lambda: _discard(self._store.layout, sealed))
        hit(Failpoint.CHECKPOINT_DONE)

    def _apply(self, txn: Transaction, segments: list[JournalSegment]) -> tuple[VolumeRecord, bool]:
        """In a thread: apply the records of `segments` to the stored map. Returns the volume's
        record, and whether blocks were queued to be punched."""
        record = Catalogue(txn).volume(self.record.id)
        changes = MapChanges(txn, record.map, record.head)
        for segment in segments:
            contents = read_segment(self._store.layout, segment.name)
            if contents.places != SEGMENT_RECORDS - segment.free:
                raise DamagedError(
                    f"the journal of volume {record.id} does not read back as it was written"
                )
            for entry in contents.changes:
                changes.apply(entry)
        return record, changes.store()

    # -- transitions -------------------------------------------------------------------------

    def transition(
        self,
        change: Callable[[Transaction, VolumeRecord], tuple[VolumeRecord, T]],
        adopt: Callable[[VolumeRecord, T], None],
        *,
        reopen: bool = True,
    ) -> Steps[T]:
        """Change the volume's record together with the residue of its journal.

        `change` runs in a thread, inside the transaction, on the record that the residue gave,
        and may run twice; `adopt` runs on the owner thread after the commit, while no write is
        under way. With `reopen`, a journal of a new generation takes over, otherwise the volume is
        marked closed. Raises with everything as it was, but for a failed sync.
        """
        yield from self._maintenance.acquire()
        try:
            # Most of the work is done here, while writes go on.
            yield from self.flush()
            hit(Failpoint.TRANSITION_FLUSHED)
            fresh: JournalSegment | None = None
            if reopen:
                name = JournalName(self.record.id, self.record.generation + 1, 0)
                fresh = yield Blocking(lambda: create_segment(self._store, name))
                hit(Failpoint.TRANSITION_SEGMENT)
            yield from self._gate.close()
            hit(Failpoint.TRANSITION_CLOSED)
            try:
                result: T = yield from self._swap(change, adopt, fresh)
            except BaseException:
                # After a failure the index may name it.
                if fresh is not None and self._segment is not fresh and self.failed is None:
                    _discard(self._store.layout, [fresh])
                raise
            finally:
                self._gate.open()
                self._wake_waiting()
        finally:
            self._maintenance.release()
        return result

    def _swap(
        self,
        change: Callable[[Transaction, VolumeRecord], tuple[VolumeRecord, T]],
        adopt: Callable[[VolumeRecord, T], None],
        fresh: JournalSegment | None,
    ) -> Steps[T]:
        yield from self._turn.acquire()
        try:
            self.commit()
            self.check_usable()
            if self.unsynced:
                self.unsynced = False
                yield from self._final(self.head.sync, "syncing the head layer")
            hit(Failpoint.TRANSITION_SYNCED)
            old = [*self._sealed, self._segment]

            def run(txn: Transaction) -> tuple[VolumeRecord, T, bool]:
                applied, garbage = self._apply(txn, old)
                record = replace(
                    applied,
                    generation=self.record.generation + 1,
                    segment=0,
                    opened=fresh is not None,
                )
                record, result = change(txn, record)
                Catalogue(txn).put_volume(record)
                hit(Failpoint.TRANSITION_APPLIED)
                return record, result, garbage

            self.record, result, garbage = yield from self._commit_or_find_out(run)
            hit(Failpoint.TRANSITION_COMMITTED)
            if garbage:
                self._on_garbage()
            self._cache.mark_clean(self._segment.last_sequence)
            self._sealed = []
            if fresh is not None:
                self._switch_to(fresh)
            else:
                self.closed = True
            self._last_change = self._durable = 0
            adopt(self.record, result)
        finally:
            self._turn.release()
        yield Blocking(lambda: _discard(self._store.layout, old))
        hit(Failpoint.TRANSITION_DONE)
        return result

    def _commit_or_find_out(
        self, change: Callable[[Transaction], tuple[VolumeRecord, T, bool]]
    ) -> Steps[tuple[VolumeRecord, T, bool]]:
        """Run a transition's transaction. One that fails may have been committed all the same (a
        sync that failed after the last write of it): what the index says then is what counts, for
        to go on with another head and generation than the index has would lose what follows."""
        done: list[tuple[VolumeRecord, T, bool]] = []

        def run(txn: Transaction) -> None:
            done[:] = [change(txn)]

        def stored() -> VolumeRecord:
            with self._store.index.reading() as txn:
                return Catalogue(txn).volume(self.record.id)

        try:
            yield Blocking(lambda: self._store.index.update(run))
        except Exception as error:
            try:
                found: VolumeRecord = yield Blocking(stored)
            except Exception as unknown:
                self.fail(f"the index does not say what a failed commit has left: {unknown}")
                raise error from unknown
            if not done or found != done[0][0]:
                raise
            log.warning("volume %s: a commit was done and reported failure: %s", found.id, error)
        return done[0]

    def stop(self) -> Steps[None]:
        """Wait until no checkpoint, transition or flush is under way, and let none begin."""
        yield from self._maintenance.acquire()
        yield from self._turn.acquire()
        self.closed = True
        self._turn.release()
        self._maintenance.release()

    def restore_ballast(self) -> Steps[None]:
        """Space was given back to the file system: the ballast, if it was given up, comes first."""
        if self._store.ballast.given:
            yield Blocking(self._store.ballast.restore)

    def abandon(self) -> list[JournalName]:
        """Close the journal without applying it, of a volume that is deleted or has failed, and
        return the names of its segments."""
        self.closed = True
        segments = [*self._sealed, self._segment]
        for segment in segments:
            segment.close()
        return [segment.name for segment in segments]


def _no_reads() -> Steps[None]:
    yield from ()


def create_segment(store: StoreAccess, name: JournalName) -> JournalSegment:
    """A new journal segment, giving up the ballast if the disk is full. BockdError."""
    doing = f"creating journal segment {store.layout.journal_segment(name)}"
    try:
        return JournalSegment.create(store.layout, name, store.boot)
    except OSError as error:
        translated = from_os_error(error, doing)
        if not isinstance(translated, NoSpaceError) or not store.ballast.release():
            raise translated from error
    try:
        return JournalSegment.create(store.layout, name, store.boot)
    except OSError as error:
        raise from_os_error(error, doing) from error


def _discard(layout: Layout, segments: list[JournalSegment]) -> None:
    """Close and remove segments whose records are in the index. One that cannot be removed is
    removed at the next opening: its generation is past."""
    for segment in segments:
        segment.close()
        try:
            unlink_if_present(layout.journal_segment(segment.name))
        except OSError as error:
            log.warning("journal segment %s was not removed: %s", segment.name, error)
