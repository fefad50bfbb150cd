"""What makes a volume's writes last: journal and index of an open volume, brought together.

    append      a batch's map changes go to the journal before it is acknowledged (promise D1;
                volume.appending, and volume.room for who may)
    flush       head synced, then a barrier appended, then the journal synced (promise D2;
                volume.flushing)
    begin       before the first change: a journal, and a mark in the index that the volume is open
    checkpoint  the journal segment is sealed, its records applied to the index, its file removed
    quiesced    snapshot, revert, extend, close: what is left of the journal, and the change
    commit      itself, in one index transaction, with a new generation (volume.indexed)

Invariants:
* Flushes, seals and the swap inside a quiesced commit exclude each other (`Flusher.turn`);
  beginning, checkpoints and quiesced commits exclude each other (`_checkpoint_lock`).
* A failed sync or append is final (volume.failing): nothing is acknowledged any more.
* A segment's file goes when the index has its records, not sooner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from bockd.drivers.local.access import StoreAccess, create_segment, discard_segments
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import JournalSegment, Kind
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.failing import Failure
from bockd.drivers.local.volume.flushing import Flusher
from bockd.drivers.local.volume.indexed import IndexedVolume, store_failure
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.room import JournalRoom
from bockd.errors import BockdError, DeviceError, UnavailableError
from bockd.failpoints import Failpoint, hit
from bockd.pool.index import Transaction
from bockd.runtime.steps import Spawn, Steps, blocking, try_spawn
from bockd.runtime.waiting import Mutex, Pulse, WriteGate

log = logging.getLogger(__name__)
T = TypeVar("T")


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


class Durability:
    """Journal and index of one open volume."""

    def __init__(self, parts: VolumeParts) -> None:
        record, store = parts.record, parts.store
        self.closed = False
        """The journal is closed: there is nothing to bring up to date any more."""
        self.drain_reads: Callable[[], Steps[None]] = _no_reads
        """Waits for the reads that have begun; given by the volume."""
        self.on_begun: Callable[[Layer], None] = _no_head
        """Told the head that is written to from now on; given by the volume."""
        self.cells: HeadCells | None = None
        """Of a packed head, once it is written to."""
        self.rotate: Callable[[], Steps[None]] = _no_reads
        """Gives the volume another head, if that has few cells left; given by the registry."""
        self._store = store
        self._cache = parts.cache
        self._gate = parts.gate
        self._spawn = parts.spawn
        self._sealed: list[JournalSegment] = []
        self._checkpoint_lock = Mutex()
        self._checkpoint_wanted = False
        self._rotation_wanted = False
        self._room_changed = Pulse()
        self.failure = Failure(
            record.id,
            record.name,
            record.failed,
            record=partial(store_failure, store.index, record.id),
            spawn=parts.spawn,
            on_failed=self._room_changed.fire,
        )
        self.tail = JournalTail(self.failure, no_segment(record))
        self.flusher = Flusher(self.tail, self.failure, Layer(record.head, [], nowait=False))
        self.room = JournalRoom(
            self.tail,
            parts.cache.unstored,
            parts.gate,
            store.index,
            self.failure,
            self._room_changed,
            begin=lambda reserve: self.begin(reserve=reserve),
            want_checkpoint=self._want_checkpoint,
        )
        self._indexed = IndexedVolume(store, record, self.failure, parts.on_garbage)

    @property
    def record(self) -> LocalVolumeRecord:
        """What the index says of the volume."""
        return self._indexed.record

    @property
    def head(self) -> Layer:
        """The layer that is written to; without files before the first change."""
        return self.flusher.head

    @property
    def failed(self) -> str | None:
        """Why the volume has failed, if it has."""
        return self.failure.reason

    # -- beginning ---------------------------------------------------------------------------

    async def begin(self, *, reserve: bool) -> None:
        """Make the volume ready for its first change. Repeating it does no harm. On a full disk its
        journal comes from the reserve. Raises NoSpaceError when that is used up, or another
        BockdError, with nothing changed."""
        async with self._checkpoint_lock:
            if not self.tail.begun:
                await self._begin(reserve=reserve)

    async def _begin(self, *, reserve: bool) -> None:
        self.failure.check_usable()
        if self.closed:
            raise UnavailableError(f"volume {self.record.id} was closed; connect again")
        head = await blocking(self._open_head)
        segment: JournalSegment | None = None
        try:
            name = JournalName(self.record.id, self.record.generation + 1, 0)
            segment = await blocking(
                create_segment, self._store, name, reserve=reserve, packed=head.packed
            )
            hit(Failpoint.OPEN_SEGMENT)
            await self._indexed.mark_opened()
            hit(Failpoint.OPEN_COMMITTED)
        except BaseException:
            head.close()
            if segment is not None:
                segment.close()
                # Otherwise the index may name it.
                if self.failed is None:
                    discard_segments(self._store, [segment])
            raise
        self.tail.switch_to(segment)
        self.on_begun(head)

    def _open_head(self) -> Layer:
        with self._store.index.reading() as txn:
            head = Catalogue(txn).layer(self.record.head)
        return Layer.of(self._store.layout, head, writable=True)

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
            self.room.checkpoint_error = error
            log.warning("checkpoint of volume %s failed: %s", self.record.id, error)
        finally:
            self._checkpoint_wanted = False
            self._room_changed.fire()

    async def checkpoint(self) -> None:
        """Bring the index up to date with everything acknowledged before the call.

        Raises BockdError with the volume unharmed (but for a failed sync): the journal keeps
        what the index could not take.
        """
        async with self._checkpoint_lock:
            if self.closed or not self.tail.begun:
                return
            # What an earlier attempt left comes first, so that failures do not pile up segments.
            with self._store.checkpoints.counting():
                await self._apply_sealed()
                await self._seal()
                await self._apply_sealed()
            self.room.checkpoint_error = None
            await self.restore_reserve()
            if self.cells is not None and self.cells.is_short:
                self._want_rotation()

    def _want_rotation(self) -> None:
        """Have the volume get another head in the background: now, or after the next checkpoint."""
        if self._rotation_wanted:
            return
        self._rotation_wanted = True
        if not try_spawn(self._spawn, self._background_rotation()):
            self._rotation_wanted = False

    async def _background_rotation(self) -> None:
        try:
            await self.rotate()
        except BockdError as error:  # who needs cells tries again, and meets it
            log.warning("volume %s gets no other layer: %s", self.record.id, error)
        finally:
            self._rotation_wanted = False

    async def _seal(self) -> None:
        """Direct new records to a new segment, and complete the old one durably."""
        if self.tail.untouched:
            return
        old = self.tail.segment
        name = replace(old.name, number=old.name.number + 1)
        packed = self.head.packed
        fresh = await blocking(create_segment, self._store, name, reserve=True, packed=packed)
        hit(Failpoint.CHECKPOINT_SEGMENT)
        async with self.flusher.turn:
            self.tail.commit()
            if self.cells is not None:
                self.cells.begin_seal()
            self.tail.switch_to(fresh)
            self._sealed.append(old)
            self._room_changed.fire()
            hit(Failpoint.CHECKPOINT_SWITCHED)
            await self.flusher.sync_all(Kind.SEAL, old)
            hit(Failpoint.CHECKPOINT_SEALED)

    async def _apply_sealed(self) -> None:
        """Store what sealed segments hold, and remove them."""
        sealed = list(self._sealed)
        if not sealed:
            return
        # A commit tells whoever reclaims, which may be another process, what the volume does not
        # need any more. Reads that may still need it began before the change and end first.
        await self.drain_reads()
        applied = sealed[-1].last_sequence
        await self._indexed.apply(sealed)
        self._store.checkpoints.applied(sealed)
        self._cache.mark_clean(applied)
        if self.cells is not None:
            self.cells.end_seal()
            hit(Failpoint.CELLS_FREED)
        del self._sealed[: len(sealed)]
        await blocking(discard_segments, self._store, sealed)
        hit(Failpoint.CHECKPOINT_DONE)

    # -- transitions -------------------------------------------------------------------------

    async def quiesced_commit(
        self,
        change: Callable[[Transaction, LocalVolumeRecord], tuple[LocalVolumeRecord, T]],
        adopt: Callable[[LocalVolumeRecord, T], None],
        *,
        reopen: bool = True,
        packed: bool | None = None,
    ) -> T:
        """Change the volume's record together with the residue of its journal.

        `change` runs in a thread, inside the transaction, on the record that the residue gave,
        and may run twice; `adopt` runs on the owner thread after the commit, while no write is
        under way. With `reopen`, a journal of a new generation takes over, otherwise the volume is
        marked closed. `packed` says what the head will be; None if it stays. Raises with everything
        as it was, but for a failed sync.
        """
        async with self._checkpoint_lock:
            if not self.tail.begun:
                await self._begin(reserve=False)
            # Most of the work is done here, while writes go on.
            await self.flusher.flush()
            hit(Failpoint.TRANSITION_FLUSHED)
            fresh: JournalSegment | None = None
            if reopen:
                name = JournalName(self.record.id, self.record.generation + 1, 0)
                packed = self.head.packed if packed is None else packed
                fresh = await blocking(
                    create_segment, self._store, name, reserve=True, packed=packed
                )
                hit(Failpoint.TRANSITION_SEGMENT)
            await self._gate.quiesce()
            hit(Failpoint.TRANSITION_CLOSED)
            try:
                result = await self._swap(change, adopt, fresh)
            except BaseException:
                # After a failure the index may name it.
                if fresh is not None and self.tail.segment is not fresh and self.failed is None:
                    discard_segments(self._store, [fresh])
                raise
            finally:
                self._gate.open()
                self._room_changed.fire()
        return result

    async def _swap(
        self,
        change: Callable[[Transaction, LocalVolumeRecord], tuple[LocalVolumeRecord, T]],
        adopt: Callable[[LocalVolumeRecord, T], None],
        fresh: JournalSegment | None,
    ) -> T:
        async with self.flusher.turn:
            self.tail.commit()
            self.failure.check_usable()
            if self.flusher.unsynced:
                await self.flusher.sync_head()
            hit(Failpoint.TRANSITION_SYNCED)
            old = [*self._sealed, self.tail.segment]
            result = await self._indexed.transition(old, change, opened=fresh is not None)
            self._store.checkpoints.applied(old)
            self._cache.mark_clean(self.tail.segment.last_sequence)
            self._sealed = []
            if fresh is not None:
                self.tail.switch_to(fresh)
            else:
                self.closed = True
            self.tail.forget_changes()
            adopt(self.record, result)
        await blocking(discard_segments, self._store, old)
        hit(Failpoint.TRANSITION_DONE)
        return result

    async def stop(self) -> None:
        """Wait until no checkpoint, quiesced commit or flush is under way, and let none begin."""
        async with self._checkpoint_lock, self.flusher.turn:
            self.closed = True

    async def restore_reserve(self) -> None:
        """Make the reserve whole, if some of it was used up. Called when there may be space again,
        before anything else takes it."""
        if self._store.reserve_wanted:
            await blocking(self._store.restore_reserve)

    def abandon(self) -> list[JournalName]:
        """Close the journal of a volume that is deleted or has failed, without applying it. Return
        the names of its segments."""
        self.closed = True
        segments = [*self._sealed, self.tail.segment]
        for segment in segments:
            segment.close()
        return [segment.name for segment in segments]


def no_segment(record: LocalVolumeRecord) -> JournalSegment:
    """Return a stand-in for the journal of a volume that has none yet: a segment without room."""
    segment = JournalSegment(JournalName(record.id, record.generation, record.segment), -1)
    segment.free = 0
    return segment


async def _no_reads() -> None:
    pass


def _no_head(_head: Layer) -> None:
    """Nobody writes."""
