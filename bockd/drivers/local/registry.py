"""What is open: one pool, and the volumes and snapshots of it that this process uses.

Operations are steps (bockd.runtime.steps). Those on one volume or snapshot exclude each other
(`exclusive`), whoever asks for them. A volume stays open after its last user has left, until
somebody closes it as idle or an operation needs it closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from bockd.directories import make_durable, make_private
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.cells import CELLS
from bockd.drivers.local.format.journal import boot_id
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.locks import FileLock, touch
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.opening import (
    OpenSnapshot,
    OpenVolume,
    close_snapshot,
    close_volume,
    lock_volume,
    look_at_snapshot,
    look_at_volume,
    open_snapshot,
    open_volume,
    record_failure,
    recover_if_needed,
)
from bockd.drivers.local.poolfiles import join_store, open_store
from bockd.drivers.local.volume.reading import Reader
from bockd.errors import (
    BockdError,
    DamagedError,
    InUseError,
    NoSpaceError,
    PoolFormatError,
    SyncFailedError,
    VolumeFailedError,
    from_os_error,
    named,
    volume_failed,
)
from bockd.index.mapsize import write_map_size
from bockd.model import LayerId, MapId, NodeKind, SnapshotId, VolumeId
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import Spawn, Steps, blocking, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def packs_heads() -> bool:
    """Decide for packed heads (docs/packed-heads.md), where every write is a first write."""
    return True


async def refuse_rotation(volume: VolumeId) -> None:
    """Raise NoSpaceError: only who manages the pool makes layers."""
    raise NoSpaceError(
        f"volume {volume} must get another layer before more is written: open it with the daemon"
    )


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
        self.layer_maker = LayerMaker(store)
        self.clock: Callable[[], float] = time.time
        self.pack: Callable[[], bool] = packs_heads
        """Decides for each head of a snapshot, clone or revert whether it is packed. Asked through
        `packs_head`."""
        self.rotate: Callable[[VolumeId], Steps[None]] = refuse_rotation
        """Gives an open volume another head, when its own has few cells left."""
        self.on_garbage: Callable[[], None] = lambda: None
        """Called when reclaim has work: something was deleted, or overwritten at last."""
        self.on_frozen: Callable[[], None] = lambda: None
        """Called when there are frozen blocks that have no checksums yet."""
        self.maintenance_lock = Mutex()
        """Held by whoever punches, merges or removes frozen layers, or reads them through: for the
        one who has it no byte of a frozen layer changes but by its own doing."""
        self.kept_dead: frozenset[MapId] = frozenset()
        """The dead maps that the last run of reclaim had to leave: others depend on them, or they
        cannot be read."""
        self._spawn = spawn
        self.lock = lock
        self._busy: dict[int, Mutex] = {}

    # -- the pool itself ---------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        root: Path,
        spawn: Spawn,
        *,
        boot: str | None = None,
        map_size_bytes: int | None = None,
    ) -> Self:
        """Open the pool at `root`, creating it in a new or empty place. Blocks. From now on its
        index is mapped with `map_size_bytes`; None leaves it as it is.

        Raises InUseError when another process has it, PoolFormatError for a newer format,
        DamagedError for a truncated index, DeniedError, NoSpaceError.
        """
        layout = Layout(root)
        try:
            make_durable(layout.root)
            # These are synced with what is in the root.
            for directory in (layout.locks, layout.index):
                make_private(directory)
            lock = FileLock.acquire(
                layout.pool_lock,
                shared=False,
                held_message=f"the pool {root} is in use by another bockd",
            )
        except OSError as error:
            raise from_os_error(error, f"opening the pool {root}") from error
        try:
            # Made by whom the pool belongs to: who joins it may begin as another user.
            touch(layout.co_openers_lock)
            touch(layout.backup_lock)
            if map_size_bytes is not None:
                write_map_size(layout.index, map_size_bytes)
            store = open_store(layout, boot or boot_id())
        except OSError as error:
            lock.release()
            raise from_os_error(error, f"opening the pool {root}") from error
        except BaseException:
            lock.release()
            raise
        return cls(store, lock, spawn)

    @classmethod
    def join(cls, root: Path, spawn: Spawn) -> Self:
        """Open the pool at `root` while another process manages it, or none does. Only volumes and
        snapshots can be opened, each under its own lock. Blocks.

        Raises InUseError while `check` has the pool, PoolFormatError when there is none or a newer
        one, DamagedError for a truncated index, DeniedError, NoSpaceError.
        """
        layout = Layout(root)
        try:
            there = layout.index_data.exists()
        except OSError as error:
            raise from_os_error(error, f"opening the pool {root}") from error
        if not there:
            raise PoolFormatError(
                f"there is no pool in {root}: give the data directory of a bockd, or let "
                "'bockd serve' make one"
            )
        lock = FileLock.acquire(
            layout.co_openers_lock,
            shared=True,
            held_message=f"the pool {root} is being checked: try again when 'bockd check' is done",
        )
        try:
            return cls(join_store(layout), lock, spawn)
        except OSError as error:
            lock.release()
            raise from_os_error(error, f"opening the pool {root}") from error
        except BaseException:
            lock.release()
            raise

    async def close_all(self) -> None:
        """Close every open volume and snapshot. Raises the first error, after trying all."""
        first_error: BockdError | None = None
        for volume in list(self.volumes):
            try:
                await self.exclusive(
                    volume, f"closing volume {volume}", self.close_volume, volume, give_up=True
                )
            except BockdError as error:
                log.error("closing volume %s: %s", volume, error)  # noqa: TRY400
                first_error = first_error or error
        for snapshot in list(self.snapshots):
            await close_snapshot(self.snapshots.pop(snapshot))
        if first_error is not None:
            raise first_error

    def release(self) -> None:
        """Release the index and the pool's lock. Nothing may be open or under way."""
        self.store.index.close()
        self.lock.release()

    @contextmanager
    def catalogue(self) -> Iterator[Catalogue]:
        """Open the catalogue for reading, as it is at one instant."""
        with self.store.index.reading() as txn:
            yield Catalogue(txn)

    def packs_head(self) -> bool:
        """Return whether the next head of a snapshot, clone or revert is to be packed. None is
        where the index may have lost cells: what was lost may be of layers to come."""
        return self.pack() and not self.store.index.may_miss(CELLS)

    async def exclusive(
        self,
        node: int,
        doing: str,
        operation: Callable[P, Steps[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation while no other one runs on the same volume or snapshot. An OSError that
        no part of it has translated is described by what it is `doing`."""
        mutex = self._busy.setdefault(node, Mutex())
        try:
            async with mutex:
                with named(doing):
                    return await operation(*args, **kwargs)
        except SyncFailedError as error:
            self.failures[VolumeId(error.volume)] = error.reason
            raise
        finally:
            if not mutex.held:
                self._busy.pop(node, None)

    def devices(self) -> list[Reader]:
        """Return all open volumes and snapshots."""
        return [
            *(opened.volume for opened in self.volumes.values()),
            *(opened.snapshot for opened in self.snapshots.values()),
        ]

    def mark_damaged(self, layer: LayerId, block: int) -> None:
        """Mark a block of a frozen layer as damaged, so that no device returns it as data any
        more."""
        for device in self.devices():
            device.map.mark_damaged(layer, block)

    # -- opening -----------------------------------------------------------------------------

    def check_openable(self, kind: NodeKind, node: int) -> None:
        """Raise the error with which opening a volume or snapshot would be refused now. Blocks."""
        if kind is NodeKind.VOLUME:
            self.refuse_failed(VolumeId(node))
            look_at_volume(self.store, VolumeId(node))
        else:
            look_at_snapshot(self.store, SnapshotId(node))

    def use_volume(self, volume: VolumeId) -> Steps[OpenVolume]:
        """Open a volume, or join those who use it; `leave_volume` when done."""

        async def steps() -> OpenVolume:
            opened = self.volumes.get(volume)
            if opened is None:
                opened = await self._open_volume(volume)
            opened.users += 1
            return opened

        return self.exclusive(volume, f"opening volume {volume}", steps)

    async def _open_volume(self, volume: VolumeId) -> OpenVolume:
        try:
            self.refuse_failed(volume)
            opened = await open_volume(self.store, volume, self._spawn, lambda: self.on_garbage())
        except BockdError as error:
            self._note_refusal(volume, error)
            raise
        self.refusals.pop(volume, None)
        opened.volume.on_damage = self.mark_damaged
        opened.volume.durability.rotate = lambda: self.rotate(volume)
        self.volumes[volume] = opened
        return opened

    def refuse_failed(self, volume: VolumeId) -> None:
        """Raise VolumeFailedError for a volume that failed in this process, even if the index does
        not know of the failure. In that case try to record it again."""
        if volume in self.failures:
            with self.catalogue() as catalogue:
                record = catalogue.volume(volume)
            if record.failed is None:
                doing = f"recording the failure of volume {volume}"
                recording = self.exclusive(volume, doing, self._record_failure, volume)
                try_spawn(self._spawn, recording)
            raise volume_failed(volume, record.name, self.failures[volume])

    async def _record_failure(self, volume: VolumeId) -> None:
        """What could not be recorded when it happened, for the disk had failed, is now."""
        reason = self.failures.get(volume)
        if reason is not None:  # or else it was reopened or deleted meanwhile
            await blocking(record_failure, self.store, volume, reason)

    def failure(self, record: VolumeRecord) -> str | None:
        """Return why a volume is refused until it is reopened, and what to do. None when no sync of
        it has failed."""
        opened = self.volumes.get(record.id)
        failed = opened.volume.durability.failed if opened else record.failed
        failed = failed or self.failures.get(record.id)
        return None if failed is None else str(volume_failed(record.id, record.name, failed))

    def trouble(self, record: VolumeRecord) -> str | None:
        """Return `failure`, or why the volume could not be opened, or None. The text may name files
        of the pool."""
        return self.failure(record) or self.refusals.get(record.id)

    def _note_refusal(self, volume: VolumeId, error: BockdError) -> None:
        log.error("volume %s cannot be opened: %s", volume, error)
        if isinstance(error, DamagedError | VolumeFailedError):
            self.refusals[volume] = str(error)

    def leave_volume(self, volume: VolumeId) -> None:
        """Count one user less of a volume. It stays open until `close_idle_volume` or an operation
        closes it."""
        self.volumes[volume].users -= 1

    def use_snapshot(self, snapshot: SnapshotId) -> Steps[OpenSnapshot]:
        """Open a snapshot for reading, or join those who use it; `leave_snapshot` when done."""

        async def steps() -> OpenSnapshot:
            opened = self.snapshots.get(snapshot)
            if opened is None:
                opened = await open_snapshot(self.store, snapshot, self._spawn)
                opened.snapshot.on_damage = self.mark_damaged
                self.snapshots[snapshot] = opened
            opened.users += 1
            return opened

        return self.exclusive(snapshot, f"opening snapshot {snapshot}", steps)

    def leave_snapshot(self, snapshot: SnapshotId) -> None:
        """Count one user less of a snapshot."""
        self.snapshots[snapshot].users -= 1

    def users(self, kind: NodeKind, node: int) -> int:
        """Return how many use a volume or snapshot in this process."""
        opened: OpenVolume | OpenSnapshot | None
        if kind is NodeKind.VOLUME:
            opened = self.volumes.get(VolumeId(node))
        else:
            opened = self.snapshots.get(SnapshotId(node))
        return 0 if opened is None else opened.users

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """Return whether a volume or snapshot is open in this process."""
        if kind is NodeKind.VOLUME:
            return VolumeId(node) in self.volumes
        return SnapshotId(node) in self.snapshots

    def close_idle_volume(self, volume: VolumeId) -> Steps[None]:
        """Close a volume that nobody uses. Do nothing when it is used. Raises BockdError; then the
        volume may still be open, and the caller closes it later."""

        async def steps() -> None:
            opened = self.volumes.get(volume)
            if opened is not None and opened.users == 0:
                await self.close_volume(volume, give_up=False)

        return self.exclusive(volume, f"closing volume {volume}", steps)

    def close_idle_snapshot(self, snapshot: SnapshotId) -> Steps[None]:
        """Close a snapshot that nobody uses."""

        async def steps() -> None:
            opened = self.snapshots.get(snapshot)
            if opened is not None and opened.users == 0:
                await close_snapshot(self.snapshots.pop(snapshot))

        return self.exclusive(snapshot, f"closing snapshot {snapshot}", steps)

    async def close_volume(self, volume: VolumeId, *, give_up: bool) -> None:
        opened = self.volumes.get(volume)
        if opened is None:
            return
        # It stays known until it is closed: reclaim must see that it may still be punching.
        try:
            await close_volume(opened, give_up=give_up)
        finally:
            if opened.volume.durability.closed:
                self.forget_open(volume)

    def forget_open(self, volume: VolumeId) -> None:
        """Note that a volume was closed. A failure outlives that, recorded in the index or not."""
        failed = self.volumes.pop(volume).volume.durability.failed
        if failed is not None:
            self.failures[volume] = failed

    async def recover_volumes(self) -> None:
        """Recover every volume that was not closed, so that the index is up to date. A volume
        that cannot be is reported, and refused when it is opened; the others are served. One that
        another process has open was not interrupted at all."""
        with self.catalogue() as catalogue:
            unclosed = [
                v.id for v in catalogue.sound_volumes() if v.opened and v.id not in self.volumes
            ]
        for volume in unclosed:
            try:
                await self.exclusive(
                    volume, f"recovering volume {volume}", self._recover_volume, volume
                )
            except InUseError as error:
                log.info("%s; it is left alone", error)
            except BockdError as error:
                self._note_refusal(volume, error)

    async def _recover_volume(self, volume: VolumeId) -> None:
        def run() -> None:
            lock = lock_volume(self.store, volume)
            try:
                recover_if_needed(self.store, volume)
            finally:
                lock.release()

        if volume not in self.volumes:
            await blocking(run)

    def checkpoint(self, volume: VolumeId) -> Steps[None]:
        """Bring the index up to date with a volume, if it is open and has not failed."""

        async def steps() -> None:
            opened = self.volumes.get(volume)
            if opened is not None and opened.volume.durability.failed is None:
                await opened.volume.durability.checkpoint()

        return self.exclusive(volume, f"making a checkpoint of volume {volume}", steps)

    async def try_checkpoint(self, volume: VolumeId) -> None:
        """Run `checkpoint`, and log an error instead of raising it, for what can go on without it.
        On a disk that is full or read-only the index then says what it said before."""
        try:
            await self.checkpoint(volume)
        except BockdError as error:
            log.warning("the checkpoint of volume %s is put off: %s", volume, error)

    def flush_volume(self, volume: VolumeId) -> Steps[str | None]:
        """Make what was acknowledged survive power loss, if the volume is open. (A closed one is
        flushed already.) Return why the volume has failed, now or earlier, or None."""

        async def steps() -> str | None:
            opened = self.volumes.get(volume)
            if opened is None:
                with self.catalogue() as catalogue:
                    return catalogue.volume(volume).failed or self.failures.get(volume)
            try:
                await opened.volume.flush()
            except VolumeFailedError as error:
                return opened.volume.durability.failed or str(error)
            return opened.volume.durability.failed

        return self.exclusive(volume, f"flushing volume {volume}", steps)

    def refuse_used(self, volume: VolumeId) -> None:
        """Raise InUseError while an open volume has users."""
        users = self.volumes[volume].users
        if users:
            raise InUseError(f"volume {volume} has {users} connection(s); disconnect first")
