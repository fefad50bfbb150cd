"""What frontends are given of an open volume or snapshot: its device, or a cache in front of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.lease import Lease
from bockd.drivers.rbd.records import RbdSnapshotRecord, RbdVolumeRecord
from bockd.errors import BockdError
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Spawn, Steps, try_spawn

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
    """The same, if it is a cache."""
    lease: Lease | None = None


class Fronts:
    """Makes and ends them. For the owner thread."""

    def __init__(self, spawn: Spawn) -> None:
        self.cache: Cache | None = None
        """None: nothing is cached."""
        self._spawn = spawn

    async def of_volume(
        self, device: RbdDevice, record: RbdVolumeRecord, owner: Callable[[], str | None]
    ) -> Front:
        """Return the front of a volume that was just taken, which its record says. `owner` asks, as
        `Claim.owner` does."""
        if self.cache is None:
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
        """Serve nothing from the cache any more. It is kept, even if the device is `lost` now."""
        if front.cached is not None:
            front.cached.retire()

    async def retire(self, front: Front) -> None:
        """Serve nothing from the cache any more, before the volume is given back. It is not asked
        then who has it, either; a question that is under way may hang with the cluster."""
        self.hide(front)
        if front.lease is not None:
            await front.lease.end()

    async def close(self, front: Front) -> None:
        """Close the cache, in the background: its file is synced, for which nobody who asks for
        the volume should have to wait. `end` waits."""
        if self.cache is None or front.cached is None:
            return
        if not try_spawn(self._spawn, self.cache.close_device(front.cached)):
            await self.cache.close_device(front.cached)

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
