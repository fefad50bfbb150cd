"""A whole pool in memory, for tests of everything above the pool contract. Snapshots and clones
are copies; nothing survives the process."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TypeVar

import msgspec

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.memory.index import MemoryIndex
from bockd.errors import (
    ConflictError,
    InUseError,
    InvalidRequestError,
    VolumeFailedError,
    volume_failed,
)
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, GIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.choices import check_new_volume, content_of, name_of, size_of
from bockd.pool.device import BlockDevice
from bockd.pool.features import Features
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.pool import (
    EndConnections,
    Naming,
    VolumeCaches,
    WithNode,
    WithSnapshot,
    WithVolume,
    nothing_more,
)
from bockd.pool.records import SnapshotRecord, VolumeRecord, refuse_trashed
from bockd.pool.reports import Attributes, Changes, CheckReport, NodeSpace, Shares, Space, SpacePage
from bockd.pool.trash import move_to_trash, record_of, take_from_trash
from bockd.pool.unsupported import no_cache
from bockd.runtime.steps import Steps
from bockd.runtime.waiting import Mutex
from bockd.validation import check_name, check_volume_size

FEATURES = Features(driver="memory", durable=False, hole_bytes=BLOCK_SIZE, shares_blocks=False)

R = TypeVar("R", VolumeRecord, SnapshotRecord)

ROOM_BYTES = 64 * GIB
"""What the pool says that it stands on."""


class MemoryPool:
    """Implements bockd.pool.pool.Pool."""

    features = FEATURES

    def __init__(self) -> None:
        self.index = MemoryIndex()
        self.clock: Callable[[], float] = time.time
        self.gateway: str | None = None
        """Switch, with the two below: the pool says that it has gateways."""
        self.known_gateways: list[Gateway] = []
        self.holders: dict[VolumeId, str] = {}
        self.recalled: list[tuple[VolumeId, bool]] = []
        """What was recalled, and whether by force."""
        self.end_connections: EndConnections | None = None
        """See `before_giving`."""
        self._ids = count(1)
        self._devices: dict[tuple[NodeKind, int], MemoryDevice] = {}
        self._users: Counter[tuple[NodeKind, int]] = Counter()
        self._open: set[tuple[NodeKind, int]] = set()
        self._busy: dict[int, Mutex] = {}

    # -- looking -----------------------------------------------------------------------------

    @contextmanager
    def nodes(self) -> Iterator[Nodes]:
        """See the contract."""
        with self.index.reading() as txn:
            yield Nodes(txn)

    def find(self, kind: NodeKind, ref: str) -> int:
        """See the contract."""
        with self.nodes() as nodes:
            return nodes.find(kind, ref)

    def failure(self, record: VolumeRecord) -> str | None:
        """See the contract."""
        with self.nodes() as nodes:
            failed = nodes.volume(record.id).failed
        return None if failed is None else str(volume_failed(record.id, record.name, failed))

    @property
    def caches(self) -> VolumeCaches:
        """See `Pool.caches`. Raises InvalidRequestError."""
        raise no_cache(self.features.driver)

    def trouble(self, record: VolumeRecord) -> str | None:
        """See the contract: opening has no other trouble here."""
        return self.failure(record)

    # -- opening -----------------------------------------------------------------------------

    async def use(self, kind: NodeKind, node: int, *, firm: bool = False) -> BlockDevice:
        """See the contract; there is no other daemon."""
        async with self._exclusive(node):
            with self.nodes() as nodes:
                refuse_trashed(kind, record_of(nodes, kind, node))
                if kind is NodeKind.VOLUME:
                    _refuse_failed(nodes, VolumeId(node))
            self._open.add((kind, node))
            self._users[kind, node] += 1
            return self._devices[kind, node]

    def leave(self, kind: NodeKind, node: int) -> None:
        """See the contract."""
        self._users[kind, node] -= 1

    def users(self, kind: NodeKind, node: int) -> int:
        """See the contract."""
        return self._users[kind, node]

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """See the contract."""
        return (kind, node) in self._open

    async def close_idle(self, kind: NodeKind, node: int) -> None:
        """See the contract."""
        async with self._exclusive(node):
            if not self._users[kind, node]:
                self._open.discard((kind, node))

    async def flush_volume(self, volume: VolumeId) -> str | None:
        """See the contract."""
        async with self._exclusive(volume):
            with self.nodes() as nodes:
                failed = nodes.volume(volume).failed
            if failed is None and self.is_open(NodeKind.VOLUME, volume):
                try:
                    await self._devices[NodeKind.VOLUME, volume].flush()
                except VolumeFailedError as error:
                    failed = reason = str(error)
                    self.index.update(lambda txn: Nodes(txn).fail_volume(volume, reason))
            return failed

    def recall(self, volume: VolumeId, *, force: bool) -> Steps[str | None]:
        """See the contract."""
        self.recalled.append((volume, force))
        return self.flush_volume(volume)

    def gateways(self) -> list[Gateway]:
        """See the contract."""
        return self.known_gateways

    def holder(self, record: VolumeRecord) -> str | None:
        """See the contract."""
        return self.holders.get(record.id)

    async def announce(self, addresses: Addresses) -> None:
        """See the contract: there is nobody to tell."""

    def before_giving(self, end_connections: EndConnections) -> None:
        """See the contract: nobody asks."""
        self.end_connections = end_connections

    async def close_all(self) -> None:
        """See the contract."""
        self._open.clear()
        self._users.clear()

    def release(self) -> None:
        """See the contract."""

    def _exclusive(self, node: int) -> Mutex:
        return self._busy.setdefault(node, Mutex())

    def _refuse_used(self, kind: NodeKind, node: int) -> None:
        if users := self._users[kind, node]:
            if kind is NodeKind.SNAPSHOT:
                raise InUseError(f"snapshot {node} is being read; disconnect first")
            raise InUseError(f"volume {node} has {users} connection(s); disconnect first")
        self._open.discard((kind, node))

    # -- volumes -----------------------------------------------------------------------------

    def create_volume(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None = None,
        in_transaction: WithVolume = nothing_more,
        content_bytes: int | None = None,
    ) -> Steps[VolumeRecord]:
        """See the contract."""
        check_new_volume(name, size_bytes, is_clone=from_snapshot is not None)

        def change(txn: Transaction) -> VolumeRecord:
            nodes = Nodes(txn)
            source = None if from_snapshot is None else nodes.snapshot(from_snapshot)
            size = size_of(source, size_bytes)
            volume = VolumeId(next(self._ids))
            record = VolumeRecord(
                id=volume,
                name=name_of(name, nodes, volume),
                size_bytes=size,
                created_at=self.clock(),
                from_snapshot=from_snapshot,
                failed=None,
                content_bytes=content_of(source, size) if source else content_bytes,
            )
            nodes.take_name(NodeKind.VOLUME, record.name, volume)
            _put(txn, record)
            in_transaction(txn, record)
            return record

        async def steps() -> VolumeRecord:
            record = self.index.update(change)
            device = MemoryDevice(record.size_bytes)
            if from_snapshot is not None:
                device.show(self._devices[NodeKind.SNAPSHOT, from_snapshot])
            self._devices[NodeKind.VOLUME, record.id] = device
            return record

        return steps() if from_snapshot is None else self._holding(from_snapshot, steps)

    async def _holding(self, node: int, steps: Callable[[], Steps[VolumeRecord]]) -> VolumeRecord:
        async with self._exclusive(node):
            return await steps()

    def extend_volume(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """See the contract."""
        check_volume_size(size_bytes)

        def change(nodes: Nodes) -> VolumeRecord:
            _refuse_failed(nodes, volume)
            current = nodes.volume(volume)
            if size_bytes <= current.size_bytes:
                raise InvalidRequestError(
                    f"volume {volume} has {current.size_bytes} bytes already; it can only grow"
                )
            return replace(current, size_bytes=size_bytes, content_bytes=None)

        async def steps() -> VolumeRecord:
            async with self._exclusive(volume):
                record = self._change(change, in_transaction)
                self._devices[NodeKind.VOLUME, volume].grow(size_bytes)
                return record

        return steps()

    async def revert_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume = nothing_more
    ) -> VolumeRecord:
        """See the contract."""

        def change(nodes: Nodes) -> VolumeRecord:
            source = nodes.snapshot(snapshot)
            if source.volume != volume:
                raise ConflictError(f"snapshot {snapshot} is not one of volume {volume}")
            current = nodes.volume(volume)
            return replace(current, content_bytes=content_of(source, current.size_bytes))

        async with self._exclusive(volume):
            return await self._show(volume, snapshot, change, in_transaction)

    async def fill_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> VolumeRecord:
        """See the contract."""

        def change(nodes: Nodes) -> VolumeRecord:
            source, current = nodes.snapshot(snapshot), nodes.volume(volume)
            size_of(source, current.size_bytes)
            return replace(
                current,
                content_bytes=content_of(source, current.size_bytes),
                from_snapshot=snapshot,
            )

        async with self._exclusive(volume), self._exclusive(snapshot):
            return await self._show(volume, snapshot, change, in_transaction)

    async def _show(
        self,
        volume: VolumeId,
        snapshot: SnapshotId,
        change: Callable[[Nodes], VolumeRecord],
        in_transaction: WithVolume,
    ) -> VolumeRecord:
        self._refuse_used(NodeKind.VOLUME, volume)
        with self.nodes() as nodes:
            _refuse_failed(nodes, volume)
        record = self._change(change, in_transaction)
        device = self._devices[NodeKind.VOLUME, volume]
        device.show(self._devices[NodeKind.SNAPSHOT, snapshot])
        return record

    def _change(
        self, change: Callable[[Nodes], VolumeRecord], in_transaction: WithVolume
    ) -> VolumeRecord:
        def run(txn: Transaction) -> VolumeRecord:
            record = change(Nodes(txn))
            _put(txn, record)
            in_transaction(txn, record)
            return record

        return self.index.update(run)

    async def freeze_volume(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> SnapshotRecord:
        """See the contract."""

        def change(txn: Transaction) -> SnapshotRecord:
            nodes = Nodes(txn)
            _refuse_failed(nodes, volume)
            record = nodes.volume(volume)
            nodes.forget(NodeKind.VOLUME, volume, record.name)
            return self._add_snapshot(txn, record, naming, in_transaction)

        async with self._exclusive(volume):
            self._refuse_used(NodeKind.VOLUME, volume)
            snapshot = self.index.update(change)
            device = self._devices.pop((NodeKind.VOLUME, volume))
            self._devices[NodeKind.SNAPSHOT, snapshot.id] = _frozen(device)
            return snapshot

    async def reopen_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> VolumeRecord:
        """See the contract."""
        async with self._exclusive(volume):
            self._refuse_used(NodeKind.VOLUME, volume)
            return self._change(
                lambda nodes: replace(nodes.volume(volume), failed=None), in_transaction
            )

    async def delete_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> None:
        """See the contract."""
        await self._delete(
            NodeKind.VOLUME, volume, lambda nodes: nodes.volume(volume), in_transaction
        )

    async def _delete(
        self,
        kind: NodeKind,
        node: int,
        look: Callable[[Nodes], R],
        in_transaction: Callable[[Transaction, R], None],
    ) -> None:
        """Delete a volume or snapshot, whose record `look` returns."""

        def change(txn: Transaction) -> None:
            nodes = Nodes(txn)
            record = look(nodes)
            nodes.forget(kind, node, record.name)
            in_transaction(txn, record)

        async with self._exclusive(node):
            self._refuse_used(kind, node)
            self.index.update(change)
            del self._devices[kind, node]

    # -- snapshots ---------------------------------------------------------------------------

    def create_snapshot(
        self, volume: VolumeId, name: str | Naming, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[SnapshotRecord]:
        """See the contract."""
        if isinstance(name, str):
            check_name(name)

        def change(txn: Transaction) -> SnapshotRecord:
            nodes = Nodes(txn)
            _refuse_failed(nodes, volume)
            return self._add_snapshot(txn, nodes.volume(volume), name, in_transaction)

        async def steps() -> SnapshotRecord:
            async with self._exclusive(volume):
                snapshot = self.index.update(change)
                device = self._devices[NodeKind.VOLUME, volume]
                self._devices[NodeKind.SNAPSHOT, snapshot.id] = _frozen(device)
                return snapshot

        return steps()

    def _add_snapshot(
        self,
        txn: Transaction,
        origin: VolumeRecord,
        name: str | Naming,
        in_transaction: WithSnapshot,
    ) -> SnapshotRecord:
        nodes = Nodes(txn)
        snapshot = SnapshotId(next(self._ids))
        record = SnapshotRecord(
            id=snapshot,
            name=name_of(name, nodes, snapshot),
            volume=origin.id,
            size_bytes=origin.size_bytes,
            created_at=self.clock(),
            content_bytes=origin.content_bytes,
        )
        nodes.take_name(NodeKind.SNAPSHOT, record.name, snapshot)
        _put(txn, record)
        in_transaction(txn, record)
        return record

    async def delete_snapshot(
        self, snapshot: SnapshotId, in_transaction: WithSnapshot = nothing_more
    ) -> None:
        """See the contract."""
        await self._delete(
            NodeKind.SNAPSHOT, snapshot, lambda nodes: nodes.snapshot(snapshot), in_transaction
        )

    # -- the trash ---------------------------------------------------------------------------

    async def trash(
        self, kind: NodeKind, node: int, in_transaction: WithNode = nothing_more
    ) -> None:
        """See the contract."""

        def change(txn: Transaction) -> None:
            move_to_trash(Nodes(txn), kind, node, self.clock(), in_transaction)

        async with self._exclusive(node):
            self._refuse_used(kind, node)
            self.index.update(change)

    async def restore(
        self, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode = nothing_more
    ) -> None:
        """See the contract."""

        def change(txn: Transaction) -> None:
            take_from_trash(Nodes(txn), kind, node, naming, in_transaction)

        async with self._exclusive(node):
            self.index.update(change)

    async def changes(
        self, older: SnapshotId, newer: SnapshotId, offset: int = 0, limit: int = 1000
    ) -> Changes:
        """See the contract."""
        with self.nodes() as nodes:
            nodes.snapshot(older)
            size_bytes = nodes.snapshot(newer).size_bytes
        before, after = (self._devices[NodeKind.SNAPSHOT, one] for one in (older, newer))
        found = after.differences(before)
        ranges = [(at, size) for at, size in found if at >= offset]
        end = size_bytes if len(ranges) <= limit else sum(ranges[limit - 1])
        return Changes(tuple(ranges[:limit]), end)

    # -- measuring ---------------------------------------------------------------------------

    async def measure(self, kind: NodeKind, node: int) -> Space:
        """See the contract. Everything is exclusive: nothing is shared."""
        with self.nodes() as nodes:
            record_of(nodes, kind, node)
        return Space(self._stored_bytes(kind, node), 0)

    async def measure_all(self, after: int, until: Callable[[], bool]) -> SpacePage:
        """See the contract: one volume or snapshot at a time, by id."""
        found: list[NodeSpace] = []
        for kind, node in sorted(self._devices, key=lambda key: key[1]):
            if node <= after or (kind is NodeKind.SNAPSHOT and not self.is_open(kind, node)):
                continue
            found.append(NodeSpace(kind, node, Space(self._stored_bytes(kind, node), 0)))
            if until():
                return SpacePage(tuple(found), node)
        return SpacePage(tuple(found), None)

    async def shares(self, images: frozenset[SnapshotId]) -> Shares:
        """See the contract."""
        volumes = snapshots = shared = trashed = 0
        with self.nodes() as nodes:
            in_trash = {key for key in self._devices if nodes.is_trashed(*key)}
        for kind, node in self._devices:
            stored = self._stored_bytes(kind, node)
            if (kind, node) in in_trash:
                trashed += stored
            elif kind is NodeKind.VOLUME:
                volumes += stored
            elif SnapshotId(node) in images:
                shared += stored
            else:
                snapshots += stored
        return Shares(volumes, snapshots, shared, trashed)

    def attributes(self, nodes: Nodes, kind: NodeKind, node: int) -> Attributes:
        """See the contract."""
        record = record_of(nodes, kind, node)
        device = self._devices.get((kind, node))
        if device is None:  # deleted since the transaction of `nodes` began
            return Attributes(0, record.created_at)
        return Attributes(device.stored_bytes, max(record.created_at, device.modified_at))

    def room(self) -> os.statvfs_result:
        """See the contract: a file system of `ROOM_BYTES` without a limit of files."""
        blocks = ROOM_BYTES // BLOCK_SIZE
        free = blocks - self.used_bytes() // BLOCK_SIZE
        return os.statvfs_result((BLOCK_SIZE, BLOCK_SIZE, blocks, free, free, 0, 0, 0, 0, 255))

    def owes_space(self) -> bool:
        """See the contract: what is deleted is gone at once."""
        return False

    def used_bytes(self) -> int:
        """See the contract."""
        return sum(device.stored_bytes for device in list(self._devices.values()))

    def _stored_bytes(self, kind: NodeKind, node: int) -> int:
        return self._devices[kind, node].stored_bytes

    async def check(self) -> CheckReport:
        """See the contract: each record has a device of its size, and each device a record."""
        problems: list[str] = []
        with self.nodes() as nodes:
            volumes, snapshots = list(nodes.volumes()), list(nodes.snapshots())
        known = {(NodeKind.VOLUME, int(one.id)): one.size_bytes for one in volumes}
        known |= {(NodeKind.SNAPSHOT, int(one.id)): one.size_bytes for one in snapshots}
        for (kind, node), size_bytes in known.items():
            device = self._devices.get((kind, node))
            if device is None or device.size_bytes != size_bytes:
                problems.append(f"{kind} {node} has no device of its size")
        problems += [
            f"{kind} {node} has no record"
            for kind, node in self._devices
            if (kind, node) not in known
        ]
        return CheckReport(
            clean=not problems,
            problems=tuple(problems),
            repaired=(),
            volumes=len(volumes),
            snapshots=len(snapshots),
            layers=0,
            leaves=0,
            stray_blocks=0,
            pending_reclaim=0,
        )


def _frozen(device: MemoryDevice) -> MemoryDevice:
    frozen = MemoryDevice(device.size_bytes, read_only=True)
    frozen.show(device)
    return frozen


def _refuse_failed(nodes: Nodes, volume: VolumeId) -> None:
    record = nodes.volume(volume)
    if record.failed is not None:
        raise volume_failed(volume, record.name, record.failed)


def _put(txn: Transaction, record: VolumeRecord | SnapshotRecord) -> None:
    table = VOLUMES if isinstance(record, VolumeRecord) else SNAPSHOTS
    txn.put(table, id_key(record.id), msgspec.json.encode(record))
