"""Moving volumes and snapshots of a pool in Ceph to the trash (bockd.pool.trash), and from there.

One in the trash keeps its image or snap: the sweep, flattening and the check go on with them as
before, for its record names them. No gateway has it open: it is vacated first, and whoever takes a
volume finds its record in the trash when it writes itself down. Nothing of it is dirty anywhere.

Each of both is one transaction of the shared index, so any gateway may do any of it at any moment:
what another one has done before is found there. Before the first one is moved, the index gets a
format that gateways without a trash refuse (`SharedIndex.begin_trash`).

What bockd.pool.pool says about errors and about `in_transaction` holds here.
"""

from __future__ import annotations

from functools import partial

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opened import refuse_dirty
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import RbdSnapshotRecord, RbdVolumeRecord, unchanged
from bockd.drivers.rbd.removals import try_to
from bockd.drivers.rbd.session import CHANGING
from bockd.drivers.rbd.vacating import look_at_volume, vacate, vacate_snapshot
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming, WithNode
from bockd.pool.records import refuse_trashed
from bockd.pool.trash import move_to_trash, take_from_trash
from bockd.runtime.steps import Steps, blocking_apart, try_spawn


class TrashOperations:
    """What can be done with the trash of a pool."""

    def __init__(self, nodes: OpenNodes) -> None:
        self._nodes = nodes
        self._session = nodes.session

    def trash(self, kind: NodeKind, node: int, in_transaction: WithNode) -> Steps[None]:
        """See `Pool.trash`. What is dirty here of a volume is written back first. InUseError also
        means clients at another gateway, or that it is dirty there."""

        async def steps() -> None:
            self._nodes.refuse_used(kind, node)
            await self._nodes.close(kind, node)
            hit(Failpoint.TRASH_CLOSED)
            record = await blocking_apart(CHANGING, self._move, kind, node, in_transaction)
            hit(Failpoint.TRASH_COMMITTED)
            if isinstance(record, RbdSnapshotRecord):
                try_spawn(self._nodes.spawn, self._end_readers(record))
            else:
                self._nodes.refusals.pop(record.id, None)

        return self._nodes.exclusive_soon(node, steps)

    def _move(
        self, kind: NodeKind, node: int, in_transaction: WithNode
    ) -> RbdVolumeRecord | RbdSnapshotRecord:
        seen: RbdVolumeRecord | RbdSnapshotRecord
        if kind is NodeKind.VOLUME:
            refuse_trashed(kind, look_at_volume(self._session, VolumeId(node)))
            seen = vacate(self._session, VolumeId(node))
        else:
            seen = vacate_snapshot(self._session, SnapshotId(node))

        def change(txn: Transaction) -> None:
            if isinstance(seen, RbdVolumeRecord):
                refuse_dirty(unchanged(txn, seen))
            move_to_trash(Nodes(txn), kind, node, self._session.clock(), in_transaction)

        self._session.index.begin_trash()
        hit(Failpoint.TRASH_FORMAT)
        self._session.index.update(change)
        return seen

    async def _end_readers(self, record: RbdSnapshotRecord) -> None:
        """Have a snapshot closed that another gateway has opened before it knew."""
        asking = partial(self._session.bus.ask, record.snap, Manner.FIRM)
        doing = f"ending readers of snapshot {record.id} at other gateways"
        await blocking_apart(CHANGING, try_to, doing, asking)

    def restore(
        self, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode
    ) -> Steps[None]:
        """See `Pool.restore`. No gateway can have it open."""

        def change(txn: Transaction) -> None:
            take_from_trash(Nodes(txn), kind, node, naming, in_transaction)

        async def steps() -> None:
            await blocking_apart(CHANGING, self._session.index.update, change)
            hit(Failpoint.RESTORE_COMMITTED)

        return self._nodes.exclusive_soon(node, steps)
