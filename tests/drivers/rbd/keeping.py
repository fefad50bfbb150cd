"""A gateway with block storage that keeps what is deleted, over a pool in the tests' cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from bockd.blockstorage.contract import NewSnapshot, NewVolume, Quota, TenantId
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.blockstorage.service import PoolBlockStorage
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashcontract import TrashRules
from bockd.blockstorage.trashrecords import TrashRecord
from bockd.config.rbd import RbdSettings
from bockd.daemon.trashkeeping import TrashKeeper
from bockd.identity.accounts import Accounts
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.runtime.steprunner import StepRunner
from tests.drivers.rbd.pooldriver import RbdDriver

T = TypeVar("T")

HOUR = 3600.0
KEPT = TrashRules(keep_seconds=10 * HOUR)
AMPLE = Quota(volumes=100, gigabytes=1000, snapshots=100)


class Keeping(RbdDriver):
    """A gateway of a pool with one tenant, whose clock stands still."""

    def __init__(
        self, settings: RbdSettings, directory: Path, name: str, rules: TrashRules = KEPT
    ) -> None:
        super().__init__(replace(settings, gateway=name), directory / name)
        self.hour = 0.0
        self.rbd.session.clock = lambda: self.hour * HOUR
        self.rbd.session.table.enter()
        self.context = StorageContext(self.rbd, NoPublisher(), AMPLE, trash=rules)
        self.service = PoolBlockStorage(self.context, StepRunner())
        self.trash = Trash(self.context)
        self.keeper = TrashKeeper(self.context, StepRunner(), lambda: self.hour * HOUR)
        accounts = Accounts(self.rbd.index)
        found = [one.tenant.id for one in accounts.tenants() if one.tenant.name == "acme"]
        self.tenant: TenantId = found[0] if found else accounts.create_tenant("acme").id

    def call(self, call: Callable[[PoolBlockStorage], Awaitable[T]]) -> T:
        """One call of the service, on what all gateways have committed."""
        self.rbd.index.refresh()

        async def main() -> T:
            return await call(self.service)

        try:
            return trio.run(main)
        finally:
            self._background.run()
            self.rbd.session.removals.wait()

    def make(self, name: str, data: bytes = b"") -> VolumeId:
        """Make a volume of the tenant that nobody has open."""
        new = NewVolume(1, name)
        volume = VolumeId(self.call(lambda s: s.create_volume(self.tenant, new)).id)
        if data:
            self.write(volume, 0, data)
            self.run(self.pool.close_idle(NodeKind.VOLUME, volume))
        return volume

    def freeze(self, volume: VolumeId, name: str) -> SnapshotId:
        """Make a snapshot of it."""
        new = NewSnapshot(volume, name)
        return SnapshotId(self.call(lambda s: s.create_snapshot(self.tenant, new)).id)

    def delete(self, kind: NodeKind, node: int) -> None:
        """Delete a volume or snapshot, as a client of this gateway."""
        if kind is NodeKind.VOLUME:
            self.call(lambda s: s.delete_volume(self.tenant, VolumeId(node)))
        else:
            self.call(lambda s: s.delete_snapshot(self.tenant, SnapshotId(node)))

    def restore(self, node: int) -> None:
        self.call(lambda s: s.trash.restore(self.tenant, node))

    def listed(self) -> list[int]:
        """What is in the tenant's trash, as a client of this gateway sees it."""
        return [one.id for one in self.call(lambda s: s.trash.list(self.tenant))]

    def records(self) -> list[TrashRecord]:
        """The same, as the daemon reads it."""
        self.rbd.index.refresh()
        return list(self.trash.by_age())

    def look(self) -> bool:
        """What the daemon does with the trash from time to time, while it follows the index."""
        self.rbd.index.refresh()
        try:
            return trio.run(self.keeper.look)
        finally:
            self._background.run()
            self.rbd.session.removals.wait()

    def unsound(self) -> tuple[str, ...]:
        """What is wrong with the pool, or with what tenants have in it."""
        self.rbd.index.refresh()
        with self.rbd.index.reading() as txn:
            found = find_problems(txn)
        return (*found, *self.run(self.pool.check()).problems)
