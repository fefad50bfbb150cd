"""What is open: one pool, and the volumes and snapshots of it that this process uses.

Operations are steps (bockd.steps). Those on one volume or snapshot exclude each other
(`exclusive`), whoever asks for them. A volume stays open after its last user has left, until
somebody closes it as idle or an operation needs it closed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from bockd.control import Space
from bockd.engine.durability import Spawn, StoreAccess
from bockd.engine.opening import (
    OpenSnapshot,
    OpenVolume,
    close_snapshot,
    close_volume,
    lock_volume,
    open_snapshot,
    open_volume,
    settle,
)
from bockd.engine.reading import Reader
from bockd.engine.space import measure_space
from bockd.engine.waiting import Mutex
from bockd.errors import (
    BockdError,
    DamagedError,
    InUseError,
    PoolFormatError,
    VolumeFailedError,
    from_os_error,
)
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.steps import Blocking, Steps
from bockd.store.ballast import Ballast
from bockd.store.catalogue import FORMAT, Catalogue, PoolRecord
from bockd.store.index import Index, Table, Transaction
from bockd.store.journal import UNFINISHED_SUFFIX, boot_id
from bockd.store.layout import Layout, sync_directory, unlink_if_present
from bockd.store.locks import FileLock

log = logging.getLogger(__name__)
T = TypeVar("T")


class Registry:
    """An open pool. For the owner thread; ended by `close_all` and then `release`."""

    def __init__(self, store: StoreAccess, lock: FileLock, spawn: Spawn) -> None:
        self.store = store
        self.volumes: dict[VolumeId, OpenVolume] = {}
        self.snapshots: dict[SnapshotId, OpenSnapshot] = {}
        self.failures: dict[VolumeId, str] = {}
        """Volumes whose sync failed in this process, until they are reopened."""
        self.refusals: dict[VolumeId, str] = {}
        """Why volumes could not be opened when that was last tried."""
        self.clock: Callable[[], float] = time.time
        self.on_garbage: Callable[[], None] = lambda: None
        """Called when reclaim has work: something was deleted, or overwritten at last."""
        self._spawn = spawn
        self.lock = lock
        self._busy: dict[int, Mutex] = {}

    # -- the pool itself ---------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, spawn: Spawn, *, boot: str | None = None) -> Self:
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
                yield from self.exclusive(volume, self._close_volume(volume))
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

    def exclusive(self, node: int, steps: Steps[T]) -> Steps[T]:
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

    def devices(self) -> list[Reader]:
        """All open volumes and snapshots."""
        return [
            *(opened.volume for opened in self.volumes.values()),
            *(opened.snapshot for opened in self.snapshots.values()),
        ]

    # -- opening -----------------------------------------------------------------------------

    def use_volume(self, volume: VolumeId) -> Steps[OpenVolume]:
        """Open a volume, or join those who use it; `leave_volume` when done."""

        def steps() -> Steps[OpenVolume]:
            opened = self.volumes.get(volume)
            if opened is None:
                opened = yield from self._open_volume(volume)
            opened.users += 1
            return opened

        return self.exclusive(volume, steps())

    def _open_volume(self, volume: VolumeId) -> Steps[OpenVolume]:
        try:
            self.refuse_failed(volume)
            opened = yield from open_volume(
                self.store, volume, self._spawn, lambda: self.on_garbage()
            )
        except BockdError as error:
            self._note_refusal(volume, error)
            raise
        self.refusals.pop(volume, None)
        self.volumes[volume] = opened
        return opened

    def refuse_failed(self, volume: VolumeId) -> None:
        """VolumeFailedError for a volume that failed here, should the index not know."""
        if volume in self.failures:
            raise VolumeFailedError(
                f"volume {volume} is refused after an error: {self.failures[volume]}. "
                f"'bock volume reopen {volume}' accepts that writes may be lost"
            )

    def _note_refusal(self, volume: VolumeId, error: BockdError) -> None:
        log.error("volume %s cannot be opened: %s", volume, error)
        if isinstance(error, DamagedError | VolumeFailedError):
            self.refusals[volume] = str(error)

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

        return self.exclusive(snapshot, steps())

    def leave_snapshot(self, snapshot: SnapshotId) -> None:
        """One user less."""
        self.snapshots[snapshot].users -= 1

    def close_idle_volume(self, volume: VolumeId) -> Steps[None]:
        """Close a volume that nobody uses; nothing happens when somebody does."""

        def steps() -> Steps[None]:
            opened = self.volumes.get(volume)
            if opened is not None and opened.users == 0:
                yield from self._close_volume(volume)

        return self.exclusive(volume, steps())

    def close_idle_snapshot(self, snapshot: SnapshotId) -> Steps[None]:
        """Close a snapshot that nobody uses."""

        def steps() -> Steps[None]:
            opened = self.snapshots.get(snapshot)
            if opened is not None and opened.users == 0:
                yield from close_snapshot(self.snapshots.pop(snapshot))

        return self.exclusive(snapshot, steps())

    def _close_volume(self, volume: VolumeId) -> Steps[None]:
        opened = self.volumes.get(volume)
        if opened is None:
            return
        # It stays known until it is closed: reclaim must see that it may still be punching.
        try:
            yield from close_volume(opened)
        finally:
            self._forget_open(volume)

    def _forget_open(self, volume: VolumeId) -> None:
        """A volume was closed; a failure outlives that, recorded in the index or not."""
        failed = self.volumes.pop(volume).volume.durability.failed
        if failed is not None:
            self.failures[volume] = failed

    def recover_volumes(self) -> Steps[None]:
        """Recover every volume that was not closed, so that the index is up to date. A volume
        that cannot be is reported, and refused when it is opened; the others are served."""
        with self.catalogue() as catalogue:
            unclosed = [v.id for v in catalogue.volumes() if v.opened and v.id not in self.volumes]
        for volume in unclosed:
            try:
                yield from self.exclusive(volume, self._recover_volume(volume))
            except BockdError as error:
                self._note_refusal(volume, error)

    def _recover_volume(self, volume: VolumeId) -> Steps[None]:
        def run() -> None:
            lock = lock_volume(self.store, volume)
            try:
                settle(self.store, volume)
            finally:
                lock.release()

        if volume not in self.volumes:
            yield Blocking(run)

    def checkpoint(self, volume: VolumeId) -> Steps[None]:
        """Bring the index up to date with a volume, if it is open and has not failed."""

        def steps() -> Steps[None]:
            opened = self.volumes.get(volume)
            if opened is not None and opened.volume.durability.failed is None:
                yield from opened.volume.durability.checkpoint()

        return self.exclusive(volume, steps())

    def measure(self, kind: NodeKind, node: int) -> Steps[Space]:
        """Exact space of a volume or snapshot, after a checkpoint of every open volume: what
        they wrote since may have ended a sharing. One that has failed counts as it was."""
        for volume in list(self.volumes):
            yield from self.checkpoint(volume)

        def walk() -> Space:
            with self.catalogue() as catalogue:
                if kind is NodeKind.VOLUME:
                    return measure_space(catalogue, catalogue.volume(VolumeId(node)).map)
                return measure_space(catalogue, catalogue.snapshot(SnapshotId(node)).map)

        space: Space = yield Blocking(walk)
        return space

    def refuse_used(self, volume: VolumeId) -> None:
        """InUseError while an open volume has users."""
        users = self.volumes[volume].users
        if users:
            raise InUseError(f"volume {volume} has {users} connection(s); disconnect first")


def _open_store(layout: Layout, boot: str) -> StoreAccess:
    """Open the index and see that it is ours before anything else is touched."""
    ballast = Ballast(layout.ballast)
    index = Index.open(layout.index, ballast)
    try:
        index.update(_establish)
        hit(Failpoint.POOL_ESTABLISHED)
        for directory in (layout.layers, layout.discarded):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        if not ballast.ensure():
            log.warning("the file system of %s is full; there is no ballast", layout.root)
        for directory in (layout.root, layout.index, layout.journal):
            sync_directory(directory)
        for name in os.listdir(layout.journal):
            if name.endswith(UNFINISHED_SUFFIX):
                unlink_if_present(layout.journal / name)
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
