"""What frontends are given of an open volume or snapshot: its device, or a cache in front of it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.lease import Lease
from bockd.drivers.rbd.records import RbdSnapshotRecord, RbdVolumeRecord
from bockd.errors import BockdError
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Spawn, try_spawn

log = logging.getLogger(__name__)


class Front:
    """Of one open volume or snapshot."""

    def __init__(self, device: BlockDevice, lease: Lease | None = None) -> None:
        self.device = device
        self.lease = lease


class Fronts:
    """Makes and ends them. For the owner thread."""

    def __init__(self, spawn: Spawn) -> None:
        self.cache: CacheDirectory | None = None
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
        try:
            cached = await self.cache.open_volume(device, record.image, record.epoch, lease.held)
        except BockdError as error:
            log.warning("volume %s is not cached: %s", record.id, error)
            return Front(device)
        if cached is None:
            return Front(device)
        device.lost.subscribe(cached.lose)
        return Front(cached, lease)

    async def of_snapshot(self, device: RbdDevice, record: RbdSnapshotRecord) -> Front:
        """Return the front of a snapshot that was just opened."""
        if self.cache is None:
            return Front(device)
        name = f"{record.image}.{record.snap}"
        try:
            cached = await self.cache.open_snapshot(device, name)
        except BockdError as error:
            log.warning("snapshot %s is not cached: %s", record.id, error)
            return Front(device)
        return Front(device if cached is None else cached)

    async def retire(self, front: Front) -> None:
        """Serve nothing from the cache any more, before the volume is given back. It is not asked
        then who has it, either."""
        if isinstance(front.device, CachedDevice):
            front.device.retire()
        if front.lease is not None:
            await front.lease.end()

    async def close(self, front: Front) -> None:
        """Close the cache, in the background: its file is synced, for which nobody who asks for
        the volume should have to wait. `end` waits."""
        if isinstance(front.device, CachedDevice):
            assert self.cache is not None
            closing = self.cache.close_device(front.device)
            if not try_spawn(self._spawn, closing):
                await self.cache.close_device(front.device)

    async def end(self) -> None:
        """Close all caches. No volume or snapshot is open."""
        if self.cache is not None:
            await self.cache.close_all()
