"""Opening and closing volumes and snapshots: locks, layer files, recovery.

An open volume changes nothing on disk before its first change (`Durability.begin`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bockd.drivers.local.access import StoreAccess, discard_segment
from bockd.drivers.local.format.catalogue import Catalogue, LocalSnapshotRecord, LocalVolumeRecord
from bockd.drivers.local.format.layer import verify_layer
from bockd.drivers.local.format.layout import unlink_leftover
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.volume.durability import Durability, VolumeParts
from bockd.drivers.local.volume.indexed import store_failure
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.recovery import recover, remove_old_segments
from bockd.drivers.local.volume.slots import LayerSlots
from bockd.drivers.local.volume.snapshot import Snapshot
from bockd.drivers.local.volume.sweeping import Sweep
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import BockdError, DamagedError, NoSpaceError, SyncFailedError, volume_failed
from bockd.model import MapId, NodeKind, SnapshotId, VolumeId
from bockd.pool.records import refuse_trashed
from bockd.runtime.steps import Spawn, blocking
from bockd.runtime.waiting import WriteGate

log = logging.getLogger(__name__)

_Record = TypeVar("_Record", LocalVolumeRecord, LocalSnapshotRecord)


@dataclass(frozen=True, slots=True)
class _OpenedFiles:
    record: LocalVolumeRecord
    chain: tuple[MapId, ...]
    lock: FileLock
    sweep: Sweep | None
    """Of the head, if a recovery may have left strays in it."""


@dataclass(eq=False)
class OpenVolume:
    """A volume open in this process, and how many frontends use it."""

    volume: Volume
    lock: FileLock
    users: int = 0


@dataclass(eq=False)
class OpenSnapshot:
    """A snapshot open in this process, and how many frontends use it."""

    snapshot: Snapshot
    lock: FileLock
    users: int = 0


def lock_volume(store: StoreAccess, volume: VolumeId) -> FileLock:
    """Lock a volume for its one writer (promise D6). Raises InUseError when another process has the
    lock."""
    return _lock(
        store,
        store.layout.volume_lock(volume),
        shared=False,
        held_message=f"volume {volume} is open in another process: use that one's export, or let "
        "it close the volume (end the nbdkit that has it, or disconnect the clients of bockd)",
    )


def lock_snapshot(store: StoreAccess, snapshot: SnapshotId, *, shared: bool) -> FileLock:
    """Lock a snapshot: shared to read it, exclusive to delete it. Raises InUseError."""
    return _lock(
        store,
        store.layout.snapshot_lock(snapshot),
        shared=shared,
        held_message=f"snapshot {snapshot} is being read by another process, or deleted: let its "
        "readers disconnect first",
    )


def _lock(store: StoreAccess, path: Path, *, shared: bool, held_message: str) -> FileLock:
    try:
        return FileLock.acquire(path, shared=shared, held_message=held_message)
    except NoSpaceError:
        # A lock file is made when it is first needed, and deleting needs one.
        if not store.ballast.release():
            raise
    return FileLock.acquire(path, shared=shared, held_message=held_message)


def refuse_failed(record: LocalVolumeRecord) -> None:
    """Raise VolumeFailedError for a volume whose last sync failed."""
    if record.failed is not None:
        raise volume_failed(record.id, record.name, record.failed)


def recover_if_needed(store: StoreAccess, volume: VolumeId) -> LocalVolumeRecord:
    """Return the record of a volume that nobody has open, after recovery if it was not closed. The
    caller holds the volume's lock. Blocks."""
    with store.index.reading() as txn:
        record = Catalogue(txn).volume(volume)
    refuse_failed(record)
    if not record.opened:
        return record
    try:
        return recover(store, record)
    except SyncFailedError as error:
        record_failure(store, volume, error.reason)
        raise


def record_failure(store: StoreAccess, volume: VolumeId, reason: str) -> None:
    """Record in the index that a sync of a volume has failed. If the index cannot be written, the
    caller that saw the failure must remember it. Blocks."""
    try:
        store_failure(store.index, volume, reason)
    except BockdError as error:
        log.error("the failure of volume %s could not be recorded: %s", volume, error)  # noqa: TRY400


def remove_traces(store: StoreAccess, volume: VolumeId, lock: FileLock) -> None:
    """Remove the journal and the lock file of a volume that the index has forgotten."""
    for name in store.layout.journal_segments():
        if name.volume == volume:
            discard_segment(store, name)
    unlink_leftover(lock.path)


async def open_volume(
    store: StoreAccess, volume: VolumeId, spawn: Spawn, on_garbage: Callable[[], None]
) -> OpenVolume:
    """Lock, verify, recover and open a volume. Raises BockdError, with nothing held. `on_garbage`
    is called when one of its checkpoints leaves something to reclaim."""
    files = await blocking(_open_files, store, volume)
    gate = WriteGate()
    loader = _loader(store, files.chain, files.record.size_bytes)
    parts = VolumeParts(store, files.record, loader.cache, gate, spawn, on_garbage)
    device = Volume(store, loader, Durability(parts), gate, spawn)
    if files.sweep is not None:
        device.heads.start_sweep(files.sweep)
    return OpenVolume(device, files.lock)


def _loader(store: StoreAccess, chain: tuple[MapId, ...], size_bytes: int) -> LeafLoader:
    layers = LayerSlots()
    return LeafLoader(store, chain, layers, LeafCache(layers), size_bytes)


def _open_files(store: StoreAccess, volume: VolumeId) -> _OpenedFiles:
    lock = lock_volume(store, volume)
    try:
        found, chain = _verified(store, lambda catalogue: catalogue.volume(volume))
        refuse_trashed(NodeKind.VOLUME, found)
        record = recover_if_needed(store, volume)
        remove_old_segments(store, volume, record.generation)
        sweep = Sweep.of(store, record.head) if volume in store.unswept else None
        store.unswept.discard(volume)
    except BaseException:
        lock.release()
        raise
    return _OpenedFiles(record, chain, lock, sweep)


def _verified(
    store: StoreAccess, find: Callable[[Catalogue], _Record]
) -> tuple[_Record, tuple[MapId, ...]]:
    """A record and the chain of its map, every layer that it may lead to being there in full."""
    last_error: str | None = None
    while True:
        with store.index.reading() as txn:
            catalogue = Catalogue(txn)
            record = find(catalogue)
            chain = catalogue.chain(record.map)
            try:
                for member in chain:
                    for layer in catalogue.layers_of(member):
                        needed = catalogue.layer(layer).file_bytes
                        verify_layer(store.layout, layer, needed)
            except DamagedError as error:
                # Another process may have merged the layer into another one since this transaction
                # began. The next one does not know it then; what is really damaged stays so.
                if str(error) == last_error:
                    raise
                last_error = str(error)
            else:
                return record, chain


def look_at_volume(store: StoreAccess, volume: VolumeId) -> None:
    """Raise what `open_volume` would raise, except recovery's errors. Change nothing. Blocks."""
    record, _ = _verified(store, lambda catalogue: catalogue.volume(volume))
    refuse_failed(record)
    if store.layout.volume_lock(volume).exists():
        lock_volume(store, volume).release()


def look_at_snapshot(store: StoreAccess, snapshot: SnapshotId) -> None:
    """Raise what `open_snapshot` would raise. Change nothing. Blocks."""
    _verified(store, lambda catalogue: catalogue.snapshot(snapshot))
    if store.layout.snapshot_lock(snapshot).exists():
        lock_snapshot(store, snapshot, shared=True).release()


async def close_volume(opened: OpenVolume, *, give_up: bool) -> None:
    """Flush, apply the journal to the index, mark the volume closed and release everything.

    A volume that has failed, or whose index cannot be written, keeps its journal; the next opening
    finds it. Raises what prevented a proper close. With `give_up` it raises after everything is
    released. Without it the volume stays open, and can be read, if the next opening would fail for
    the same reason.
    """
    volume, durability = opened.volume, opened.volume.durability
    failure = durability.failure
    if not give_up and failure.read_only is not None:
        raise failure.read_only
    try:
        await volume.heads.end_sweep()
        await volume.heads.finish_punching()
        await volume.end_reads()
        if failure.reason is None and durability.tail.begun:
            await durability.quiesced_commit(
                lambda _txn, record: (record, None), lambda _record, _result: None, reopen=False
            )
        else:
            # A checkpoint that is under way ends before the lock goes to somebody else.
            await durability.stop()
    except BockdError:
        await failure.record()
        unharmed = failure.reason is None or failure.read_only is not None
        if unharmed and not give_up and not durability.closed:
            raise
        await _give_back(opened)
        raise
    except BaseException:
        await _give_back(opened)
        raise
    await _give_back(opened)


async def _give_back(opened: OpenVolume) -> None:
    opened.volume.durability.abandon()
    await opened.volume.durability.failure.record()
    opened.volume.map.close()
    opened.lock.release()


async def abandon_volume(opened: OpenVolume) -> None:
    """Close a volume without bringing the index up to date: it has failed, or it is about to be
    deleted. Its journal stays on disk."""
    await opened.volume.gate.quiesce()
    await opened.volume.heads.end_sweep()
    opened.volume.heads.cancel_punching()
    await opened.volume.heads.finish_punching()
    await opened.volume.end_reads()
    await opened.volume.durability.stop()
    await _give_back(opened)


async def open_snapshot(store: StoreAccess, snapshot: SnapshotId, spawn: Spawn) -> OpenSnapshot:
    """Lock and verify a snapshot for reading. Raises BockdError, with nothing held."""

    def prepare() -> OpenSnapshot:
        lock = lock_snapshot(store, snapshot, shared=True)
        try:
            record, chain = _verified(store, lambda catalogue: catalogue.snapshot(snapshot))
            refuse_trashed(NodeKind.SNAPSHOT, record)
        except BaseException:
            lock.release()
            raise
        return OpenSnapshot(
            Snapshot(store, _loader(store, chain, record.size_bytes), record, spawn), lock
        )

    return await blocking(prepare)


async def close_snapshot(opened: OpenSnapshot) -> None:
    """Release everything once the reads under way are finished."""
    await opened.snapshot.end_reads()
    opened.snapshot.map.close()
    opened.lock.release()
