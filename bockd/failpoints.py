"""Named places at which a test may kill the process: one at every step of a change.

`BOCKD_FAILPOINT=name` in the environment of `bockd serve` makes the process send itself SIGKILL
when it comes to that place, `name:n` when it comes there for the n-th time. Nothing else reads it,
and without it a failpoint does nothing. tests/crash/failpoints walks the list: a name added here is
covered, and one that its scenario does not reach fails.

Where a step is made once for each request of a client, the code asks `armed` first, in place: that
costs a few nanoseconds where a call costs twenty.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Mapping
from enum import StrEnum

from bockd.errors import InvalidRequestError

VARIABLE = "BOCKD_FAILPOINT"


class Failpoint(StrEnum):
    """Each says what has just been done; if not, what is about to be."""

    # A write, zero or trim of a client.
    WRITE_BEGUN = "write.begun"
    """Nothing of a write is in the head yet."""
    WRITE_PIECE = "write.piece"
    """One of several pieces of a large write is in the head."""
    WRITE_DATA = "write.data"
    """The data is in the head."""
    WRITE_EDGES = "write.edges"
    """Of a partial block, what stands before the data is in the head."""
    WRITE_REMAPPED = "write.remapped"
    """The data is in the head and the map in memory leads there; the journal does not know."""
    CELLS_APPENDED = "cells.appended"
    """New blocks are in their cells of a packed head; no map leads there."""
    CELLS_FREED = "cells.freed"
    """Cells that trims have emptied are free to be used again."""
    ZEROS_FORETOLD = "zeros.foretold"
    """The journal says which blocks of the head will be zeros; the head does not have them yet."""
    ZEROS_ALLOCATED = "zeros.allocated"
    """Zeros are allocated in the head; the map does not lead there yet."""
    TRIM_REMAPPED = "trim.remapped"
    """The map in memory says hole; the journal does not know."""
    TRIM_COMMITTED = "trim.committed"
    """The journal says hole; nothing is punched yet."""
    JOURNAL_APPENDED = "journal.appended"
    """The journal has the map changes; nobody was told."""
    PUNCH_BEGUN = "punch.begun"
    """Trimmed blocks of a head are about to be punched."""
    PUNCH_DONE = "punch.done"
    """They are punched."""

    # A flush.
    FLUSH_BEGUN = "flush.begun"
    """It is known what the flush covers."""
    FLUSH_DATA = "flush.data-synced"
    """The head is synced."""
    FLUSH_BARRIER = "flush.barrier-appended"
    """The barrier is in the journal, which is not synced."""
    FLUSH_DONE = "flush.done"
    """All of it is on disk; nobody was told."""

    # A journal segment's file.
    SEGMENT_WRITTEN = "segment.written"
    """Its content is written under a name that does not count, unsynced."""
    SEGMENT_SYNCED = "segment.synced"
    """Its content is synced, its name is not right yet."""
    SEGMENT_NAMED = "segment.named"
    """It has its name, in a directory that is not synced."""

    # A checkpoint.
    CHECKPOINT_WANTED = "checkpoint.wanted"
    """The journal is half used."""
    CHECKPOINT_SEGMENT = "checkpoint.segment-made"
    """The next segment is there; records still go to the old one."""
    CHECKPOINT_SWITCHED = "checkpoint.switched"
    """Records go to the next segment; the old one has no seal."""
    CHECKPOINT_SEALED = "checkpoint.sealed"
    """The old segment is sealed and on disk."""
    CHECKPOINT_APPLIED = "checkpoint.applied"
    """Its records are applied, in a transaction that is not committed."""
    CHECKPOINT_COMMITTED = "checkpoint.committed"
    """They are in the index; the segment is still there."""
    CHECKPOINT_DONE = "checkpoint.done"
    """The segment is gone."""

    # A snapshot, growth or closing of a volume that is open.
    TRANSITION_FLUSHED = "transition.flushed"
    """What was written until now is flushed."""
    TRANSITION_SEGMENT = "transition.segment-made"
    """The journal of the next generation is there."""
    TRANSITION_CLOSED = "transition.gate-closed"
    """No write is under way, and none begins."""
    TRANSITION_SYNCED = "transition.synced"
    """The head is synced once more."""
    TRANSITION_APPLIED = "transition.applied"
    """Journal and change are applied, in a transaction that is not committed."""
    TRANSITION_COMMITTED = "transition.committed"
    """They are in the index; this process goes on with the old generation."""
    TRANSITION_DONE = "transition.done"
    """The old journal is gone."""

    # The first change of an open volume, and recovering one.
    OPEN_SEGMENT = "open.segment-made"
    """The journal of the new generation is there; the index says that the volume is closed."""
    OPEN_COMMITTED = "open.committed"
    """The index says that the volume is open for writing."""
    RECOVER_PLANNED = "recover.planned"
    """The journal is read, and the head synced."""
    RECOVER_KEPT = "recover.kept-aside"
    """A journal that does not count in full has a second name."""
    RECOVER_APPLIED = "recover.applied"
    """The records are applied, in a transaction that is not committed."""
    RECOVER_COMMITTED = "recover.committed"
    """They are in the index; the old journal is still there."""
    SWEEP_PUNCHED = "sweep.punched"
    """Some of the cells that a death has left are punched."""
    RECOVER_DONE = "recover.done"
    """The old journal is gone."""

    # The files of a new layer, and of one that grows.
    LAYER_CREATED = "layer.created"
    """The files are there, unsynced."""
    LAYER_SYNCED = "layer.synced"
    """They are durable, and named by nobody."""
    LAYER_GROWN = "layer.grown"
    """The file is longer than the index says."""
    LAYER_UNLINKED = "layer.unlinked"
    """The first of its files is gone."""

    # Transactions of any kind.
    INDEX_CHANGED = "index.changed"
    """A transaction is about to be committed."""
    INDEX_COMMITTED = "index.committed"
    """It is committed, and nobody was told."""

    # A transaction of the index that several gateways share (bockd.drivers.rbd), and its dumps.
    SHARED_CHANGED = "shared-index.changed"
    """The change is in a transaction of the replica; the log does not know."""
    SHARED_UNANSWERED = "shared-index.unanswered"
    """The log was not heard of; whether it has the change is about to be found out."""
    SHARED_SETTLED = "shared-index.settled"
    """An empty entry has taken the place of the change."""
    SHARED_APPENDED = "shared-index.appended"
    """The log has it; the replica does not."""
    SHARED_COMMITTED = "shared-index.committed"
    """The replica has it, and nobody was told."""
    SHARED_LOADED = "shared-index.loaded"
    """A new replica has the dump, but not the entries after it."""
    DUMP_BEGUN = "dump.begun"
    """The log says that a dump is being written; nothing of it is there."""
    DUMP_PIECE = "dump.piece-written"
    DUMP_WRITTEN = "dump.written"
    """All of it is there; the one before is in force."""
    DUMP_SWUNG = "dump.swung"
    """It is in force; the one before is still there."""
    DUMP_CLAIMED = "dump.claimed"
    """A dump that is not in force can never come into force; all of it is there."""
    DUMP_PIECE_REMOVED = "dump.piece-removed"
    DUMP_REMOVED = "dump.removed"
    """All of one is removed; the log still says that it is to be."""

    # Operations on volumes and snapshots. "changed": in a transaction that is not committed.
    CREATE_CHANGED = "create.changed"
    CREATE_COMMITTED = "create.committed"
    CLONE_CHANGED = "clone.changed"
    CLONE_COMMITTED = "clone.committed"
    SNAPSHOT_LAYER = "snapshot.layer-made"
    """The new head of an open volume is there."""
    SNAPSHOT_CHANGED = "snapshot.changed"
    SNAPSHOT_COMMITTED = "snapshot.committed"
    ROTATE_LAYER = "rotate.layer-made"
    """The head that takes the place of a full one is there."""
    ROTATE_CHANGED = "rotate.changed"
    ROTATE_COMMITTED = "rotate.committed"
    REVERT_CLOSED = "revert.closed"
    """The volume is closed and locked."""
    REVERT_CHANGED = "revert.changed"
    REVERT_COMMITTED = "revert.committed"
    EXTEND_CHANGED = "extend.changed"
    EXTEND_COMMITTED = "extend.committed"
    REOPEN_CHANGED = "reopen.changed"
    REOPEN_COMMITTED = "reopen.committed"
    DELETE_CLOSED = "delete-volume.closed"
    """The volume is closed without a checkpoint."""
    DELETE_CHANGED = "delete-volume.changed"
    DELETE_COMMITTED = "delete-volume.committed"
    """The index has forgotten it; its journal and lock are still there."""
    DELETE_DONE = "delete-volume.done"
    DELETE_SNAPSHOT_CHANGED = "delete-snapshot.changed"
    DELETE_SNAPSHOT_COMMITTED = "delete-snapshot.committed"
    TRASH_CLOSED = "trash.closed"
    """A volume or snapshot is closed, and not in the trash yet."""
    TRASH_FORMAT = "trash.format"
    """Of a pool in Ceph: its index has the format of one with a trash, and it is not there yet."""
    TRASH_CHANGED = "trash.changed"
    """It is in the trash, in a transaction that is not committed."""
    TRASH_COMMITTED = "trash.committed"
    RESTORE_CHANGED = "restore.changed"
    """It is an ordinary one again, in a transaction that is not committed."""
    RESTORE_COMMITTED = "restore.committed"

    FREEZE_CHANGED = "freeze.changed"
    """A volume has turned into a snapshot, in a transaction that is not committed."""
    FREEZE_COMMITTED = "freeze.committed"
    """The index knows it as a snapshot; its journal and lock are still there."""

    # Reclaim, and merging of layers.
    RECLAIM_BURIED = "reclaim.buried"
    """A batch of a dead map is dropped or folded, in a transaction that is not committed."""
    RECLAIM_PUNCHED = "reclaim.punched"
    """Queued blocks are punched, and still queued."""
    RECLAIM_FORGOT = "reclaim.forgot-empty"
    """A layer in which nothing is left is forgotten; its files are there."""
    RECLAIM_UNCHECKED = "reclaim.checksums-forgotten"
    """A batch of a forgotten layer's checksums is gone, in a transaction that is not committed."""
    RECLAIM_UNLINKED = "reclaim.unlinked"
    """Forgotten layers are gone, and still queued."""
    MERGE_COPIED = "merge.copied"
    """The blocks are copied, unsynced."""
    MERGE_SYNCED = "merge.synced"
    """They are synced; every map still leads to the old ones."""
    MERGE_BEGUN = "merge.begun"
    """The index knows of the copies; every map still leads to the old ones."""
    MERGE_REDIRECTED = "merge.redirected"
    """A batch of leaves leads to the copies, in a transaction that is not committed."""
    MERGE_ALIASED = "merge.aliased"
    """Everything leads to the copies; the old layer is not forgotten."""
    MERGE_DONE = "merge.done"
    """The old layer is forgotten; its files are there."""
    SETTLE_COPIED = "settle.copied"
    """A window's blocks are copied, unsynced."""
    SETTLE_SYNCED = "settle.synced"
    """They are synced; every map still leads to the old ones."""
    SETTLE_LED = "settle.led"
    """All maps lead to the copies, in a transaction that is not committed."""
    SETTLE_MOVED = "settle.moved"
    """It is committed; the old blocks are still there."""

    # Gateways that take a volume of a pool in Ceph from one another (bockd.drivers.rbd.taking).
    TAKE_OPENED = "take.opened"
    """The image is open; nobody was asked."""
    TAKE_ASKED = "take.asked"
    """Who has it has answered, or has not within the limit."""
    TAKE_BROKEN = "take.broken"
    """Its owner is shut out; nobody has the lock."""
    TAKE_LOCKED = "take.locked"
    """The lock is ours; the record names another gateway, or none."""
    TAKE_RECORDED = "take.recorded"
    """The record names us; nothing is written yet."""
    GIVE_BACK_CLOSED = "give-back.closed"
    """The lock is released; the record names us."""

    # What operations on a pool in Ceph make and remove there (bockd.drivers.rbd).
    IMAGE_MADE = "image.made"
    """An image or a snap is made, or an image has grown; the index does not know."""
    IMAGE_NAMED = "image.named"
    """The index knows; nobody was told."""
    GATEWAY_ENTERED = "gateway.entered"
    """The index lists the gateway; it has resolved nothing yet."""
    GENERATION_BEGUN = "generation.begun"
    """The index has a new generation, at which who is slow gives up; nothing is removed yet."""
    LEFTOVER_CLAIMED = "leftover.claimed"
    """The index has said once more that nothing names an image or a snap, which is there."""
    LEFTOVER_REMOVED = "leftover.removed"
    """It is gone."""
    IMAGE_FLATTENED = "image.flattened"
    """An image needs no other one any more; its record says that it does."""
    IMAGE_FORGOTTEN = "image.forgotten"
    """The index has forgotten an image or a snap, which is about to be removed."""

    # The cache of a device, when it is closed and when it is opened again (bockd.drivers.cache).
    CACHE_SYNCED = "cache.synced"
    """The cache file is synced; there is no map of it."""
    CACHE_MAP_WRITTEN = "cache.map-written"
    """The map is written and synced, under a name that does not count."""
    CACHE_MAP_NAMED = "cache.map-named"
    """It has its name, in a directory that is not synced."""
    CACHE_MAP_REMOVED = "cache.map-removed"
    """It is removed, from a directory that is not synced; nothing of the file has changed."""

    # Write-back in front of a volume.
    WRITEBACK_BINDING = "writeback.binding"
    """What pool a directory of logs belongs to, and how far that has come, is synced, under a name
    that does not count."""
    WRITEBACK_BOUND = "writeback.bound"
    """It has its name, durably."""
    WRITEBACK_SEGMENT_WRITTEN = "writeback.segment-written"
    """A segment of a log is written full of zeros, unsynced, under a name that does not count."""
    WRITEBACK_SEGMENT_SYNCED = "writeback.segment-synced"
    """It is synced, its name is not right yet."""
    WRITEBACK_SEGMENT_NAMED = "writeback.segment-named"
    """It has its name, in a directory that is not synced."""
    WRITEBACK_CREATED = "writeback.created"
    """A new log is whole; nobody knows of it."""
    WRITEBACK_ANNOUNCING = "writeback.announcing"
    """The driver is about to commit that the log is dirty."""
    WRITEBACK_ANNOUNCED = "writeback.announced"
    """It has; nothing is in the log yet."""
    WRITEBACK_APPENDING = "writeback.appending"
    """A record is about to be appended."""
    WRITEBACK_APPENDED = "writeback.appended"
    """A record is in the log; nobody was told."""
    WRITEBACK_BARRIER = "writeback.barrier"
    """A barrier is in the log, which is not synced."""
    WRITEBACK_SYNCED = "writeback.synced"
    """The log is synced; nobody was told."""
    WRITEBACK_REQUEST = "writeback.request"
    """One of the requests of an epoch was carried out below."""
    WRITEBACK_SENT = "writeback.sent"
    """All of an epoch was carried out below, which is not flushed."""
    WRITEBACK_FLUSHED = "writeback.flushed"
    """It is flushed there; the log does not know."""
    WRITEBACK_NOTING = "writeback.noting"
    """The log is about to note how much is below."""
    WRITEBACK_NOTED = "writeback.noted"
    """It has, durably; nothing of it is freed yet."""
    WRITEBACK_FREED = "writeback.freed"
    """A segment of the log that is not needed any more is removed."""
    WRITEBACK_CLEANING = "writeback.cleaning"
    """All is below; the driver is about to commit that nothing is dirty."""
    WRITEBACK_CLEANED = "writeback.cleaned"
    """It has; the log is still there."""
    WRITEBACK_REMOVED = "writeback.removed"
    """The log is removed."""
    WRITEBACK_CLEARED = "writeback.cleared"
    """What a crash has left behind the end of a log is made zeros; nothing is synced."""
    WRITEBACK_RECOVERED = "writeback.recovered"
    """A log is read back and synced; its progress does not say so yet."""
    WRITEBACK_SALVAGED = "writeback.salvaged"
    """What a damaged log has before its damage is below; the driver has not committed that the rest
    is given up."""

    # Checksums of frozen layers.
    SCRUB_READ = "scrub.read"
    """Blocks have checksums for the first time, in a transaction that is not committed."""
    SCRUB_BEGUN = "scrub.begun"
    """A pass over all checksums has begun."""
    SCRUB_VERIFIED = "scrub.verified"
    """A batch is verified and its damage marked, in a transaction that is not committed."""
    SCRUB_MARKED = "scrub.marked"
    """The index knows what is damaged; open volumes do not."""

    # The block storage API, around what it asks of the pool.
    API_ATTACHING = "api-attach.attaching"
    API_PUBLISHED = "api-attach.published"
    API_ATTACHED = "api-attach.attached"
    API_DETACHING = "api-detach.detaching"
    API_WITHDRAWN = "api-detach.withdrawn"
    API_CUT = "api-detach.cut"
    """By force: its connections are cut."""
    API_DETACHED = "api-detach.detached"
    API_DELETING_VOLUME = "api-delete-volume.deleting"
    API_DELETING_SNAPSHOT = "api-delete-snapshot.deleting"
    API_VOLUME_RECORDED = "api-create-volume.recorded"
    """Volume, record and usage, in a transaction that is not committed."""
    API_SNAPSHOT_RECORDED = "api-create-snapshot.recorded"
    API_CLONE_FROZEN = "api-clone-volume.frozen"
    """The snapshot of which a clone is to be made, in a transaction that is not committed."""
    API_TRASHED = "api-trash.trashed"
    """Its record is in the trash, in a transaction that is not committed."""
    API_RESTORED = "api-trash.restored"
    API_TRASH_FORGOTTEN = "api-trash.forgotten"
    """From the trash it is deleted for good, in a transaction that is not committed."""
    API_CLONE_MADE = "api-clone-volume.made"
    IMPORT_RECORDED = "import.recorded"
    """The volume that an image shall fill, and what it is for, in a transaction."""
    IMPORT_BEGUN = "import.begun"
    IMPORT_FINISHED = "import.finished"
    IMPORT_CANCELLED = "import.cancelled"
    IMAGE_DELETED = "image.deleted"
    SERVER_CHANGED = "server.changed"
    ADOPT_CHANGED = "adopt.changed"
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - a name

    # A start.
    BALLAST_WRITTEN = "ballast.written"
    """The ballast is written, unsynced."""
    SPARE_WRITTEN = "spare.written"
    """A spare journal segment is written, unsynced."""
    POOL_ESTABLISHED = "pool.established"
    """A new index has its pool record; directories may be missing."""
    CREDENTIALS_WRITTEN = "first-start.credentials-written"
    """The first user's credentials are in a pending file; the index does not know that user."""
    ACCOUNTS_COMMITTED = "first-start.committed"
    SETTLED = "settle.committed"
    """What was caught in a transient status is settled, but for what is still to be deleted."""


armed: Failpoint | None = None
"""The one at which this process dies. Set once, before anything runs."""

_passes = itertools.count(1)
_deadly = 1


def hit(point: Failpoint) -> None:
    """Kill the process if this failpoint is the armed one and was passed often enough. The call
    does not return then."""
    if armed is point and next(_passes) == _deadly:
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()  # a thread may run on for a moment


def arm(environ: Mapping[str, str]) -> Failpoint | None:
    """Arm the failpoint that the environment names. Return it, or None. Raises InvalidRequestError
    for an unknown name or number: a test of nothing must not look like a test."""
    global armed, _deadly
    text = environ.get(VARIABLE)
    if text is None:
        return None
    name, colon, number = text.partition(":")
    if name not in Failpoint.__members__.values() or (colon and not _is_count(number)):
        raise InvalidRequestError(
            f"{VARIABLE}={text!r} is not NAME or NAME:HIT with a failpoint of bockd/failpoints.py "
            "and a number from 1 on; it is for tests: unset it"
        )
    _deadly = int(number) if colon else 1
    armed = Failpoint(name)
    return armed


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) > 0
