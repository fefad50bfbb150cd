"""A pool's snapshots: taking and deleting them, and volumes that become one. Each is a snap.

What bockd.pool.pool says about errors and about `in_transaction` holds here.
"""

from __future__ import annotations

from functools import partial

from bockd.drivers.rbd.connection import Connected
from bockd.drivers.rbd.images import discard_image, new_name, remove_snap, take_snap
from bockd.drivers.rbd.lost import damaged_if_missing
from bockd.drivers.rbd.making import making
from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opened import refuse_dirty, refuse_unusable
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    new_node,
    put_record,
    snapshot_record,
    snapshot_records,
    unchanged,
    volume_record,
    volume_records,
)
from bockd.drivers.rbd.removals import try_to
from bockd.drivers.rbd.session import CHANGING
from bockd.drivers.rbd.vacating import look_at_volume, reach_content, vacate, vacate_snapshot
from bockd.errors import InUseError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.choices import name_of
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming, WithSnapshot
from bockd.runtime.steps import Steps, blocking_apart, try_spawn
from bockd.validation import check_name


class SnapshotOperations:
    """What can be done to a pool's snapshots."""

    def __init__(self, nodes: OpenNodes) -> None:
        self._nodes = nodes
        self._session = nodes.session

    def create(
        self, volume: VolumeId, name: str | Naming, in_transaction: WithSnapshot
    ) -> Steps[RbdSnapshotRecord]:
        """See `Pool.create_snapshot`. Whoever has the volume open freezes its image: each write
        that was answered before is in the snap, whichever gateway answered it. What this one has
        answered and not written back is written back first; InUseError also means that another
        gateway has clients of a volume that is written back."""
        if isinstance(name, str):
            check_name(name)

        async def steps() -> RbdSnapshotRecord:
            async with self._nodes.written_through(volume):
                return await blocking_apart(CHANGING, self._create, volume, name, in_transaction)

        async def drained() -> RbdSnapshotRecord:
            # While clients go on: their writes wait only for what is dirty after that.
            await self._nodes.drain(volume)
            return await self._nodes.exclusive_soon(volume, steps)

        return drained()

    def _create(
        self, volume: VolumeId, naming: str | Naming, in_transaction: WithSnapshot
    ) -> RbdSnapshotRecord:
        snap = new_name()

        def change(txn: Transaction) -> RbdSnapshotRecord:
            permit.check(txn)
            now = volume_record(txn, volume)
            refuse_unusable(now)
            if now.image != seen.image:
                raise InUseError(f"another gateway has just reverted volume {volume}; try again")
            return self._add(txn, seen, snap, naming, in_transaction)

        refuse_unusable(look_at_volume(self._session, volume))
        seen = reach_content(self._session, volume)
        with making(
            self._session.index, f"snap {snap}", lambda: self._remove_snap(seen.image, snap)
        ) as permit:
            self._take(seen, snap)
            record = self._session.index.update(change)
        hit(Failpoint.IMAGE_NAMED)
        return record

    def _take(self, seen: RbdVolumeRecord, snap: str) -> None:
        with damaged_if_missing(self._session.index, seen):
            self._session.images.hand_over(
                seen.image,
                f"taking a snap of image {seen.image}",
                lambda connected: take_snap(connected.cluster, connected.ioctx, seen.image, snap),
            )
        hit(Failpoint.IMAGE_MADE)

    def _add(
        self,
        txn: Transaction,
        origin: RbdVolumeRecord,
        snap: str,
        naming: str | Naming,
        in_transaction: WithSnapshot,
    ) -> RbdSnapshotRecord:
        nodes = Nodes(txn)
        snapshot = SnapshotId(new_node(txn))
        record = RbdSnapshotRecord(
            id=snapshot,
            name=name_of(naming, nodes, snapshot),
            volume=origin.id,
            size_bytes=origin.size_bytes,
            created_at=self._session.clock(),
            content_bytes=origin.content_bytes,
            image=origin.image,
            snap=snap,
            depth=origin.depth,
        )
        nodes.take_name(NodeKind.SNAPSHOT, record.name, snapshot)
        put_record(txn, record)
        in_transaction(txn, record)
        return record

    def freeze(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> Steps[RbdSnapshotRecord]:
        """See `Pool.freeze_volume`. Its image stays, and has a snap."""

        async def steps() -> RbdSnapshotRecord:
            self._nodes.refuse_used(NodeKind.VOLUME, volume)
            await self._nodes.close_volume(volume)
            return await blocking_apart(CHANGING, self._freeze, volume, naming, in_transaction)

        return self._nodes.exclusive_soon(volume, steps)

    def _freeze(
        self, volume: VolumeId, naming: Naming, in_transaction: WithSnapshot
    ) -> RbdSnapshotRecord:
        snap = new_name()

        def change(txn: Transaction) -> RbdSnapshotRecord:
            permit.check(txn)
            record = unchanged(txn, seen)
            refuse_unusable(record)
            refuse_dirty(record)
            Nodes(txn).forget(NodeKind.VOLUME, volume, record.name)
            return self._add(txn, record, snap, naming, in_transaction)

        refuse_unusable(look_at_volume(self._session, volume))
        seen = vacate(self._session, volume)
        with making(
            self._session.index, f"snap {snap}", lambda: self._remove_snap(seen.image, snap)
        ) as permit:
            self._take(seen, snap)
            record = self._session.index.update(change)
        hit(Failpoint.IMAGE_NAMED)
        return record

    def delete(self, snapshot: SnapshotId, in_transaction: WithSnapshot) -> Steps[None]:
        """See `Pool.delete_snapshot`. What clones of it show stays. InUseError also means readers
        at another gateway."""

        def change(txn: Transaction) -> RbdSnapshotRecord:
            record = snapshot_record(txn, snapshot)
            Nodes(txn).forget(NodeKind.SNAPSHOT, snapshot, record.name)
            in_transaction(txn, record)
            return record

        def forget() -> RbdSnapshotRecord:
            vacate_snapshot(self._session, snapshot)
            return self._session.index.update(change)

        async def steps() -> None:
            self._nodes.refuse_used(NodeKind.SNAPSHOT, snapshot)
            await self._nodes.close_snapshot(snapshot)
            record = await blocking_apart(CHANGING, forget)
            hit(Failpoint.IMAGE_FORGOTTEN)
            self._session.removals.expect()
            self._nodes.fronts.forget_snapshot(record)
            try_spawn(self._nodes.spawn, self._discard(record))

        return self._nodes.exclusive_soon(snapshot, steps)

    async def _discard(self, record: RbdSnapshotRecord) -> None:
        """Remove a snap that nothing names any more, and its image if nothing names that either, in
        the background."""
        doing = f"removing snap {record.snap} of image {record.image}"

        def is_last() -> bool:
            # It may have been opened by another gateway before that knew.
            self._session.bus.ask(record.snap, Manner.FIRM)
            # Now, not when it was forgotten: the volume may have been deleted since, and its image
            # stayed for this snap. Whoever deletes it later has it removed after this one.
            with self._session.index.reading() as txn:
                return not is_named(txn, record.image)

        def remove(connected: Connected, *, image_too: bool) -> None:
            remove_snap(connected.cluster, connected.ioctx, record.image, record.snap)
            if image_too:
                discard_image(connected.ioctx, record.image)

        def ask() -> None:
            removal = partial(remove, image_too=is_last())
            self._session.removals.put(record.image, doing, removal)

        def ask_again(connected: Connected) -> None:
            remove(connected, image_too=is_last())

        if not await blocking_apart(CHANGING, try_to, doing, ask):
            self._session.removals.owe(record.image, doing, ask_again)

    def _remove_snap(self, image: str, snap: str) -> None:
        self._session.images.hand_over(
            image,
            f"removing snap {snap} of image {image}",
            lambda connected: remove_snap(connected.cluster, connected.ioctx, image, snap),
        )


def is_named(txn: Transaction, image: str) -> bool:
    """Return whether a volume or snapshot is, or is of, this image."""
    return any(one.image == image for one in volume_records(txn)) or any(
        one.image == image for one in snapshot_records(txn)
    )
