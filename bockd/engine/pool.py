"""A pool: its catalogue of volumes and snapshots, and which of them are open in this process.

Operations are steps (bockd.steps). Those on one volume or snapshot exclude each other (`_busy`);
those that create layers exclude each other pool-wide (`_creating`), because they peek the next
layer id before they make its files. An operation that raises a BockdError has changed nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bockd.control import Space
from bockd.engine.durability import Spawn, StoreAccess
from bockd.engine.opening import (
    OpenSnapshot,
    OpenVolume,
    abandon_volume,
    close_snapshot,
    close_volume,
    lock_snapshot,
    lock_volume,
    open_snapshot,
    open_volume,
    settle,
)
from bockd.engine.space import measure_space
from bockd.engine.volume import Volume
from bockd.engine.waiting import Mutex
from bockd.errors import (
    BockdError,
    ConflictError,
    InUseError,
    InvalidRequestError,
    PoolFormatError,
    from_os_error,
)
from bockd.model import (
    LayerId,
    NodeKind,
    SnapshotId,
    VolumeId,
    check_name,
    check_volume_size,
)
from bockd.steps import Blocking, Steps
from bockd.store.ballast import Ballast
from bockd.store.catalogue import (
    FORMAT,
    NO_MAP,
    Catalogue,
    PoolRecord,
    SnapshotRecord,
    VolumeRecord,
    id_key,
)
from bockd.store.index import Index, Table, Transaction
from bockd.store.journal import boot_id
from bockd.store.layer import Layer, create_layer, unlink_layer
from bockd.store.layout import Layout, sync_directory, unlink_if_present
from bockd.store.locks import FileLock

log = logging.getLogger(__name__)
T = TypeVar("T")


class Pool:
    """An open pool. For the owner thread; ended by `close_all` and then `release`."""

    def __init__(self, store: StoreAccess, lock: FileLock, spawn: Spawn) -> None:
        self.store = store
        self.volumes: dict[VolumeId, OpenVolume] = {}
        self.snapshots: dict[SnapshotId, OpenSnapshot] = {}
        self.clock: Callable[[], float] = time.time
        self.on_dead_map: Callable[[], None] = lambda: None
        """Called when something was deleted and reclaim has work."""
        self._spawn = spawn
        self.lock = lock
        self._creating = Mutex()
        self._busy: dict[int, Mutex] = {}

    # -- the pool itself ---------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, spawn: Spawn, *, boot: str | None = None) -> Pool:
        """Open the pool at `root`, creating it in a new or empty place. Blocks.

        Raises InUseError when another process has it, PoolFormatError for a newer format,
        DamagedError for a truncated index, DeniedError, NoSpaceError.
        """
        layout = Layout(root)
        try:
            for directory in (layout.root, layout.locks, layout.index):
                os.makedirs(directory, mode=0o700, exist_ok=True)
            lock = FileLock.acquire(
                layout.pool_lock,
                shared=False,
                held_message=f"the pool {root} is in use by another bockd",
            )
        except OSError as error:
            raise from_os_error(error, f"opening the pool {root}") from error
        try:
            store = _open_store(layout, boot or boot_id())
        except OSError as error:
            lock.release()
            raise from_os_error(error, f"opening the pool {root}") from error
        except BaseException:
            lock.release()
            raise
        return cls(store, lock, spawn)

    def close_all(self) -> Steps[None]:
        """Close every open volume and snapshot. Raises the first error, after trying all."""
        first_error: BockdError | None = None
        for volume in list(self.volumes):
            try:
                yield from self._exclusive(volume, self._close_volume(volume))
            except BockdError as error:
                log.error("closing volume %s: %s", volume, error)  # noqa: TRY400
                first_error = first_error or error
        for snapshot in list(self.snapshots):
            yield from close_snapshot(self.snapshots.pop(snapshot))
        if first_error is not None:
            raise first_error

    def release(self) -> None:
        """Give the index and the pool's lock back. Nothing may be open or under way."""
        self.store.index.close()
        self.lock.release()

    @contextmanager
    def catalogue(self) -> Iterator[Catalogue]:
        """The catalogue at one instant, for reading."""
        with self.store.index.reading() as txn:
            yield Catalogue(txn)

    def find_volume(self, ref: str) -> VolumeId:
        """The volume of an id or a name; NotFoundError."""
        with self.catalogue() as catalogue:
            return VolumeId(catalogue.find(NodeKind.VOLUME, ref))

    def find_snapshot(self, ref: str) -> SnapshotId:
        """The snapshot of an id or a name; NotFoundError."""
        with self.catalogue() as catalogue:
            return SnapshotId(catalogue.find(NodeKind.SNAPSHOT, ref))

    def _exclusive(self, node: int, steps: Steps[T]) -> Steps[T]:
        """Run an operation while no other one runs on the same volume or snapshot."""
        mutex = self._busy.setdefault(node, Mutex())
        yield from mutex.acquire()
        try:
            result: T = yield from steps
        finally:
            mutex.release()
            if not mutex.held:
                self._busy.pop(node, None)
        return result

    # -- opening -----------------------------------------------------------------------------

    def use_volume(self, volume: VolumeId) -> Steps[OpenVolume]:
        """Open a volume, or join those who use it; `leave_volume` when done."""

        def steps() -> Steps[OpenVolume]:
            opened = self.volumes.get(volume)
            if opened is None:
                opened = yield from open_volume(self.store, volume, self._spawn)
                self.volumes[volume] = opened
            opened.users += 1
            return opened

        return self._exclusive(volume, steps())

    def leave_volume(self, volume: VolumeId) -> None:
        """One user less. The volume stays open until `close_idle` or an operation closes it."""
        self.volumes[volume].users -= 1

    def use_snapshot(self, snapshot: SnapshotId) -> Steps[OpenSnapshot]:
        """Open a snapshot for reading, or join; `leave_snapshot` when done."""

        def steps() -> Steps[OpenSnapshot]:
            opened = self.snapshots.get(snapshot)
            if opened is None:
                opened = yield from open_snapshot(self.store, snapshot)
                self.snapshots[snapshot] = opened
            opened.users += 1
            return opened

        return self._exclusive(snapshot, steps())

    def leave_snapshot(self, snapshot: SnapshotId) -> None:
        """One user less."""
        self.snapshots[snapshot].users -= 1

    def close_idle_volume(self, volume: VolumeId) -> Steps[None]:
        """Close a volume that nobody uses; nothing happens when somebody does."""

        def steps() -> Steps[None]:
            opened = self.volumes.get(volume)
            if opened is not None and opened.users == 0:
                yield from self._close_volume(volume)

        return self._exclusive(volume, steps())

    def close_idle_snapshot(self, snapshot: SnapshotId) -> Steps[None]:
        """Close a snapshot that nobody uses."""

        def steps() -> Steps[None]:
            opened = self.snapshots.get(snapshot)
            if opened is not None and opened.users == 0:
                yield from close_snapshot(self.snapshots.pop(snapshot))

        return self._exclusive(snapshot, steps())

    def _close_volume(self, volume: VolumeId) -> Steps[None]:
        if volume in self.volumes:
            yield from close_volume(self.volumes.pop(volume))

    def recover_volumes(self) -> Steps[None]:
        """Recover every volume that was not closed, so that the index is up to date. A volume
        that cannot be is reported, and refused when it is opened; the others are served."""
        with self.catalogue() as catalogue:
            unclosed = [v.id for v in catalogue.volumes() if v.opened and v.id not in self.volumes]
        for volume in unclosed:
            try:
                yield from self._exclusive(volume, self._recover_volume(volume))
            except BockdError as error:
                log.error("volume %s cannot be opened: %s", volume, error)  # noqa: TRY400

    def _recover_volume(self, volume: VolumeId) -> Steps[None]:
        def run() -> None:
            lock = lock_volume(self.store, volume)
            try:
                settle(self.store, volume)
            finally:
                lock.release()

        if volume not in self.volumes:
            yield Blocking(run)

    def measure(self, kind: NodeKind, node: int) -> Steps[Space]:
        """Exact space of a volume or snapshot, after a checkpoint of every open volume: what
        they wrote since may have ended a sharing. One that has failed counts as it was."""
        for opened in list(self.volumes.values()):
            if opened.volume.durability.failed is None:
                yield from opened.volume.durability.checkpoint()

        def walk() -> Space:
            with self.catalogue() as catalogue:
                if kind is NodeKind.VOLUME:
                    return measure_space(catalogue, catalogue.volume(VolumeId(node)).map)
                return measure_space(catalogue, catalogue.snapshot(SnapshotId(node)).map)

        space: Space = yield Blocking(walk)
        return space

    # -- creating ----------------------------------------------------------------------------

    def create_volume(
        self, name: str, size_bytes: int | None, from_snapshot: SnapshotId | None = None
    ) -> Steps[VolumeRecord]:
        """A blank volume, or a clone of a snapshot, of at least its size and by default exactly.

        Raises InvalidRequestError, ConflictError (the name), NotFoundError (the snapshot).
        """
        check_name(name)
        if size_bytes is not None:
            check_volume_size(size_bytes)
        elif from_snapshot is None:
            raise InvalidRequestError("a blank volume needs a size")

        def steps() -> Steps[VolumeRecord]:
            source: SnapshotRecord | None = None
            with self.catalogue() as catalogue:
                if from_snapshot is not None:
                    source = catalogue.snapshot(from_snapshot)
            size = _clone_size(source, size_bytes)

            def change(txn: Transaction, layer: LayerId) -> VolumeRecord:
                return self._add_volume(Catalogue(txn), name, size, from_snapshot, layer)

            record: VolumeRecord = yield from self._with_new_layer(size, change)
            return record

        # While it is being cloned a snapshot must not be deleted.
        return steps() if from_snapshot is None else self._exclusive(from_snapshot, steps())

    def _add_volume(
        self,
        catalogue: Catalogue,
        name: str,
        size: int,
        from_snapshot: SnapshotId | None,
        layer: LayerId,
    ) -> VolumeRecord:
        parent = NO_MAP if from_snapshot is None else catalogue.snapshot(from_snapshot).map
        volume = VolumeId(catalogue.new_node())
        catalogue.take_name(NodeKind.VOLUME, name, volume)
        map_record = catalogue.new_map(parent, size)
        catalogue.add_layer(layer, size, map_record.id)
        record = VolumeRecord(
            id=volume,
            name=name,
            size_bytes=size,
            map=map_record.id,
            head=layer,
            created_at=self.clock(),
            from_snapshot=from_snapshot,
            generation=0,
            segment=0,
            opened=False,
            failed=None,
        )
        catalogue.put_volume(record)
        return record

    def _with_new_layer(
        self, size_bytes: int, change: Callable[[Transaction, LayerId], T]
    ) -> Steps[T]:
        """Make a layer's files, then name them in a transaction with `change`."""
        yield from self._creating.acquire()
        try:
            result: T = yield Blocking(lambda: self._make_layer_and_commit(size_bytes, change))
        finally:
            self._creating.release()
        return result

    def _make_layer_and_commit(
        self, size_bytes: int, change: Callable[[Transaction, LayerId], T]
    ) -> T:
        layer = self._make_layer(size_bytes)
        try:
            return self.store.index.update(lambda txn: change(txn, layer))
        except BockdError:
            self._unmake_layer(layer)
            raise

    def _make_layer(self, size_bytes: int) -> LayerId:
        with self.catalogue() as catalogue:
            layer = catalogue.next_layer()
        try:
            create_layer(self.store.layout, layer, size_bytes)
        except OSError as error:
            unlink_layer(self.store.layout, layer)
            raise from_os_error(error, f"creating layer {layer}") from error
        return layer

    def _unmake_layer(self, layer: LayerId) -> None:
        """Remove the files of a layer that no transaction named (looked up, not assumed)."""
        with self.catalogue() as catalogue:
            named = catalogue.txn.get(Table.LAYERS, id_key(layer)) is not None
        if not named:
            unlink_layer(self.store.layout, layer)

    # -- snapshots ---------------------------------------------------------------------------

    def create_snapshot(self, volume: VolumeId, name: str) -> Steps[SnapshotRecord]:
        """Freeze the volume's head and map under a new name (promise D4); O(1)."""
        check_name(name)
        return self._exclusive(volume, self._create_snapshot(volume, name))

    def _create_snapshot(self, volume: VolumeId, name: str) -> Steps[SnapshotRecord]:
        opened = self.volumes.get(volume)
        if opened is None:
            return (yield from self._snapshot_closed(volume, name))
        yield from self._creating.acquire()
        try:
            return (yield from self._snapshot_open(opened.volume, name))
        finally:
            self._creating.release()

    def _snapshot_closed(self, volume: VolumeId, name: str) -> Steps[SnapshotRecord]:
        lock: FileLock = yield Blocking(lambda: lock_volume(self.store, volume))
        try:
            record: VolumeRecord = yield Blocking(lambda: settle(self.store, volume))

            def change(txn: Transaction, layer: LayerId) -> SnapshotRecord:
                catalogue = Catalogue(txn)
                changed, snapshot = self._freeze(catalogue, catalogue.volume(volume), name, layer)
                catalogue.put_volume(changed)
                return snapshot

            result: SnapshotRecord = yield from self._with_new_layer(record.size_bytes, change)
        finally:
            lock.release()
        return result

    def _snapshot_open(self, volume: Volume, name: str) -> Steps[SnapshotRecord]:
        size = volume.size_bytes
        layer: LayerId = yield Blocking(lambda: self._make_layer(size))
        head: Layer | None = None
        try:
            head = yield Blocking(lambda: Layer.open(self.store.layout, layer, size, writable=True))
            fresh_head = head

            def change(
                txn: Transaction, record: VolumeRecord
            ) -> tuple[VolumeRecord, SnapshotRecord]:
                return self._freeze(Catalogue(txn), record, name, layer)

            def adopt(record: VolumeRecord, _snapshot: SnapshotRecord) -> None:
                volume.map.chain = (record.map, *volume.map.chain)
                volume.adopt_head(fresh_head)

            return (yield from volume.durability.transition(change, adopt))
        except BaseException:
            if volume.durability.head is not head:
                if head is not None:
                    head.close()
                self._unmake_layer(layer)
            raise

    def _freeze(
        self, catalogue: Catalogue, record: VolumeRecord, name: str, layer: LayerId
    ) -> tuple[VolumeRecord, SnapshotRecord]:
        """Give the volume's map to a new snapshot, and the volume a new map and head."""
        snapshot = SnapshotRecord(
            id=SnapshotId(catalogue.new_node()),
            name=name,
            volume=record.id,
            size_bytes=record.size_bytes,
            map=record.map,
            created_at=self.clock(),
        )
        catalogue.take_name(NodeKind.SNAPSHOT, name, snapshot.id)
        catalogue.put_snapshot(snapshot)
        fresh = catalogue.new_map(record.map, record.size_bytes)
        catalogue.add_layer(layer, record.size_bytes, fresh.id)
        return replace(record, map=fresh.id, head=layer), snapshot

    def delete_snapshot(self, snapshot: SnapshotId) -> Steps[None]:
        """Forget a snapshot; its blocks return in the background. InUseError while it is read."""

        def steps() -> Steps[None]:
            opened = self.snapshots.get(snapshot)
            if opened is not None:
                if opened.users:
                    raise InUseError(f"snapshot {snapshot} is being read; disconnect first")
                yield from close_snapshot(self.snapshots.pop(snapshot))
            yield Blocking(lambda: self._forget_snapshot(snapshot))
            self.on_dead_map()

        return self._exclusive(snapshot, steps())

    def _forget_snapshot(self, snapshot: SnapshotId) -> None:
        lock = lock_snapshot(self.store, snapshot, shared=False)

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            record = catalogue.snapshot(snapshot)
            catalogue.free_name(NodeKind.SNAPSHOT, record.name)
            txn.delete(Table.SNAPSHOTS, id_key(snapshot))
            catalogue.kill_map(record.map)

        try:
            self.store.index.update(change)
            unlink_if_present(lock.path)
        finally:
            lock.release()

    def revert_volume(self, volume: VolumeId, snapshot: SnapshotId) -> Steps[VolumeRecord]:
        """Make the volume show its snapshot's content again. The size stays; what lies beyond
        the snapshot's end becomes holes. InUseError while a client is connected."""
        return self._exclusive(volume, self._revert_volume(volume, snapshot))

    def _revert_volume(self, volume: VolumeId, snapshot: SnapshotId) -> Steps[VolumeRecord]:
        with self.catalogue() as catalogue:
            source = catalogue.snapshot(snapshot)
        if source.volume != volume:
            raise ConflictError(f"snapshot {snapshot} is not one of volume {volume}")
        if volume in self.volumes:
            self._refuse_used(volume)
            yield from self._close_volume(volume)
        lock: FileLock = yield Blocking(lambda: lock_volume(self.store, volume))
        try:
            record: VolumeRecord = yield Blocking(lambda: settle(self.store, volume))

            def change(txn: Transaction, layer: LayerId) -> VolumeRecord:
                catalogue = Catalogue(txn)
                current = catalogue.volume(volume)
                fresh = catalogue.new_map(catalogue.snapshot(snapshot).map, current.size_bytes)
                catalogue.add_layer(layer, current.size_bytes, fresh.id)
                catalogue.kill_map(current.map)
                reverted = replace(
                    current, map=fresh.id, head=layer, generation=current.generation + 1
                )
                catalogue.put_volume(reverted)
                return reverted

            result: VolumeRecord = yield from self._with_new_layer(record.size_bytes, change)
        finally:
            lock.release()
        self.on_dead_map()
        return result

    # -- volumes -----------------------------------------------------------------------------

    def extend_volume(self, volume: VolumeId, size_bytes: int) -> Steps[VolumeRecord]:
        """Grow a volume, open or not. InvalidRequestError when it would not grow."""
        check_volume_size(size_bytes)
        return self._exclusive(volume, self._extend_volume(volume, size_bytes))

    def _extend_volume(self, volume: VolumeId, size_bytes: int) -> Steps[VolumeRecord]:
        with self.catalogue() as catalogue:
            current = catalogue.volume(volume).size_bytes
        if size_bytes <= current:
            raise InvalidRequestError(
                f"volume {volume} has {current} bytes already; it can only grow"
            )

        def change(txn: Transaction, record: VolumeRecord) -> tuple[VolumeRecord, VolumeRecord]:
            catalogue = Catalogue(txn)
            catalogue.put_layer(replace(catalogue.layer(record.head), size_bytes=size_bytes))
            catalogue.put_map(replace(catalogue.map(record.map), size_bytes=size_bytes))
            record = replace(record, size_bytes=size_bytes)
            return record, record

        opened = self.volumes.get(volume)
        if opened is None:
            return (yield from self._extend_closed(volume, size_bytes, change))
        device = opened.volume
        yield Blocking(lambda: self._grow(device.durability.head, size_bytes))
        return (
            yield from device.durability.transition(
                change, lambda _record, _result: device.adopt_size(size_bytes)
            )
        )

    def _extend_closed(
        self,
        volume: VolumeId,
        size_bytes: int,
        change: Callable[[Transaction, VolumeRecord], tuple[VolumeRecord, VolumeRecord]],
    ) -> Steps[VolumeRecord]:
        def run(txn: Transaction) -> VolumeRecord:
            catalogue = Catalogue(txn)
            record, result = change(txn, catalogue.volume(volume))
            catalogue.put_volume(record)
            return result

        def extend() -> VolumeRecord:
            lock = lock_volume(self.store, volume)
            try:
                record = settle(self.store, volume)
                head = Layer.open(self.store.layout, record.head, record.size_bytes, writable=True)
                try:
                    self._grow(head, size_bytes)
                finally:
                    head.close()
                return self.store.index.update(run)
            finally:
                lock.release()

        result: VolumeRecord = yield Blocking(extend)
        return result

    def _grow(self, head: Layer, size_bytes: int) -> None:
        try:
            head.grow(self.store.layout, size_bytes)
        except OSError as error:
            raise from_os_error(error, f"growing layer {head.id}") from error

    def delete_volume(self, volume: VolumeId) -> Steps[None]:
        """Forget a volume; its space returns in the background. InUseError while used."""
        return self._exclusive(volume, self._delete_volume(volume))

    def _delete_volume(self, volume: VolumeId) -> Steps[None]:
        if volume in self.volumes:
            self._refuse_used(volume)
            yield from abandon_volume(self.volumes.pop(volume))
        yield Blocking(lambda: self._forget_volume(volume))
        self.on_dead_map()

    def _forget_volume(self, volume: VolumeId) -> None:
        lock = lock_volume(self.store, volume)

        def change(txn: Transaction) -> None:
            catalogue = Catalogue(txn)
            record = catalogue.volume(volume)
            catalogue.free_name(NodeKind.VOLUME, record.name)
            txn.delete(Table.VOLUMES, id_key(volume))
            catalogue.kill_map(record.map)

        try:
            self.store.index.update(change)
            for name in self.store.layout.journal_segments():
                if name.volume == volume:
                    unlink_if_present(self.store.layout.journal_segment(name))
            unlink_if_present(lock.path)
        finally:
            lock.release()

    def reopen_volume(self, volume: VolumeId) -> Steps[VolumeRecord]:
        """Accept what a failed sync may have lost, and let the volume be opened again."""
        return self._exclusive(volume, self._reopen_volume(volume))

    def _reopen_volume(self, volume: VolumeId) -> Steps[VolumeRecord]:
        if volume in self.volumes:
            self._refuse_used(volume)
            yield from abandon_volume(self.volumes.pop(volume))

        def reopen() -> VolumeRecord:
            lock = lock_volume(self.store, volume)

            def change(txn: Transaction) -> VolumeRecord:
                catalogue = Catalogue(txn)
                record = replace(catalogue.volume(volume), failed=None)
                catalogue.put_volume(record)
                return record

            try:
                return self.store.index.update(change)
            finally:
                lock.release()

        result: VolumeRecord = yield Blocking(reopen)
        return result

    def _refuse_used(self, volume: VolumeId) -> None:
        users = self.volumes[volume].users
        if users:
            raise InUseError(f"volume {volume} has {users} connection(s); disconnect first")


def _open_store(layout: Layout, boot: str) -> StoreAccess:
    """Open the index and see that it is ours before anything else is touched."""
    ballast = Ballast(layout.ballast)
    index = Index.open(layout.index, ballast)
    try:
        index.update(_establish)
        for directory in (layout.layers, layout.discarded):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        if not ballast.ensure():
            log.warning("the file system of %s is full; there is no ballast", layout.root)
        for directory in (layout.root, layout.journal):
            sync_directory(directory)
    except BaseException:
        index.close()
        raise
    return StoreAccess(layout, index, ballast, boot)


def _establish(txn: Transaction) -> None:
    """Give a new index its pool record; refuse one of another format."""
    catalogue = Catalogue(txn)
    if catalogue.pool() is not None:
        return
    if txn.count(Table.VOLUMES) or txn.count(Table.LAYERS):
        raise PoolFormatError("the index has volumes but no pool record; restore it from a backup")
    catalogue.put_pool(PoolRecord(FORMAT, time.time(), next_node=1, next_map=1, next_layer=1))


def _clone_size(source: SnapshotRecord | None, size_bytes: int | None) -> int:
    if source is None:
        assert size_bytes is not None
        return size_bytes
    if size_bytes is not None and size_bytes < source.size_bytes:
        raise InvalidRequestError(
            f"snapshot {source.id} has {source.size_bytes} bytes; a volume made from it "
            "cannot be smaller"
        )
    return size_bytes or source.size_bytes
