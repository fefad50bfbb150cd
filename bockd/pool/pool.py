"""The pool contract: all that block storage and the daemon may ask of any kind of pool.

An operation that raises a BockdError has changed nothing, unless its docstring says otherwise.
Operations that return steps (bockd.runtime.steps) are called and driven on the owner thread, and
those on one volume or snapshot exclude each other. What *blocks* is called on a thread.

Who keeps records of its own about volumes and snapshots passes `in_transaction`, which changes
them inside the transaction that changes the pool: both happen or neither. It may run twice, so
it must have no effect outside the transaction; what it raises undoes the operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from bockd.model import CacheMode, NodeKind, SnapshotId, VolumeId
from bockd.pool.caches import CacheState
from bockd.pool.device import BlockDevice
from bockd.pool.features import Features
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.reports import Attributes, Changes, CheckReport, Shares, Space, SpacePage
from bockd.runtime.steps import Steps

WithVolume = Callable[[Transaction, VolumeRecord], None]
"""More to do in the transaction that creates, changes or forgets this volume."""

WithSnapshot = Callable[[Transaction, SnapshotRecord], None]
"""More to do in the transaction that creates or forgets this snapshot."""

WithNode = Callable[[Transaction, VolumeRecord | SnapshotRecord], None]
"""More to do in the transaction that moves this one to the trash, or from there."""

Naming = Callable[[Nodes, int], str]
"""Chooses a valid, free name for a node whose id is known now."""

EndConnections = Callable[[VolumeId], Steps[None]]
"""Ends the connections of a volume, once what is under way is answered, in half a second at most.
Raises nothing."""


def nothing_more(_txn: Transaction, _record: VolumeRecord | SnapshotRecord) -> None:
    """Do nothing: the `in_transaction` of an operation whose caller keeps no records of its own."""


class VolumeCaches(Protocol):
    """See `Pool.caches`. The errors are as for the operations of `Pool`."""

    def state(self, record: VolumeRecord) -> CacheState:
        """Return how it is with a volume."""
        ...

    def set_mode(
        self, volume: VolumeId, mode: CacheMode, in_transaction: WithVolume = nothing_more
    ) -> Steps[None]:
        """Choose what stands in front of a volume from its next opening on; what is dirty is
        written back first. Raises InUseError while a client is connected, DirtyElsewhereError,
        InvalidRequestError: this gateway has no place for it."""
        ...

    def discard(self, volume: VolumeId, in_transaction: WithVolume = nothing_more) -> Steps[None]:
        """Give up what was answered and is not in the pool: the volume goes back to the state of a
        flush that is there, and perhaps some of what was written after it, as after a power cut.
        What this gateway can still read is written into the pool instead. Raises InUseError: a
        client is connected, or that goes on, or the gateway that has it lives, and is to do it
        itself; UnavailableError: it is readable, and not in the pool yet; ConflictError: nothing is
        dirty."""
        ...


class Pool(Protocol):
    """An open pool. For the owner thread; ended by `close_all` and then `release`."""

    @property
    def features(self) -> Features:
        """What this kind of pool can do."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Gives the time of what is created, in seconds since the epoch."""
        ...

    @property
    def index(self) -> Index:
        """The records of the pool, and of whoever keeps some beside them."""
        ...

    # -- looking -----------------------------------------------------------------------------

    def nodes(self) -> AbstractContextManager[Nodes]:
        """Open the volumes' and snapshots' records for reading, as they are at one instant."""
        ...

    def find(self, kind: NodeKind, ref: str) -> int:
        """Return the id of what an id in decimal or a name leads to. Raises NotFoundError."""
        ...

    def failure(self, record: VolumeRecord) -> str | None:
        """Return why a volume is refused until it is reopened, and what to do. None when no sync of
        it has failed."""
        ...

    def trouble(self, record: VolumeRecord) -> str | None:
        """Return `failure`, or why the volume could not be opened when that was last tried, or
        None. The text may name files of the pool."""
        ...

    @property
    def caches(self) -> VolumeCaches:
        """What gateways have of volumes on their local disks. Raises InvalidRequestError where
        `Features.caches` says that there are none."""
        ...

    # -- opening -----------------------------------------------------------------------------

    def use(self, kind: NodeKind, node: int, *, firm: bool = False) -> Steps[BlockDevice]:
        """Open a volume or snapshot, or join those who use it; `leave` when done. Another daemon
        that serves the same pool gives up a volume that is opened firmly, even if clients use it
        there; otherwise only if none does.

        Raises NotFoundError, InUseError (another process or daemon has it), VolumeFailedError,
        DamagedError, UnavailableError.
        """
        ...

    def leave(self, kind: NodeKind, node: int) -> None:
        """Count one user less. It stays open until `close_idle` or an operation closes it."""
        ...

    def users(self, kind: NodeKind, node: int) -> int:
        """Return how many use it in this process now."""
        ...

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """Return whether it is open in this process, used or not."""
        ...

    def close_idle(self, kind: NodeKind, node: int) -> Steps[None]:
        """Close what nobody uses. Do nothing when it is used. Raises BockdError; then it may still
        be open, and the caller closes it later."""
        ...

    def flush_volume(self, volume: VolumeId) -> Steps[str | None]:
        """Make what was acknowledged survive power loss, if the volume is open. (A closed one is
        flushed already.) Return why the volume has failed, now or earlier, or None."""
        ...

    def recall(self, volume: VolumeId, *, force: bool) -> Steps[str | None]:
        """Make what any gateway has acknowledged survive power loss, and have another one that has
        the volume open end its clients' connections and close it; with `force`, without waiting for
        it. Nothing that it was doing to the volume is carried out later. Where no other daemon can
        have it: `flush_volume`. Return as that does. Raises BockdError."""
        ...

    def close_all(self) -> Steps[None]:
        """Close every open volume and snapshot. Raises the first error, after trying all."""
        ...

    def release(self) -> None:
        """Give the pool up. Nothing may be open or under way."""
        ...

    # -- gateways ----------------------------------------------------------------------------

    @property
    def gateway(self) -> str | None:
        """The name of this gateway. None: no other daemon can serve this pool."""
        ...

    def gateways(self) -> list[Gateway]:
        """Return all gateways that are known, by name. Empty where there can be no others."""
        ...

    def holder(self, record: VolumeRecord) -> str | None:
        """Return the name of the gateway that has a volume open, or had when it died. None: none
        has, or there can be no others."""
        ...

    def announce(self, addresses: Addresses) -> Steps[None]:
        """Tell the other gateways where this one is reached, now that it is. Raises BockdError."""
        ...

    def before_giving(self, end_connections: EndConnections) -> None:
        """Run `end_connections` before a volume that clients use here is given to another gateway
        that opens it firmly. To be called before the frontends open."""
        ...

    # -- changing ----------------------------------------------------------------------------

    def create_volume(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None = None,
        in_transaction: WithVolume = nothing_more,
        content_bytes: int | None = None,
    ) -> Steps[VolumeRecord]:
        """Create a blank volume, or a clone of a snapshot. A clone is at least as large as the
        snapshot, and by default as large. `content_bytes` is the size of what will be imported into
        a blank volume.

        Raises InvalidRequestError, ConflictError (the name), NotFoundError (the snapshot).
        """
        ...

    def extend_volume(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Grow a volume, open or not. Raises InvalidRequestError when it would not grow."""
        ...

    def revert_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Make the volume show its snapshot's content again. The size stays; what lies beyond the
        snapshot's end becomes holes. Raises InUseError while a client is connected, ConflictError
        for a snapshot of another volume."""
        ...

    def fill_volume(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> Steps[VolumeRecord]:
        """Make an existing volume a clone of a snapshot, whatever it holds now. Raises InUseError
        while a client is connected, InvalidRequestError when it is smaller."""
        ...

    def freeze_volume(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> Steps[SnapshotRecord]:
        """Turn a volume that nobody uses into a snapshot, which is durable when this ends. Raises
        InUseError while a client is connected, NotFoundError, VolumeFailedError."""
        ...

    def reopen_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> Steps[VolumeRecord]:
        """Accept what a failed sync may have lost, and let the volume be opened again. Raises
        InUseError while a client is connected."""
        ...

    def delete_volume(
        self, volume: VolumeId, in_transaction: WithVolume = nothing_more
    ) -> Steps[None]:
        """Forget a volume; its space is reclaimed in the background. Raises InUseError while it is
        used."""
        ...

    def create_snapshot(
        self, volume: VolumeId, name: str | Naming, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[SnapshotRecord]:
        """Freeze what the volume holds under a new name (promise D4)."""
        ...

    def delete_snapshot(
        self, snapshot: SnapshotId, in_transaction: WithSnapshot = nothing_more
    ) -> Steps[None]:
        """Forget a snapshot; volumes made from it stay. Raises InUseError while it is read."""
        ...

    def trash(
        self, kind: NodeKind, node: int, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """Move a volume or snapshot to the trash: it keeps its data, and nobody finds or opens it
        any more. Raises InUseError while it is used, NotFoundError."""
        ...

    def restore(
        self, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode = nothing_more
    ) -> Steps[None]:
        """Make one that is in the trash an ordinary one again, as it was. Raises NotFoundError for
        one that is not there. `delete_volume` and `delete_snapshot` delete it for good."""
        ...

    def changes(
        self, older: SnapshotId, newer: SnapshotId, offset: int = 0, limit: int = 1000
    ) -> Steps[Changes]:
        """Find where a snapshot may hold something else than an older one, from `offset` bytes on,
        at most `limit` ranges: outside of them both read the same, and what the newer one has
        beyond the end of the older one reads as zeros. Raises NotFoundError, DamagedError."""
        ...

    # -- measuring ---------------------------------------------------------------------------

    def measure(self, kind: NodeKind, node: int) -> Steps[Space]:
        """Measure the exact space of a volume or snapshot. A volume that has failed counts as it
        was before."""
        ...

    def measure_all(self, after: int, until: Callable[[], bool]) -> Steps[SpacePage]:
        """Measure the exact space of all volumes, and of the snapshots that are in use, from where
        an earlier page ended (0: from the start) until `until` returns true or all are done."""
        ...

    def shares(self, images: frozenset[SnapshotId]) -> Steps[Shares]:
        """Measure who has how much of the pool. Raises DamagedError."""
        ...

    def attributes(self, nodes: Nodes, kind: NodeKind, node: int) -> Attributes:
        """Return what a file view shows of a volume or snapshot of `nodes`, which this pool has
        given and which are still open. Blocks. Raises NotFoundError."""
        ...

    def room(self) -> os.statvfs_result:
        """Return the space of what the pool stands on. Blocks. Raises BockdError."""
        ...

    def owes_space(self) -> bool:
        """Return whether space of what was deleted is still to return, and can soon. Blocks.
        Raises BockdError."""
        ...

    def used_bytes(self) -> int:
        """Sum what the pool takes of that. Blocks. Raises BockdError."""
        ...

    def check(self) -> Steps[CheckReport]:
        """Check the pool as it is, while it is used. Nothing is repaired."""
        ...
