"""Implement the pool contract (`bockd.pool.pool`) for the local pool: pass each call to the part
that does it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bockd.drivers.local.changes import find_changes
from bockd.drivers.local.coopeners import elsewhere
from bockd.drivers.local.format import queue
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.freezing import freeze_volume
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.occupancy import (
    measure_all,
    measure_one,
    measure_shares,
    node_attributes,
    pool_files_bytes,
)
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.rotating import Rotations
from bockd.drivers.local.snapshots import SnapshotOperations
from bockd.drivers.local.trashing import TrashOperations
from bockd.drivers.local.volumes import VolumeOperations
from bockd.errors import named
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE, NodeKind, SnapshotId, VolumeId
from bockd.pool.device import BlockDevice
from bockd.pool.features import Features
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.nodes import Nodes
from bockd.pool.pool import (
    EndConnections,
    Naming,
    VolumeCaches,
    WithNode,
    WithSnapshot,
    WithVolume,
    nothing_more,
)
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.reports import Attributes, Changes, CheckReport, Shares, Space, SpacePage
from bockd.pool.unsupported import no_cache
from bockd.runtime.steps import Spawn, Steps, blocking

FEATURES = Features(
    driver="local",
    durable=True,
    hole_bytes=BLOCK_SIZE,
    shares_blocks=True,
    in_directory=True,
)


class LocalPool:
    """An open local pool. `registry` has what is open, and is for this driver and its wiring."""

    features = FEATURES
    gateway: str | None = None

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        layers = registry.layer_maker
        self._volumes = VolumeOperations(registry, layers)
        self._snapshots = SnapshotOperations(registry, layers)
        self._trash = TrashOperations(registry)
        registry.rotate = Rotations(registry, layers).rotate

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
        """Open the pool at `root`, creating it in a new or empty place; see `Registry.open`.
        Blocks."""
        return cls(Registry.open(root, spawn, boot=boot, map_size_bytes=map_size_bytes))

    @property
    def index(self) -> LmdbIndex:
        """See `Pool.index`."""
        return self.registry.store.index

    @property
    def clock(self) -> Callable[[], float]:
        """See `Pool.clock`."""
        return self.registry.clock

    def close_all(self) -> Steps[None]:
        """See `Pool.close_all`."""
        return self.registry.close_all()

    def release(self) -> None:
        """See `Pool.release`."""
        self.registry.release()

    # -- looking -----------------------------------------------------------------------------

    @contextmanager
    def nodes(self) -> Iterator[Catalogue]:
        """See `Pool.nodes`."""
        with self.registry.catalogue() as catalogue:
            yield catalogue

    def find(self, kind: NodeKind, ref: str) -> int:
        """See `Pool.find`."""
        with self.nodes() as nodes:
            return nodes.find(kind, ref)

    def failure(self, record: VolumeRecord) -> str | None:
        """See `Pool.failure`."""
        return self.registry.failure(record)

    @property
    def caches(self) -> VolumeCaches:
        """See `Pool.caches`. Raises InvalidRequestError."""
        raise no_cache(self.features.driver)

    def trouble(self, record: VolumeRecord) -> str | None:
        """See `Pool.trouble`."""
        return self.registry.trouble(record)

    # -- opening -----------------------------------------------------------------------------

    async def use(self, kind: NodeKind, node: int, *, firm: bool = False) -> BlockDevice:
        """See `Pool.use`. There is no other daemon."""
        if kind is NodeKind.VOLUME:
            return (await self.registry.use_volume(VolumeId(node))).volume
        return (await self.registry.use_snapshot(SnapshotId(node))).snapshot

    def leave(self, kind: NodeKind, node: int) -> None:
        """See `Pool.leave`."""
        if kind is NodeKind.VOLUME:
            self.registry.leave_volume(VolumeId(node))
        else:
            self.registry.leave_snapshot(SnapshotId(node))

    def users(self, kind: NodeKind, node: int) -> int:
        """See `Pool.users`."""
        return self.registry.users(kind, node)

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """See `Pool.is_open`."""
        return self.registry.is_open(kind, node)

    def close_idle(self, kind: NodeKind, node: int) -> Steps[None]:
        """See `Pool.close_idle`."""
        if kind is NodeKind.VOLUME:
            return self.registry.close_idle_volume(VolumeId(node))
        return self.registry.close_idle_snapshot(SnapshotId(node))

    def flush_volume(self, volume: VolumeId) -> Steps[str | None]:
        """See `Pool.flush_volume`."""
        return self.registry.flush_volume(volume)

    # -- gateways: there is one -------------------------------------------------------------

    def recall(self, volume: VolumeId, *, force: bool) -> Steps[str | None]:
        """See `Pool.recall`."""
        return self.flush_volume(volume)

    def gateways(self) -> list[Gateway]:
        """See `Pool.gateways`."""
        return []

    def holder(self, record: VolumeRecord) -> str | None:
        """See `Pool.holder`."""
        return None

    async def announce(self, addresses: Addresses) -> None:
        """See `Pool.announce`."""

    def before_giving(self, end_connections: EndConnections) -> None:
        """See `Pool.before_giving`."""

    # -- changing ----------------------------------------------------------------------------

    def create_volume(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None = None,
        in_transaction: WithVolume = nothing_more,
        content_bytes: int | None = None,
    ) -> Steps[VolumeRecord]:
        """See `Pool.create_volume`."""
        return self._volumes.create(name, size_bytes, from_snapshot, in_transaction, content_bytes)

    def extend_volume(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """See `Pool.extend_volume`."""
        return self._volumes.extend(volume, size_bytes, in_transaction)

    def revert_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """See `Pool.revert_volume`."""
        return self._volumes.revert(volume, snapshot, in_transaction)

    def fill_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> Steps[VolumeRecord]:
        """See `Pool.fill_volume`."""
        return self._volumes.fill(volume, snapshot, in_transaction)

    def freeze_volume(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> Steps[SnapshotRecord]:
        """See `Pool.freeze_volume`."""
        return freeze_volume(self.registry, volume, naming, in_transaction)

    def reopen_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """See `Pool.reopen_volume`."""
        return self._volumes.reopen(volume, in_transaction)

    def delete_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> Steps[None]:
        """See `Pool.delete_volume`."""
        return self._volumes.delete(volume, in_transaction)

    def create_snapshot(
        self, volume: VolumeId, name: str | Naming, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[SnapshotRecord]:
        """See `Pool.create_snapshot`."""
        return self._snapshots.create(volume, name, in_transaction)

    def delete_snapshot(
        self, snapshot: SnapshotId, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[None]:
        """See `Pool.delete_snapshot`."""
        return self._snapshots.delete(snapshot, in_transaction)

    def trash(
        self, kind: NodeKind, node: int, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """See `Pool.trash`."""
        return self._trash.trash(kind, node, in_transaction)

    def restore(
        self, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """See `Pool.restore`."""
        return self._trash.restore(kind, node, naming, in_transaction)

    def changes(
        self, older: SnapshotId, newer: SnapshotId, offset: int = 0, limit: int = 1000
    ) -> Steps[Changes]:
        """See `Pool.changes`. By blocks."""
        return find_changes(self.registry, older, newer, offset, limit)

    # -- measuring ---------------------------------------------------------------------------

    def measure(self, kind: NodeKind, node: int) -> Steps[Space]:
        """See `Pool.measure`. Every open volume is checkpointed first, because what it wrote since
        may have ended a sharing."""
        return measure_one(self.registry, kind, node)

    def measure_all(self, after: int, until: Callable[[], bool]) -> Steps[SpacePage]:
        """See `Pool.measure_all`. Goes family by family, and leaves out one with a damaged map."""
        return measure_all(self.registry, after, until)

    def shares(self, images: frozenset[SnapshotId]) -> Steps[Shares]:
        """See `Pool.shares`."""
        return measure_shares(self.registry, images)

    def attributes(self, nodes: Nodes, kind: NodeKind, node: int) -> Attributes:
        """See `Pool.attributes`."""
        return node_attributes(self.registry.store.layout, Catalogue(nodes.txn), kind, node)

    def room(self) -> os.statvfs_result:
        """See `Pool.room`."""
        root = self.registry.store.layout.root
        with named(f"asking for the space of {root}"):
            return os.statvfs(root)

    def owes_space(self) -> bool:
        """See `Pool.owes_space`. What only waits for other maps, or cannot be read, does not count:
        that may be so for ever."""
        registry = self.registry
        if registry.maintenance_lock.held:
            return True
        with self.index.reading() as txn:
            return queue.has_work(txn, registry.kept_dead)

    def used_bytes(self) -> int:
        """See `Pool.used_bytes`."""
        layout = self.registry.store.layout
        with named(f"looking at {layout.root}"):
            return pool_files_bytes(layout)

    async def check(self) -> CheckReport:
        """See `Pool.check`. Volumes of processes that died are recovered first; what others have
        open is left out."""
        registry = self.registry
        for volume in list(registry.volumes):
            await registry.try_checkpoint(volume)
        await registry.recover_volumes()
        ours = frozenset(registry.volumes)

        def walk() -> CheckReport:
            live = ours | elsewhere(registry.store, ours)
            return check_open_pool(registry.store, live=live, repair=False)

        return await blocking(walk)
