"""A pool's volumes: creating, cloning, growing, reverting, filling, reopening and deleting them.

What bockd.pool.pool says about errors and about `in_transaction` holds here. Any gateway may do any
of it to any volume: the index decides. An operation reads a record, changes something in the
cluster, and commits only if the record is what it was. What takes a volume from its clients is done
when no gateway has it: a record that names none says so, since a gateway writes nothing before its
name is there. So the volume is taken from whoever has it, and given back, and then the record must
be the same in the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.drivers.rbd.images import (
    clone_image,
    create_image,
    discard_image,
    grow_image,
    new_name,
    remove_image,
)
from bockd.drivers.rbd.lost import damaged_if_missing
from bockd.drivers.rbd.making import making
from bockd.drivers.rbd.opened import refuse_dirty, refuse_unusable
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    new_node,
    put_record,
    snapshot_record,
    unchanged,
    volume_record,
)
from bockd.drivers.rbd.session import CHANGING
from bockd.drivers.rbd.vacating import look_at_snapshot, look_at_volume, reach, vacate
from bockd.errors import ConflictError, InUseError, InvalidRequestError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.choices import check_new_volume, content_of, name_of, size_of
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming, WithVolume
from bockd.runtime.steps import Steps, blocking_apart, call_apart
from bockd.validation import check_volume_size

Showing = Callable[[RbdVolumeRecord, RbdSnapshotRecord], RbdVolumeRecord]
"""Checks that a volume may show a snapshot, and returns the record that it has then, but for its
image."""


class VolumeOperations:
    """What can be done to a pool's volumes."""

    def __init__(self, nodes: OpenNodes) -> None:
        self._nodes = nodes
        self._session = nodes.session

    # -- creating ----------------------------------------------------------------------------

    def create(
        self,
        name: str | Naming,
        size_bytes: int | None,
        from_snapshot: SnapshotId | None,
        in_transaction: WithVolume,
        content_bytes: int | None,
    ) -> Steps[RbdVolumeRecord]:
        """See `Pool.create_volume`."""
        check_new_volume(name, size_bytes, is_clone=from_snapshot is not None)

        def create() -> RbdVolumeRecord:
            source = (
                None if from_snapshot is None else look_at_snapshot(self._session, from_snapshot)
            )
            size = size_of(source, size_bytes)
            return self._create(
                name,
                size,
                source,
                in_transaction,
                content_of(source, size) if source else content_bytes,
            )

        if from_snapshot is None:
            return call_apart(CHANGING, create)
        return self._nodes.exclusive_soon(from_snapshot, call_apart, CHANGING, create)

    def _create(
        self,
        naming: str | Naming,
        size_bytes: int,
        source: RbdSnapshotRecord | None,
        in_transaction: WithVolume,
        content_bytes: int | None,
    ) -> RbdVolumeRecord:
        image = new_name()

        def change(txn: Transaction) -> RbdVolumeRecord:
            permit.check(txn)
            if source is not None:
                snapshot_record(txn, source.id)
            nodes = Nodes(txn)
            volume = VolumeId(new_node(txn))
            record = RbdVolumeRecord(
                id=volume,
                name=name_of(naming, nodes, volume),
                size_bytes=size_bytes,
                created_at=self._session.clock(),
                from_snapshot=source.id if source else None,
                failed=None,
                content_bytes=content_bytes,
                image=image,
                depth=source.depth + 1 if source else 0,
            )
            nodes.take_name(NodeKind.VOLUME, record.name, volume)
            put_record(txn, record)
            in_transaction(txn, record)
            return record

        with making(self._session.index, f"image {image}", lambda: self._remove(image)) as permit:
            self._make(image, size_bytes, source)
            record = self._session.index.update(change)
        hit(Failpoint.IMAGE_NAMED)
        return record

    def _make(self, image: str, size_bytes: int, source: RbdSnapshotRecord | None) -> None:
        with self._session.images.use() as (_, ioctx):
            if source is None:
                create_image(ioctx, image, size_bytes)
            else:
                larger = size_bytes if size_bytes > source.size_bytes else None
                with damaged_if_missing(self._session.index, source):
                    clone_image(ioctx, source.image, source.snap, image, larger)
        hit(Failpoint.IMAGE_MADE)

    # -- changing ----------------------------------------------------------------------------

    def extend(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume
    ) -> Steps[RbdVolumeRecord]:
        """See `Pool.extend_volume`. Whoever has the volume makes its image larger."""
        check_volume_size(size_bytes)

        async def steps() -> RbdVolumeRecord:
            record = await blocking_apart(
                CHANGING, self._extend, volume, size_bytes, in_transaction
            )
            if (opened := self._nodes.volumes.get(volume)) is not None:
                opened.grow(max(record.size_bytes, opened.device.size_bytes))
            return record

        return self._nodes.exclusive_soon(volume, steps)

    def _extend(
        self, volume: VolumeId, size_bytes: int, in_transaction: WithVolume
    ) -> RbdVolumeRecord:
        def judged(record: RbdVolumeRecord) -> RbdVolumeRecord:
            refuse_unusable(record)
            if size_bytes <= record.size_bytes:
                raise InvalidRequestError(
                    f"volume {volume} has {record.size_bytes} bytes already; it can only grow"
                )
            return record

        def change(txn: Transaction) -> RbdVolumeRecord:
            record = judged(volume_record(txn, volume))
            if record.image != seen.image:
                raise InUseError(f"another gateway has just reverted volume {volume}; try again")
            record = replace(record, size_bytes=size_bytes, content_bytes=None)
            put_record(txn, record)
            in_transaction(txn, record)
            return record

        judged(look_at_volume(self._session, volume))
        seen = judged(reach(self._session, volume))
        with damaged_if_missing(self._session.index, seen):
            self._session.images.hand_over(
                seen.image,
                f"growing image {seen.image}",
                lambda connected: grow_image(connected.ioctx, seen.image, size_bytes),
            )
        hit(Failpoint.IMAGE_MADE)
        record = self._session.index.update(change)
        hit(Failpoint.IMAGE_NAMED)
        return record

    def reopen(self, volume: VolumeId, in_transaction: WithVolume) -> Steps[RbdVolumeRecord]:
        """See `Pool.reopen_volume`."""

        def change(txn: Transaction) -> RbdVolumeRecord:
            record = replace(volume_record(txn, volume), failed=None)
            put_record(txn, record)
            in_transaction(txn, record)
            return record

        async def steps() -> RbdVolumeRecord:
            self._nodes.refuse_used(NodeKind.VOLUME, volume)
            # It is refused until it is reopened, so nothing can be written back.
            await self._nodes.close_volume(volume, keep_dirty=True)
            record = await blocking_apart(CHANGING, self._session.index.update, change)
            self._nodes.refusals.pop(volume, None)
            return record

        return self._nodes.exclusive_soon(volume, steps)

    def delete(self, volume: VolumeId, in_transaction: WithVolume) -> Steps[None]:
        """See `Pool.delete_volume`. What is dirty here is not written back, but goes with the
        volume. InUseError also means clients at another gateway, or that it is dirty there."""

        def forget() -> RbdVolumeRecord:
            seen = vacate(self._session, volume)

            def change(txn: Transaction) -> None:
                record = unchanged(txn, seen)
                Nodes(txn).forget(NodeKind.VOLUME, volume, record.name)
                in_transaction(txn, record)

            self._session.index.update(change)
            hit(Failpoint.IMAGE_FORGOTTEN)
            return seen

        async def steps() -> None:
            self._nodes.refuse_used(NodeKind.VOLUME, volume)
            await self._nodes.close_volume(volume, keep_dirty=True)
            seen = await blocking_apart(CHANGING, forget)
            self._nodes.refusals.pop(volume, None)
            self._nodes.left_dirty.pop(volume, None)
            self._discard(seen.image)
            await self._nodes.fronts.discard_log(seen.image, keep=False)

        return self._nodes.exclusive_soon(volume, steps)

    # -- showing a snapshot ------------------------------------------------------------------

    def revert(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> Steps[RbdVolumeRecord]:
        """See `Pool.revert_volume`. A clone takes the place of the volume's image."""

        def shown(current: RbdVolumeRecord, source: RbdSnapshotRecord) -> RbdVolumeRecord:
            if source.volume != volume:
                raise ConflictError(f"snapshot {snapshot} is not one of volume {volume}")
            return current

        return self._nodes.exclusive_soon(
            volume, self._show, volume, snapshot, shown, in_transaction
        )

    def fill(
        self, volume: VolumeId, snapshot: SnapshotId, in_transaction: WithVolume
    ) -> Steps[RbdVolumeRecord]:
        """See `Pool.fill_volume`. A clone takes the place of the volume's image."""

        def shown(current: RbdVolumeRecord, source: RbdSnapshotRecord) -> RbdVolumeRecord:
            size_of(source, current.size_bytes)
            return replace(current, from_snapshot=snapshot)

        return self._nodes.exclusive_soon(
            volume, self._nodes.exclusive_soon, snapshot,
            self._show, volume, snapshot, shown, in_transaction,
        )  # fmt: skip

    async def _show(
        self,
        volume: VolumeId,
        snapshot: SnapshotId,
        shown: Showing,
        in_transaction: WithVolume,
    ) -> RbdVolumeRecord:
        self._nodes.refuse_used(NodeKind.VOLUME, volume)
        await self._nodes.close_volume(volume)
        old, record = await blocking_apart(
            CHANGING, self._replace, volume, snapshot, shown, in_transaction
        )
        self._discard(old)
        return record

    def _replace(
        self,
        volume: VolumeId,
        snapshot: SnapshotId,
        shown: Showing,
        in_transaction: WithVolume,
    ) -> tuple[str, RbdVolumeRecord]:
        """Give a volume a clone of a snapshot as its image. Return the old image, too."""
        source = look_at_snapshot(self._session, snapshot)
        image = new_name()

        def judged(current: RbdVolumeRecord) -> RbdVolumeRecord:
            refuse_unusable(current)
            content = content_of(source, current.size_bytes)
            return replace(shown(current, source), content_bytes=content)

        def change(txn: Transaction) -> RbdVolumeRecord:
            permit.check(txn)
            snapshot_record(txn, snapshot)
            current = judged(unchanged(txn, seen))
            refuse_dirty(current)
            # Who had the old image, and does not know, finds that it is not the last any more.
            record = replace(
                current,
                image=image,
                depth=source.depth + 1,
                holder=None,
                run=None,
                address=None,
                epoch=current.epoch + 1,
            )
            put_record(txn, record)
            in_transaction(txn, record)
            return record

        judged(look_at_volume(self._session, volume))
        seen = vacate(self._session, volume)
        with making(self._session.index, f"image {image}", lambda: self._remove(image)) as permit:
            self._make(image, seen.size_bytes, source)
            record = self._session.index.update(change)
        hit(Failpoint.IMAGE_FORGOTTEN)
        return seen.image, record

    # -- removing ----------------------------------------------------------------------------

    def _discard(self, image: str) -> None:
        """Remove an image that nothing names any more, in the background."""
        self._nodes.fronts.forget_volume(image)
        self._session.removals.put(
            image,
            f"removing image {image}",
            lambda connected: discard_image(connected.ioctx, image),
        )

    def _remove(self, image: str) -> None:
        with self._session.images.use() as (_, ioctx):
            remove_image(ioctx, image)
