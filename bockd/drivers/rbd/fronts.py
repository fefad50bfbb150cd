"""What frontends are given of an open volume or snapshot: its device, or a cache in front of it,
and a log in front of that if the volume is one that is written back.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.lease import Lease
from bockd.drivers.rbd.records import RbdSnapshotRecord, RbdVolumeRecord
from bockd.drivers.rbd.writebacks import DirtyMarks, WriteBackDevice, WriteBacks
from bockd.errors import BockdError, ConflictError
from bockd.model import CacheMode
from bockd.pool.device import BlockDevice
from bockd.publictexts import UNREADABLE_LOG, concealed
from bockd.runtime.steps import Signal, Spawn, Steps, try_spawn

log = logging.getLogger(__name__)


class CachedDevice(BlockDevice, Protocol):
    """A device that holds what it has read of another one: `bockd.drivers.cache`."""

    def lose(self) -> None:
        """Use nothing of that any more: the volume was taken."""
        ...

    def retire(self) -> None:
        """Show nothing of it any more: the volume is given back, in order."""
        ...

    def follow_size(self) -> None:
        """Take notice that the device has become larger."""
        ...


class Cache(Protocol):
    """Makes them: `bockd.drivers.cache.directory.CacheDirectory`."""

    def open_volume(
        self, below: BlockDevice, name: str, epoch: int, held: Callable[[], bool]
    ) -> Steps[CachedDevice | None]:
        """Put a cache in front of a volume that was just taken; None if there can be none. What it
        held before counts if it was closed in the epoch before this one. It is used only while the
        volume is `held`."""
        ...

    def open_snapshot(self, below: BlockDevice, name: str) -> Steps[CachedDevice | None]:
        """Put a cache in front of a snapshot; None if there can be none."""
        ...

    def close_device(self, device: CachedDevice) -> Steps[None]:
        """Close a cache of which nothing is under way. Doing so again does nothing."""
        ...

    def close_all(self) -> Steps[None]:
        """Close all that are open."""
        ...

    def forget_volume(self, name: str) -> Steps[None]:
        """Drop what is kept of a volume that is no more."""
        ...

    def forget_snapshot(self, name: str) -> Steps[None]:
        """Drop what is kept of a snapshot that is no more."""
        ...

    def release(self) -> None:
        """Give up the place where it keeps them. Nothing is open."""
        ...


@dataclass(frozen=True)
class Front:
    """Of one open volume or snapshot."""

    device: BlockDevice
    """What frontends are given."""
    cached: CachedDevice | None = None
    """A cache: the same, or what is below the log."""
    lease: Lease | None = None
    log: WriteBackDevice | None = None
    """The same as `device`, if writes are answered before the cluster has them."""
    log_closed: Signal = field(default_factory=Signal)


class Fronts:
    """Makes and ends them. For the owner thread."""

    def __init__(self, spawn: Spawn) -> None:
        self.cache: Cache | None = None
        """None: nothing is cached."""
        self.write_backs: WriteBacks | None = None
        """None: nothing is answered before the cluster has it."""
        self.held = False
        """What is in a log waits until the cluster has it (`leftdirty.hold_logs`)."""
        self._spawn = spawn
        self._logs: dict[str, Signal] = {}
        """By image: fires when the log is closed that is open, or was opened last."""

    async def of_volume(
        self,
        device: RbdDevice,
        record: RbdVolumeRecord,
        owner: Callable[[], str | None],
        marks: DirtyMarks,
    ) -> Front:
        """Return the front of a volume that was just taken, which its record says. `owner` asks, as
        `Claim.owner` does. Raises BockdError: what is dirty here cannot be read."""
        front = await self._with_cache(device, record, owner)
        try:
            log = await self._open_log(front.device, record, marks)
        except BaseException:
            await self.retire(front)
            await self.close(front)
            raise
        if log is None:
            return front
        log.hold(held=self.held)
        front = Front(log, front.cached, front.lease, log)
        self._note_log(record.image, front.log_closed)
        return front

    def _note_log(self, image: str, closed: Signal) -> None:
        def forget() -> None:
            if self._logs.get(image) is closed:
                del self._logs[image]

        self._logs[image] = closed
        closed.subscribe(forget)

    async def log_closed(self, image: str) -> None:
        """Return when the log of an image is closed that was lost, or given back, and is closed in
        the background."""
        if (earlier := self._logs.get(image)) is not None:
            await earlier

    async def _with_cache(
        self, device: RbdDevice, record: RbdVolumeRecord, owner: Callable[[], str | None]
    ) -> Front:
        if self.cache is None or record.cache is CacheMode.NONE:
            return Front(device)
        lease = Lease(lambda: owner() == record.address, self._spawn)
        cached: CachedDevice | None = None
        try:
            cached = await self.cache.open_volume(device, record.image, record.epoch, lease.held)
        except BockdError as error:
            log.warning("volume %s is not cached: %s", record.id, error)
        if cached is None:
            return Front(device)
        device.lost.subscribe(cached.lose)
        return Front(cached, cached, lease)

    async def _open_log(
        self, below: BlockDevice, record: RbdVolumeRecord, marks: DirtyMarks
    ) -> WriteBackDevice | None:
        """None: writes are answered when the cluster has them."""
        # Or another gateway's, and the volume had not been taken.
        here = record.dirty_at
        if here is None and record.cache is not CacheMode.WRITE_BACK:
            return None
        await self.refuse_dirty(record)
        if self.write_backs is None:
            log.warning("volume %s is served write-through: no write_back.directory", record.id)
            return None
        await self.log_closed(record.image)
        try:
            reach = None if here is None else here.reach
            dirty = partial(marks.dirty, self.write_backs.id)
            return await self.write_backs.open(
                below, record.image, reach, dirty, marks.clean, marks.unnotable
            )
        except BockdError as error:
            if here is not None:
                raise
            log.warning("volume %s is served write-through: %s", record.id, error)
            return None

    async def refuse_dirty(self, record: RbdVolumeRecord) -> None:
        """Raise ConflictError for a volume that is dirty here, while its directory of logs is not
        there: no directory is named, or another one, or a disk is not mounted. Raise DamagedError:
        the directory is there, and the log is not."""
        at = record.dirty_at
        if at is None:
            return
        if self.write_backs is None:
            where = "directory that write_back.directory named"
            remedy = "let the configuration name it again"
        elif at.directory not in ("", self.write_backs.id):
            where = f"directory of logs {at.directory}, and {self.write_backs.path} is another one"
            remedy = "see whether its disk is mounted, and write_back.directory right"
        else:
            await self.write_backs.refuse_missing(record.image, at.log)
            return
        error = ConflictError(
            f"volume {record.id} ({record.name}) has writes that only this gateway has, in the "
            f"{where}: {remedy}, and start bockd again. Only if those writes are lost for good, "
            "give them up (bock volume discard-cache)"
        )
        raise concealed(error, UNREADABLE_LOG)

    async def of_snapshot(self, device: RbdDevice, record: RbdSnapshotRecord) -> Front:
        """Return the front of a snapshot that was just opened."""
        if self.cache is None:
            return Front(device)
        cached: CachedDevice | None = None
        try:
            cached = await self.cache.open_snapshot(device, _name_of(record))
        except BockdError as error:
            log.warning("snapshot %s is not cached: %s", record.id, error)
        return Front(device) if cached is None else Front(cached, cached)

    def hide(self, front: Front) -> None:
        """Serve nothing from the cache any more. It is kept, even if the device is `lost` now. So
        is what is dirty."""
        if front.log is not None:
            front.log.retire()
        if front.cached is not None:
            front.cached.retire()

    async def retire(self, front: Front) -> None:
        """Serve nothing from the cache any more, before the volume is given back. It is not asked
        then who has it, either; a question that is under way may hang with the cluster."""
        self.hide(front)
        if front.log is not None:
            try:
                await front.log.close()
            finally:
                front.log_closed.fire()
        if front.lease is not None:
            await front.lease.end()

    @asynccontextmanager
    async def written_through(self, front: Front) -> AsyncIterator[None]:
        """Have all that was answered be in the cluster, and what comes meanwhile be answered when
        it is there. Raises BockdError."""
        if front.log is None:
            yield
            return
        front.log.write_through()
        try:
            await front.log.drain()
            yield
        finally:
            front.log.write_back()

    async def close(self, front: Front) -> None:
        """Close the cache, in the background: its file is synced, for which nobody who asks for
        the volume should have to wait. `end` waits."""
        if self.cache is None or front.cached is None:
            return
        if not try_spawn(self._spawn, self.cache.close_device(front.cached)):
            await self.cache.close_device(front.cached)

    async def discard_log(self, image: str, *, keep: bool) -> None:
        """Remove the log of an image that no record calls dirty any more, and which is not open, or
        is being closed; with `keep`, put aside what is not in the cluster. If that fails, the next
        opening or start does it."""
        if self.write_backs is None:
            return
        await self.log_closed(image)
        try:
            await self.write_backs.discard(image, keep=keep)
        except BockdError as error:
            log.warning("the log of image %s is void, and is not removed yet: %s", image, error)

    def forget_volume(self, image: str) -> None:
        """Drop, in the background, what is cached of an image that is no volume any more."""
        if self.cache is not None:
            try_spawn(self._spawn, self.cache.forget_volume(image))

    def forget_snapshot(self, record: RbdSnapshotRecord) -> None:
        """Drop, in the background, what is cached of a snapshot that is no more."""
        if self.cache is not None:
            try_spawn(self._spawn, self.cache.forget_snapshot(_name_of(record)))

    async def end(self) -> None:
        """Close all caches. No volume or snapshot is open."""
        if self.cache is not None:
            await self.cache.close_all()


def _name_of(record: RbdSnapshotRecord) -> str:
    return f"{record.image}.{record.snap}"
