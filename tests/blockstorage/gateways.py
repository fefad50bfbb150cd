"""Block storage of several gateways over one shared index, all in this process and in memory.

The data of volumes is in memory, too, and is everybody's. A gateway hangs in the middle of an
operation when something is to be done there (`Hooks`), by another gateway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.contract import (
    Attachment,
    NewVolume,
    Status,
    TenantId,
    Volume,
)
from bockd.blockstorage.images import Images
from bockd.blockstorage.interrupted import finish_detaching, resolve_interrupted
from bockd.blockstorage.records import Ledger, OwnedVolume
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.snapshots import Snapshots
from bockd.blockstorage.volumes import Volumes
from bockd.blockstorage.working import Whose, earlier_runs_of
from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.memory.pool import MemoryPool
from bockd.drivers.rbd.gateways import Gateways
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.records import Identity
from bockd.errors import UnavailableError
from bockd.identity.accounts import Accounts
from bockd.model import NodeKind, Server, SnapshotId, VolumeId
from bockd.pool.pool import (
    Naming,
    WithSnapshot,
    WithVolume,
    nothing_more,
)
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.memory import MemoryObjects


class World:
    """What gateways share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects = MemoryObjects()
        Log(self.objects).create("0" * 32)
        self.devices: dict[tuple[NodeKind, int], MemoryDevice] = {}
        self.ids = count(1)
        self.runs = count(1)
        self.alive: set[str] = set()
        """The runs that answer on the bus."""
        self.reachable = True
        """Switch: False lets nobody ask on the bus."""

    def is_alive(self, author: str) -> bool:
        if not self.reachable:
            raise UnavailableError("no answer")
        return author in self.alive

    def start(self, name: str, hooks: Hooks | None = None) -> Gateway:
        """A new run of a gateway, up to where its frontends would open."""
        gateway = Gateway(self, name, f"{next(self.runs):016x}", hooks or Hooks())
        gateway.table.enter()
        gateway.resolve(earlier_runs_of(gateway.table.author))
        return gateway


class Hooks(NoPublisher):
    """Exports and devices at which something else may happen: what is set is called once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at: dict[str, Callable[[], None]] = {}
        """Keys: publish, withdraw, plug, unplug, commit (of the pool's change)."""

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if (call := self.at.pop(what, None)) is not None:
            call()

    def commit(self) -> None:
        self._do("commit")

    async def publish(self, attachment: Attachment) -> None:
        self._do("publish")

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        self._do("withdraw")
        return None

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        self._do("plug")
        return {}

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        self._do("resize")

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        self._do("unplug")


class TwinPool(MemoryPool):
    """A pool in memory whose records are in a shared index."""

    def __init__(self, world: World, index: SharedIndex, hooks: Hooks) -> None:
        super().__init__()
        self.index = index  # type: ignore[assignment]
        self._devices = world.devices
        self._ids = world.ids
        self._hooks = hooks

    async def delete_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> None:
        self._hooks.commit()
        await super().delete_volume(volume, in_transaction)

    async def delete_snapshot(
        self, snapshot: SnapshotId, in_transaction: WithSnapshot = nothing_more
    ) -> None:
        self._hooks.commit()
        await super().delete_snapshot(snapshot, in_transaction)

    async def fill_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> VolumeRecord:
        self._hooks.commit()
        return await super().fill_volume(volume, snapshot, in_transaction)

    async def freeze_volume(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> SnapshotRecord:
        self._hooks.commit()
        return await super().freeze_volume(volume, naming, in_transaction)


class Gateway:
    """One run of a gateway: its index, block storage, and place in the table."""

    def __init__(self, world: World, name: str, run: str, hooks: Hooks) -> None:
        self.world = world
        self.hooks = hooks
        self.index = SharedIndex.open(
            Log(world.objects), world.directory / name / run, run=run, clock=time.time
        )
        self.table = Gateways(self.index, Identity(name, run), world, time.time)
        self.pool = TwinPool(world, self.index, hooks)
        self.context = StorageContext(self.pool, hooks, devices=hooks, daemon=run)
        self.volumes = Volumes(self.context)
        self.snapshots = Snapshots(self.context)
        self.attachments = Attachments(self.context)
        self.images = Images(self.context)
        self.servers = Servers(self.context)
        self.accounts = Accounts(self.index)
        world.alive.add(self.table.author)

    def die(self) -> None:
        """As SIGKILL does."""
        self.hang()
        self.index.close()

    def hang(self) -> None:
        self.world.alive.discard(self.table.author)

    def resolve(self, whose: Whose) -> None:
        """Resolve what runs have left, with what is done in the background."""
        for owned in run_inline(resolve_interrupted(self.context, whose)):
            run_inline(finish_detaching(self.context, owned))

    def resolve_all_of(self, other: Gateway) -> None:
        """As if the other one had not answered for long."""
        self.index.refresh()
        self.resolve(lambda worker, _key: worker == other.table.author)

    def owned(self, volume: VolumeId) -> OwnedVolume | None:
        """The record as it is now."""
        self.index.refresh()
        with self.index.reading() as txn:
            return Ledger(txn).owned_volume(volume)

    def status(self, volume: VolumeId) -> Status | None:
        """None: the volume is gone."""
        owned = self.owned(volume)
        return None if owned is None else owned.volume.status

    def use(self, volume: VolumeId) -> None:
        """Open a volume, as a client does."""
        self.index.refresh()
        run_inline(self.pool.use(NodeKind.VOLUME, volume))

    def volume(self, tenant: TenantId) -> Volume:
        return run_inline(self.volumes.create(tenant, NewVolume(1)))

    def attach(self, tenant: TenantId, volume: VolumeId, server: str = "web1") -> Attachment:
        return run_inline(self.attachments.attach(tenant, server, volume, None))

    def detach(self, tenant: TenantId, volume: VolumeId, server: str = "web1") -> None:
        run_inline(self.attachments.detach(tenant, server, volume))

    def assert_sound(self) -> None:
        self.index.refresh()
        with self.index.reading() as txn:
            assert find_problems(txn) == ()
