"""An open volume in the index: its record and stored map, and the transactions that change them.

Invariants:
* `record` is what the index has, as far as this process knows. Another process that has opened the
  volume meanwhile has raised its generation, and every transaction here refuses that.
* A quiesced commit that fails may have been committed all the same. Then the index is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import JournalSegment
from bockd.drivers.local.format.journalreading import read_segment
from bockd.drivers.local.volume.failing import Failure
from bockd.errors import DamagedError
from bockd.failpoints import Failpoint, hit
from bockd.index.index import LmdbIndex
from bockd.index.transaction import LmdbTransaction
from bockd.model import VolumeId
from bockd.runtime.steps import blocking

log = logging.getLogger(__name__)
T = TypeVar("T")


def store_failure(index: LmdbIndex, volume: VolumeId, reason: str) -> None:
    """Record in the index why a volume is refused. Blocks. Raises BockdError."""

    def change(txn: LmdbTransaction) -> None:
        catalogue = Catalogue(txn)
        catalogue.put_volume(replace(catalogue.volume(volume), failed=reason))

    index.update(change)


class IndexedVolume:
    """The index's side of one open volume."""

    def __init__(
        self,
        store: StoreAccess,
        record: LocalVolumeRecord,
        failure: Failure,
        on_garbage: Callable[[], None],
    ) -> None:
        """`on_garbage` is called when a commit leaves something to reclaim."""
        self.record = record
        self._store = store
        self._failure = failure
        self._on_garbage = on_garbage

    async def mark_opened(self) -> None:
        """Let the index know that a journal of the next generation may hold what the map does
        not. Raises BockdError."""

        def change(txn: LmdbTransaction) -> tuple[LocalVolumeRecord, None, bool]:
            catalogue = Catalogue(txn)
            found = self._still_ours(catalogue)
            record = replace(found, generation=found.generation + 1, segment=0, opened=True)
            catalogue.put_volume(record)
            return record, None, False

        self.record, _, _ = await self._commit_or_find_out(change)

    async def apply(self, segments: list[JournalSegment]) -> None:
        """Apply the records of sealed segments to the stored map. Raises BockdError, with the index
        as it was."""
        follower = segments[-1].name.number + 1

        def change(txn: LmdbTransaction) -> tuple[LocalVolumeRecord, bool]:
            record, garbage = self._apply(txn, segments)
            record = replace(record, segment=follower)
            Catalogue(txn).put_volume(record)
            hit(Failpoint.CHECKPOINT_APPLIED)
            return record, garbage

        self.record, garbage = await blocking(self._store.index.update, change)
        hit(Failpoint.CHECKPOINT_COMMITTED)
        if garbage:
            self._on_garbage()

    async def transition(
        self,
        segments: list[JournalSegment],
        change: Callable[[LmdbTransaction, LocalVolumeRecord], tuple[LocalVolumeRecord, T]],
        *,
        opened: bool,
    ) -> T:
        """Apply the records of `segments`, turn to the next generation and run `change`, in one
        transaction. Return what `change` returned. Raises BockdError, with the index as it was."""

        def run(txn: LmdbTransaction) -> tuple[LocalVolumeRecord, T, bool]:
            applied, garbage = self._apply(txn, segments)
            generation = self.record.generation + 1
            record = replace(applied, generation=generation, segment=0, opened=opened)
            record, result = change(txn, record)
            Catalogue(txn).put_volume(record)
            hit(Failpoint.TRANSITION_APPLIED)
            return record, result, garbage

        self.record, result, garbage = await self._commit_or_find_out(run)
        hit(Failpoint.TRANSITION_COMMITTED)
        if garbage:
            self._on_garbage()
        return result

    def _still_ours(self, catalogue: Catalogue) -> LocalVolumeRecord:
        """Return the volume's record. Raises DamagedError when another process has opened it
        meanwhile, replayed its journal and gone on."""
        record = catalogue.volume(self.record.id)
        if record.generation != self.record.generation:
            raise DamagedError(f"volume {record.id} was opened by another process meanwhile")
        return record

    def _apply(
        self, txn: LmdbTransaction, segments: list[JournalSegment]
    ) -> tuple[LocalVolumeRecord, bool]:
        """In a thread: apply the records of `segments` to the stored map. Returns the volume's
        record, and whether blocks were queued to be punched."""
        record = self._still_ours(Catalogue(txn))
        changes = MapChanges(txn, record.map, record.head)
        for segment in segments:
            contents = read_segment(self._store.layout, segment.name)
            if contents.places != segment.used:
                raise DamagedError(
                    f"the journal of volume {record.id} does not read back as it was written"
                )
            for entry in contents.changes:
                changes.apply(entry)
        return record, changes.store()

    async def _commit_or_find_out(
        self, change: Callable[[LmdbTransaction], tuple[LocalVolumeRecord, T, bool]]
    ) -> tuple[LocalVolumeRecord, T, bool]:
        """Run a quiesced commit's transaction. One that fails may have been committed all the same,
        if a sync failed after its last write. Then the index is asked, and what it says counts: to
        go on with another head and generation than the index has would lose what follows."""
        done: list[tuple[LocalVolumeRecord, T, bool]] = []

        def run(txn: LmdbTransaction) -> None:
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
                reason = f"the index does not say what a failed commit has left: {unknown}"
                self._failure.declare(reason)
                raise error from unknown
            if not known:
                raise
            log.warning("volume %s: a commit was done but failed: %s", self.record.id, error)
        return done[0]
