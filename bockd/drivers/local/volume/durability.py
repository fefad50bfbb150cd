"""What makes a volume's writes last: journal appends, flushes, checkpoints and quiesced commits.

    append      a batch's map changes go to the journal before it is acknowledged (promise D1;
                volume.appending)
    flush       head synced, then a barrier appended, then the journal synced (promise D2;
                volume.flushing)
    begin       before the first change: a journal, and a mark in the index that the volume is open
    checkpoint  the journal segment is sealed, its records applied to the index, its file removed
    quiesced    snapshot, revert, extend, close: what is left of the journal, and the change
    commit      itself, in one index transaction, with a new generation

Invariants:
* Flushes, seals and the swap inside a quiesced commit exclude each other (`_turn`); checkpoints and
  quiesced commits exclude each other (`_checkpoint_lock`).
* A failed sync or append is final: `failed` is set, and nothing is acknowledged any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from bockd.drivers.local.access import create_segment, discard_segments
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import SEGMENT_RECORDS, JournalSegment, Kind, read_segment
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.volume.appending import VolumeParts
from bockd.drivers.local.volume.flushing import Flushing
from bockd.errors import BockdError, DamagedError, DeviceError, UnavailableError
from bockd.failpoints import Failpoint, hit
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps, blocking
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)
T = TypeVar("T")


class Durability(Flushing):
    """Journal and index of one open volume."""

    def __init__(self, parts: VolumeParts) -> None:
        super().__init__(parts)
        self.closed = False
        """The journal is closed: there is nothing to bring up to date any more."""
        self.drain_reads: Callable[[], Steps[None]] = _no_reads
        """Waits for the reads that have begun; given by the volume."""
        self.on_begun: Callable[[Layer], None] = _no_head
        """Told the head that is written to from now on; given by the volume."""
        self._on_garbage = parts.on_garbage
        self._sealed: list[JournalSegment] = []
        self._checkpoint_lock = Mutex()
        self._checkpoint_wanted = False

    # -- beginning ---------------------------------------------------------------------------

    async def begin(self, *, reserve: bool) -> None:
        """Make the volume ready for its first change. Repeating it does no harm. On a full disk its
        journal comes from the reserve. Raises NoSpaceError when that is used up, or another
        BockdError, with nothing changed."""
        async with self._checkpoint_lock:
            if not self.begun:
                await self._begin(reserve=reserve)

    async def _begin(self, *, reserve: bool) -> None:
        self.check_usable()
        if self.closed:
            raise UnavailableError(f"volume {self.record.id} was closed; connect again")
        head = await blocking(self._open_head)
        segment: JournalSegment | None = None
        try:
            name = JournalName(self.record.id, self.record.generation + 1, 0)
            segment = await blocking(create_segment, self._store, name, reserve=reserve)
            hit(Failpoint.OPEN_SEGMENT)
            self.record, _, _ = await self._commit_or_find_out(self._mark_opened)
            hit(Failpoint.OPEN_COMMITTED)
        except BaseException:
            head.close()
            if segment is not None:
                segment.close()
                # Otherwise the index may name it.
                if self.failed is None:
                    discard_segments(self._store, [segment])
            raise
        self._switch_to(segment)
        self.begun = True
        self.on_begun(head)

    def _open_head(self) -> Layer:
        record = self.record
        return Layer.open(self._store.layout, record.head, record.size_bytes, writable=True)

    def _mark_opened(self, txn: Transaction) -> tuple[LocalVolumeRecord, None, bool]:
        catalogue = Catalogue(txn)
        found = self._still_ours(catalogue)
        record = replace(found, generation=found.generation + 1, segment=0, opened=True)
        catalogue.put_volume(record)
        return record, None, False

    def _still_ours(self, catalogue: Catalogue) -> LocalVolumeRecord:
        """Return the volume's record. Raises DamagedError when another process has opened it
        meanwhile, replayed its journal and gone on."""
        record = catalogue.volume(self.record.id)
        if record.generation != self.record.generation:
            raise DamagedError(f"volume {record.id} was opened by another process meanwhile")
        return record

    # -- checkpoint --------------------------------------------------------------------------

    def _want_checkpoint(self) -> None:
        if not self._checkpoint_wanted and self.failed is None:
            self._checkpoint_wanted = True
            hit(Failpoint.CHECKPOINT_WANTED)
            try:
                self._spawn(self._background_checkpoint())
            except RuntimeError as error:  # there can be no more threads
                self._checkpoint_wanted = False
                raise DeviceError(
                    f"a checkpoint of volume {self.record.id} cannot begin: {error}"
                ) from error

    async def _background_checkpoint(self) -> None:
        try:
            await self.checkpoint()
        except BockdError as error:
            self._checkpoint_error = error
            log.warning("checkpoint of volume %s failed: %s", self.record.id, error)
        finally:
            self._checkpoint_wanted = False
            self._wake_waiting()

    async def checkpoint(self) -> None:
        """Bring the index up to date with everything acknowledged before the call.

        Raises BockdError with the volume unharmed (but for a failed sync): the journal keeps
        what the index could not take.
        """
        async with self._checkpoint_lock:
            if self.closed or not self.begun:
                return
            # What an earlier attempt left comes first, so that failures do not pile up segments.
            await self._apply_sealed()
            await self._seal()
            await self._apply_sealed()
            self._checkpoint_error = None
            await self.restore_reserve()

    async def _seal(self) -> None:
        """Direct new records to a new segment, and complete the old one durably."""
        old = self._segment
        if old.free == SEGMENT_RECORDS and not self._staged and not self._scattered:
            return
        name = replace(old.name, number=old.name.number + 1)
        fresh = await blocking(create_segment, self._store, name, reserve=True)
        hit(Failpoint.CHECKPOINT_SEGMENT)
        async with self._turn:
            self.commit()
            self._switch_to(fresh)
            self._sealed.append(old)
            self._wake_waiting()
            hit(Failpoint.CHECKPOINT_SWITCHED)
            await self._sync_all(Kind.SEAL, old)
            hit(Failpoint.CHECKPOINT_SEALED)

    def _switch_to(self, segment: JournalSegment) -> None:
        """Append to another segment from now on. Nothing is staged."""
        self._segment = segment
        self.sequence = segment.next_sequence
        self.allowance = 0

    async def _apply_sealed(self) -> None:
        """Store what sealed segments hold, and remove them."""
        sealed = list(self._sealed)
        if not sealed:
            return
        # A commit tells whoever reclaims, which may be another process, what the volume does not
        # need any more. Reads that may still need it began before the change and end first.
        await self.drain_reads()
        applied = sealed[-1].last_sequence
        follower = sealed[-1].name.number + 1

        def change(txn: Transaction) -> tuple[LocalVolumeRecord, bool]:
            record, garbage = self._apply(txn, sealed)
            record = replace(record, segment=follower)
            Catalogue(txn).put_volume(record)
            hit(Failpoint.CHECKPOINT_APPLIED)
            return record, garbage

        self.record, garbage = await blocking(self._store.index.update, change)
        hit(Failpoint.CHECKPOINT_COMMITTED)
        if garbage:
            self._on_garbage()
        self._cache.mark_clean(applied)
        del self._sealed[: len(sealed)]
        await blocking(discard_segments, self._store, sealed)
        hit(Failpoint.CHECKPOINT_DONE)

    def _apply(
        self, txn: Transaction, segments: list[JournalSegment]
    ) -> tuple[LocalVolumeRecord, bool]:
        """In a thread: apply the records of `segments` to the stored map. Returns the volume's
        record, and whether blocks were queued to be punched."""
        record = self._still_ours(Catalogue(txn))
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

    async def quiesced_commit(
        self,
        change: Callable[[Transaction, LocalVolumeRecord], tuple[LocalVolumeRecord, T]],
        adopt: Callable[[LocalVolumeRecord, T], None],
        *,
        reopen: bool = True,
    ) -> T:
        """Change the volume's record together with the residue of its journal.

        `change` runs in a thread, inside the transaction, on the record that the residue gave,
        and may run twice; `adopt` runs on the owner thread after the commit, while no write is
        under way. With `reopen`, a journal of a new generation takes over, otherwise the volume is
        marked closed. Raises with everything as it was, but for a failed sync.
        """
        async with self._checkpoint_lock:
            if not self.begun:
                await self._begin(reserve=False)
            # Most of the work is done here, while writes go on.
            await self.flush()
            hit(Failpoint.TRANSITION_FLUSHED)
            fresh: JournalSegment | None = None
            if reopen:
                name = JournalName(self.record.id, self.record.generation + 1, 0)
                fresh = await blocking(create_segment, self._store, name, reserve=True)
                hit(Failpoint.TRANSITION_SEGMENT)
            await self._gate.quiesce()
            hit(Failpoint.TRANSITION_CLOSED)
            try:
                result = await self._swap(change, adopt, fresh)
            except BaseException:
                # After a failure the index may name it.
                if fresh is not None and self._segment is not fresh and self.failed is None:
                    discard_segments(self._store, [fresh])
                raise
            finally:
                self._gate.open()
                self._wake_waiting()
        return result

    async def _swap(
        self,
        change: Callable[[Transaction, LocalVolumeRecord], tuple[LocalVolumeRecord, T]],
        adopt: Callable[[LocalVolumeRecord, T], None],
        fresh: JournalSegment | None,
    ) -> T:
        async with self._turn:
            self.commit()
            self.check_usable()
            if self.unsynced:
                self.unsynced = False
                await self._final(self.head.sync, "syncing the head layer")
            hit(Failpoint.TRANSITION_SYNCED)
            old = [*self._sealed, self._segment]

            def run(txn: Transaction) -> tuple[LocalVolumeRecord, T, bool]:
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

            self.record, result, garbage = await self._commit_or_find_out(run)
            hit(Failpoint.TRANSITION_COMMITTED)
            if garbage:
                self._on_garbage()
            self._cache.mark_clean(self._segment.last_sequence)
            self._sealed = []
            if fresh is not None:
                self._switch_to(fresh)
            else:
                self.closed = True
            self._last_change = self.durable = 0
            adopt(self.record, result)
        await blocking(discard_segments, self._store, old)
        hit(Failpoint.TRANSITION_DONE)
        return result

    async def _commit_or_find_out(
        self, change: Callable[[Transaction], tuple[LocalVolumeRecord, T, bool]]
    ) -> tuple[LocalVolumeRecord, T, bool]:
        """Run a quiesced commit's transaction. One that fails may have been committed all the same,
        if a sync failed after its last write. Then the index is asked, and what it says counts: to
        go on with another head and generation than the index has would lose what follows."""
        done: list[tuple[LocalVolumeRecord, T, bool]] = []

        def run(txn: Transaction) -> None:
            done[:] = [change(txn)]

        def was_done() -> bool:
            index = self._store.index
            with index.reading() as txn:
                found = Catalogue(txn).volume(self.record.id)
            if not done or found != done[0][0]:
                return False
            # Seen is not on disk. A commit that goes well makes the one before it last.
            index.update(lambda txn: Catalogue(txn).put_volume(found))
            return True

        try:
            await blocking(self._store.index.update, run)
        except Exception as error:
            try:
                known = await blocking(was_done)
            except Exception as unknown:
                self.fail(f"the index does not say what a failed commit has left: {unknown}")
                raise error from unknown
            if not known:
                raise
            log.warning("volume %s: a commit was done but failed: %s", self.record.id, error)
        return done[0]

    async def stop(self) -> None:
        """Wait until no checkpoint, quiesced commit or flush is under way, and let none begin."""
        await self._checkpoint_lock.acquire()
        await self._turn.acquire()
        self.closed = True
        self._turn.release()
        self._checkpoint_lock.release()

    async def restore_reserve(self) -> None:
        """Make the reserve whole, if some of it was used up. Called when there may be space again,
        before anything else takes it."""
        if self._store.reserve_wanted:
            await blocking(self._store.restore_reserve)

    def abandon(self) -> list[JournalName]:
        """Close the journal of a volume that is deleted or has failed, without applying it. Return
        the names of its segments."""
        self.closed = True
        segments = [*self._sealed, self._segment]
        for segment in segments:
            segment.close()
        return [segment.name for segment in segments]


async def _no_reads() -> None:
    pass


def _no_head(_head: Layer) -> None:
    """Nobody writes."""
