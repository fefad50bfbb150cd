"""Implement the pool contract (`bockd.pool.pool`) for a pool in a Ceph cluster: pass each call to
the part that does it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd import space
from bockd.drivers.rbd.caching import CacheOperations
from bockd.drivers.rbd.changes import find_changes
from bockd.drivers.rbd.checking import HasLog, check, no_logs
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.recalling import recall
from bockd.drivers.rbd.records import Identity, volume_record
from bockd.drivers.rbd.releasing import OnAsked, Post, Releases
from bockd.drivers.rbd.session import CHANGING, MEASURING, Session
from bockd.drivers.rbd.snapshots import SnapshotOperations
from bockd.drivers.rbd.trashing import TrashOperations
from bockd.drivers.rbd.volumes import VolumeOperations
from bockd.errors import NotFoundError, VolumeFailedError, volume_failed
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.device import BlockDevice
from bockd.pool.features import Features
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.nodes import Nodes
from bockd.pool.pool import (
    EndConnections,
    Naming,
    WithNode,
    WithSnapshot,
    WithVolume,
    nothing_more,
)
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.reports import Attributes, Changes, CheckReport, Shares, Space, SpacePage
from bockd.publictexts import discretion
from bockd.runtime.steps import Spawn, Steps, blocking_apart, call_apart

FEATURES = Features(
    driver="rbd",
    durable=True,
    hole_bytes=OBJECT_BYTES,
    shares_blocks=False,
    caches=True,
    several_gateways=True,
)


class RbdPool:
    """A pool in a Ceph cluster, open in this gateway. `session` and `open_nodes` are for this
    driver and the daemon's wiring."""

    features = FEATURES

    def __init__(self, session: Session, spawn: Spawn, releases: Releases) -> None:
        self.session = session
        self.open_nodes = OpenNodes(session, spawn)
        self._releases = releases
        self._volumes = VolumeOperations(self.open_nodes)
        self._snapshots = SnapshotOperations(self.open_nodes)
        self._trash = TrashOperations(self.open_nodes)
        self.caches = CacheOperations(self.open_nodes)
        self.has_log: HasLog = no_logs
        """Looks whether this gateway has a log, for `check`."""
        """See `Pool.caches`."""
        releases.begin(self.open_nodes)

    # -- the pool itself ---------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        settings: RbdSettings,
        replica: Path,
        spawn: Spawn,
        post: Post,
        *,
        make: bool = True,
    ) -> Self:
        """Join the pool of a namespace, or, with `make`, make it in an empty one; see `Session`.
        `replica` is a directory of this machine for copies of the index, which are made anew.
        `post` has a function called on the owner thread. Blocks.

        Raises UnavailableError, DeniedError, NotFoundError, PoolFormatError, DamagedError.
        """
        releases = Releases(post)
        return cls(Session(settings, replica, releases.ask, make=make), spawn, releases)

    @property
    def identity(self) -> Identity:
        """The name of this gateway, and of its run."""
        return self.session.who

    @property
    def index(self) -> SharedIndex:
        """See `Pool.index`."""
        return self.session.index

    @property
    def clock(self) -> Callable[[], float]:
        """See `Pool.clock`."""
        return self.session.clock

    def close_all(self) -> Steps[None]:
        """See `Pool.close_all`."""
        return self.open_nodes.close_all()

    def release(self) -> None:
        """See `Pool.release`. Blocks."""
        self.session.close()

    # -- other gateways ----------------------------------------------------------------------

    @property
    def on_asked(self) -> OnAsked:
        """Ends the connections of a volume that another gateway asks for firmly. Then the volume
        is closed: what its users ask for after that fails with VolumeTakenError."""
        return self._releases.on_asked

    @on_asked.setter
    def on_asked(self, value: OnAsked) -> None:
        self._releases.on_asked = value

    def before_giving(self, end_connections: EndConnections) -> None:
        """See `Pool.before_giving`."""

        async def end(volume: VolumeId, _manner: Manner) -> None:
            await end_connections(volume)

        self._releases.on_asked = end

    def recall(self, volume: VolumeId, *, force: bool) -> Steps[str | None]:
        """See `Pool.recall`."""
        return recall(self.open_nodes, volume, force=force)

    @property
    def gateway(self) -> str:
        """See `Pool.gateway`."""
        return self.session.who.gateway

    def gateways(self) -> list[Gateway]:
        """See `Pool.gateways`."""
        return self.session.table.all()

    def holder(self, record: VolumeRecord) -> str | None:
        """See `Pool.holder`."""
        with self.index.reading() as txn:
            try:
                return volume_record(txn, record.id).holder
            except NotFoundError:
                return None

    async def announce(self, addresses: Addresses) -> None:
        """See `Pool.announce`."""
        await blocking_apart(CHANGING, self.session.table.announce, addresses)

    def release_volume(self, volume: VolumeId, manner: Manner) -> Steps[bool]:
        """Give a volume up, if it is open here, as if another gateway had asked for it: politely
        only if nobody uses it. Return False if it is kept. Raises BockdError: it is closed
        nevertheless."""
        return self._releases.release(NodeKind.VOLUME, volume, manner)

    # -- looking -----------------------------------------------------------------------------

    @contextmanager
    def nodes(self) -> Iterator[Nodes]:
        """See `Pool.nodes`."""
        with self.index.reading() as txn:
            yield Nodes(txn)

    def find(self, kind: NodeKind, ref: str) -> int:
        """See `Pool.find`."""
        with self.nodes() as nodes:
            return nodes.find(kind, ref)

    def failure(self, record: VolumeRecord) -> str | None:
        """See `Pool.failure`."""
        if record.failed is not None:
            return str(volume_failed(record.id, record.name, record.failed))
        return self.caches.failure(record)

    def trouble(self, record: VolumeRecord) -> str | None:
        """See `Pool.trouble`."""
        return self.failure(record) or self.open_nodes.refusals.get(record.id)

    # -- opening -----------------------------------------------------------------------------

    def use(self, kind: NodeKind, node: int, *, firm: bool = False) -> Steps[BlockDevice]:
        """See `Pool.use`."""
        if kind is NodeKind.VOLUME:
            manner = Manner.FIRM if firm else Manner.POLITE
            return self.open_nodes.use_volume(VolumeId(node), manner)
        return self.open_nodes.use_snapshot(SnapshotId(node))

    def leave(self, kind: NodeKind, node: int) -> None:
        """See `Pool.leave`."""
        self.open_nodes.leave(kind, node)

    def users(self, kind: NodeKind, node: int) -> int:
        """See `Pool.users`."""
        return self.open_nodes.users(kind, node)

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """See `Pool.is_open`."""
        return self.open_nodes.is_open(kind, node)

    def close_idle(self, kind: NodeKind, node: int) -> Steps[None]:
        """See `Pool.close_idle`. A volume is given back."""
        return self.open_nodes.close_idle(kind, node)

    async def flush_volume(self, volume: VolumeId) -> str | None:
        """See `Pool.flush_volume`. What another gateway has open is flushed there."""
        with self.nodes() as nodes:
            failed = nodes.volume(volume).failed
        opened = self.open_nodes.volumes.get(volume)
        if failed is None and opened is not None:
            try:
                await opened.front.device.flush()
            except VolumeFailedError as error:
                return discretion.text(error)
        return failed

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
        return self._snapshots.freeze(volume, naming, in_transaction)

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
        """See `Pool.changes`. By objects."""
        return call_apart(MEASURING, find_changes, self.session, older, newer, offset, limit)

    # -- measuring ---------------------------------------------------------------------------

    def measure(self, kind: NodeKind, node: int) -> Steps[Space]:
        """See `Pool.measure`. By objects."""
        return call_apart(MEASURING, space.measure, self.session, kind, node)

    def measure_all(self, after: int, until: Callable[[], bool]) -> Steps[SpacePage]:
        """See `Pool.measure_all`. By objects."""
        return space.measure_all(self.open_nodes, after, until)

    def shares(self, images: frozenset[SnapshotId]) -> Steps[Shares]:
        """See `Pool.shares`. By objects."""
        return call_apart(MEASURING, space.shares, self.session, images)

    def attributes(self, nodes: Nodes, kind: NodeKind, node: int) -> Attributes:
        """See `Pool.attributes`."""
        return space.attributes(self.session, nodes, kind, node)

    def room(self) -> os.statvfs_result:
        """See `Pool.room`."""
        return space.room(self.session)

    def owes_space(self) -> bool:
        """See `Pool.owes_space`: of what this gateway has deleted. What could not be removed
        counts, and is tried again."""
        return self.session.removals.owes_space()

    def used_bytes(self) -> int:
        """See `Pool.used_bytes`."""
        return space.used_bytes(self.session)

    def check(self) -> Steps[CheckReport]:
        """See `Pool.check`."""
        return call_apart(MEASURING, check, self.session, self.has_log)
