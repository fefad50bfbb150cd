"""Opening after a crash: what the journal says that the index does not.

Same boot, and no page was lost (the process died): every verified record counts, in order.

Another boot, or pages were lost (the machine died, or the file system was remounted without its
unsynced pages): only records that the last valid barrier covers count, for only their data is known
to be on disk. A segment counts only if those before it are sealed.

Whether pages were lost, the pool's own bytes say, so that any copy of them is recovered like the
original: a block that must hold data (format.journal) and holds zeros has lost it. Neither a
hole, nor a device or inode number, nor the boot id proves as much. Where the kernel has had the
head in memory since it was opened for writing, there is no need to look.

Journals of older code do not say which blocks may be zeros. With these a hole counts for lost data,
block by block.

A packed head may have been left shorter than a block of foretold zeros, which nothing proves lost;
it is made as long as what counts says, so that no read meets its end.

Recovery writes to no old journal and punches nothing. It may be killed and run again: all it does
is one index transaction. What it could not use is kept in journal/discarded and reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from bockd.drivers.local.access import StoreAccess, discard_segment
from bockd.drivers.local.format.blockmap import MapChanges
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.journal import MAP_CHANGES, Change, Kind
from bockd.drivers.local.format.journalreading import SegmentContents, last_barrier, read_journal
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.volume.lostpages import find_lost_pages
from bockd.durable import sync_directory
from bockd.errors import DamagedError, SyncFailedError, volume_failed
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, VolumeId
from bockd.pool.index import Transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replay:
    """What recovery will apply, and what it leaves."""

    changes: tuple[Change, ...]
    discarded: int
    """Map changes that are verified or torn but do not count."""


def recover(store: StoreAccess, record: LocalVolumeRecord) -> LocalVolumeRecord:
    """Bring the index up to date from the journal of a volume that was not closed, and mark it
    closed. Returns the new record. Raises DamagedError when the journal is missing or damaged,
    SyncFailedError.

    Blocks; the volume's lock is held.
    """
    segments = _read_segments(store, record)
    with store.index.reading() as txn:
        head = Layer.of(store.layout, Catalogue(txn).layer(record.head), writable=True)
    try:
        refuse_other_kind(segments, packed=head.packed)
        replay = plan_replay(segments, store.boot, head)
        try:
            head.reach(max((c.cell + c.blocks for c in replay.changes if c.cell >= 0), default=0))
            # What is about to be in the index for good must not point at unsynced data.
            head.sync()
        except OSError as error:
            # Final, as everywhere: the next one would succeed, and what was acknowledged is gone.
            reason = f"syncing the head layer in recovery failed: {error}"
            refusal = str(volume_failed(record.id, record.name, reason))
            raise SyncFailedError(refusal, volume=record.id, reason=reason) from error
    finally:
        head.close()
    hit(Failpoint.RECOVER_PLANNED)
    if replay.discarded:
        _keep_aside(store, segments)
        hit(Failpoint.RECOVER_KEPT)
        log.warning(
            "volume %s (%s): %d journal records were never flushed and do not count; "
            "the journal is kept in %s",
            record.id,
            record.name,
            replay.discarded,
            store.layout.discarded,
        )
    recovered = store.index.update(lambda txn: _apply(txn, record.id, replay))
    hit(Failpoint.RECOVER_COMMITTED)
    store.unswept.add(record.id)
    applied = sum(change.kind in MAP_CHANGES for change in replay.changes)
    log.info("volume %s (%s): %d map changes replayed", record.id, record.name, applied)
    remove_old_segments(store, record.id, recovered.generation)
    hit(Failpoint.RECOVER_DONE)
    return recovered


def _read_segments(store: StoreAccess, record: LocalVolumeRecord) -> list[SegmentContents]:
    """The segments that the index does not contain, in order and without a gap."""
    first = JournalName(record.id, record.generation, record.segment)
    segments, missing = read_journal(store.layout, first)
    if missing is not None:
        raise DamagedError(
            f"volume {record.id} ({record.name}) was in use when the daemon stopped, but its "
            f"journal {store.layout.journal_segment(missing)} is missing: put the file back, or "
            "accept the loss of the latest writes with 'bockd check --repair'"
        )
    return segments


def refuse_other_kind(segments: list[SegmentContents], *, packed: bool) -> None:
    """Raise DamagedError for the journal of a raw head if it is `packed`, or the reverse."""
    for segment in segments:
        if segment.packed is not packed:
            raise DamagedError(
                f"journal segment {segment.name.number} of volume {segment.name.volume} is of "
                f"another kind than the layer that the volume writes to; restore it, or accept the "
                "loss of the latest writes with 'bockd check --repair'"
            )


def plan_replay(segments: list[SegmentContents], boot: str, head: Layer) -> Replay:
    """Decide which changes count. Changes nothing; reads the head. Raises DamagedError."""
    survived = pages_survived(segments, boot, head)
    refuse_broken_chain(segments, survived=survived)
    if survived:
        return _plan_survived(segments, head)
    usable: list[Change] = []
    for segment in segments:
        usable.extend(segment.changes)
        if not segment.sealed:
            break
    durable = last_barrier(tuple(usable))
    total = sum(c.kind in MAP_CHANGES for s in segments for c in s.changes)
    kept = tuple(c for c in usable if c.sequence <= durable)
    torn = sum(segment.torn for segment in segments)
    return Replay(kept, total - sum(c.kind in MAP_CHANGES for c in kept) + torn)


def pages_survived(segments: list[SegmentContents], boot: str, head: Layer) -> bool:
    """Return whether what was written is there, synced or not, as far as can be told."""
    if any(segment.boot_id != boot for segment in segments):
        return False
    if head.stayed_in_memory() or not all(segment.notes_zeros for segment in segments):
        return True
    return not find_lost_pages(segments, head)


def _plan_survived(segments: list[SegmentContents], head: Layer) -> Replay:
    everything = tuple(change for segment in segments for change in segment.changes)
    torn = sum(segment.torn for segment in segments)
    if head.stayed_in_memory() or all(segment.notes_zeros for segment in segments):
        return Replay(everything, torn)
    durable = last_barrier(everything)
    kept: list[Change] = []
    dropped = 0
    for change in everything:
        if change.kind is Kind.REDIRECT and change.sequence > durable:
            present = list(_backed(change, head))
            dropped += sum(c.blocks for c in present) != change.blocks
            kept.extend(present)
        else:
            kept.append(change)
    return Replay(tuple(kept), dropped + torn)


def refuse_broken_chain(segments: list[SegmentContents], *, survived: bool) -> None:
    """Raise DamagedError for a segment whose end is lost though there are later segments. A crash
    does not leave that: where the pages survived, nothing is lost, and nothing is flushed into a
    segment before those before it are sealed."""
    for segment, later in pairwise(segments):
        lost = segment.torn if survived else bool(last_barrier(later.changes))
        if lost and not segment.sealed:
            raise DamagedError(
                f"journal segment {segment.name.number} of volume {segment.name.volume} is damaged "
                "in the middle; restore it, or accept the loss with 'bockd check --repair'"
            )


def _backed(change: Change, head: Layer) -> Iterator[Change]:
    """The parts of a redirect whose blocks are no holes in the head."""
    start = change.start * BLOCK_SIZE
    for low, high in head.data_ranges(start, change.blocks * BLOCK_SIZE):
        first, end = low // BLOCK_SIZE, -(-high // BLOCK_SIZE)
        yield change._replace(start=first, blocks=end - first)


def _apply(txn: Transaction, volume: VolumeId, replay: Replay) -> LocalVolumeRecord:
    catalogue = Catalogue(txn)
    record = catalogue.volume(volume)
    changes = MapChanges(txn, record.map, record.head)
    for change in replay.changes:
        changes.apply(change)
    changes.store()
    record = replace(record, generation=record.generation + 1, segment=0, opened=False)
    catalogue.put_volume(record)
    hit(Failpoint.RECOVER_APPLIED)
    return record


def _keep_aside(store: StoreAccess, segments: list[SegmentContents]) -> None:
    """A second name for segments in which something did not count; done before the commit, so
    that a crash after it cannot lose them."""
    for segment in segments:
        path = store.layout.journal_segment(segment.name)
        with suppress(FileExistsError):
            os.link(path, store.layout.discarded / path.name)
    sync_directory(store.layout.discarded)


def remove_old_segments(store: StoreAccess, volume: VolumeId, before: int) -> None:
    """Remove the journal of generations below `before`, which the index contains."""
    for name in store.layout.journal_segments():
        if name.volume == volume and name.generation < before:
            discard_segment(store, name)
