"""Block storage over a pool: the contract, each change driven to its end."""

from __future__ import annotations

from collections.abc import Sequence

from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.changes import Changes
from bockd.blockstorage.cloning import Clones
from bockd.blockstorage.contract import (
    EVERYTHING,
    Attachment,
    Edit,
    Extension,
    Image,
    ImageId,
    Limits,
    NewSnapshot,
    NewVolume,
    Page,
    Snapshot,
    TenantId,
    Volume,
)
from bockd.blockstorage.editing import edit_snapshot, edit_volume
from bockd.blockstorage.holding import Holds
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import OperationRunner, StorageContext
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.snapshots import Snapshots
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashservice import PoolTrash
from bockd.blockstorage.volumes import Volumes, refuse_fetched
from bockd.model import CacheMode, NodeKind, Server, SnapshotId, VolumeId
from bockd.pool.gateways import Gateway
from bockd.pool.reports import Changes as SnapshotChanges
from bockd.pool.reports import Space

_NAMESPACE = "http://docs.openstack.org/volume/ext/{}/api/v1.1"

EXTENSIONS = (
    Extension(
        "os-volumes",
        "Volumes",
        _NAMESPACE.format("volumes"),
        "2011-03-25T00:00:00+00:00",
        "Volumes, and their attachments to servers.",
    ),
    Extension(
        "os-snapshots",
        "Snapshots",
        _NAMESPACE.format("snapshots"),
        "2012-10-30T00:00:00+00:00",
        "Snapshots of volumes, and volumes made from them.",
    ),
    Extension(
        "os-volume_attachments",
        "VolumeAttachments",
        _NAMESPACE.format("volume_attachments"),
        "2011-03-25T00:00:00+00:00",
        "The volumes attached to a server.",
    ),
    Extension(
        "bockd",
        "Bockd",
        _NAMESPACE.format("bockd"),
        "2026-11-24T00:00:00+00:00",
        'The key "bockd" in volumes and snapshots, sizes in bytes, exact space, where snapshots '
        "differ, and the actions os-extend, revert, bockd-reopen, bockd-set-cache, "
        "bockd-discard-cache, bockd-hold and bockd-release of a volume.",
    ),
    Extension(
        "bockd-trash",
        "BockdTrash",
        _NAMESPACE.format("bockd-trash"),
        "2026-11-29T00:00:00+00:00",
        "Volumes and snapshots that were deleted and are kept for some time: they can be restored, "
        "or deleted for good.",
    ),
)
"""The three resources of the specification beyond OpenStack Compute 1.1 (4.1), and ours."""


class PoolBlockStorage:
    """Implements bockd.blockstorage.contract.BlockStorage; see there for what each method promises.
    Operations that only read run at once: a few index lookups, in memory."""

    def __init__(self, context: StorageContext, runner: OperationRunner) -> None:
        self.context = context
        self._index = context.pool.index
        self._quota_of = context.quota_of
        self._runner = runner
        self._volumes = Volumes(context)
        self._snapshots = Snapshots(context)
        self._clones = Clones(context, self._volumes)
        self._changes = Changes(context, self._volumes)
        self._holds = Holds(context)
        self._attachments = Attachments(context)
        self._servers = Servers(context)
        self._trashes = Trash(context)
        self.trash = PoolTrash(self._trashes, runner)
        self._exports = context.exports

    async def list_volumes(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Volume]:
        return self._volumes.list(tenant, page)

    async def create_volume(self, tenant: TenantId, new: NewVolume) -> Volume:
        if new.source_volume is not None:
            return await self._runner.run(self._clones.create(tenant, new))
        return await self._runner.run(self._volumes.create(tenant, new))

    async def show_volume(self, tenant: TenantId, volume: VolumeId) -> Volume:
        return self._volumes.show(tenant, volume)

    async def edit_volume(self, tenant: TenantId, volume: VolumeId, edit: Edit) -> Volume:
        await self._runner.run(self.context.update(edit_volume(tenant, volume, edit)))
        return self._volumes.show(tenant, volume)

    async def edit_snapshot(self, tenant: TenantId, snapshot: SnapshotId, edit: Edit) -> Snapshot:
        await self._runner.run(self.context.update(edit_snapshot(tenant, snapshot, edit)))
        return self._snapshots.show(tenant, snapshot)

    async def delete_volume(
        self,
        tenant: TenantId,
        volume: VolumeId,
        hold: str | None = None,
        *,
        for_good: bool = False,
    ) -> None:
        if not for_good and self._trashes.keeps(tenant, NodeKind.VOLUME, volume):
            await self._runner.run(self._trashes.put(tenant, NodeKind.VOLUME, volume, hold))
        else:
            await self._runner.run(self._volumes.delete(tenant, volume, hold))

    async def extend_volume(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        await self._runner.run(self._changes.extend(tenant, volume, size_bytes))

    async def revert_volume(self, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId) -> None:
        await self._runner.run(self._changes.revert(tenant, volume, snapshot))

    async def reopen_volume(self, tenant: TenantId, volume: VolumeId) -> None:
        await self._runner.run(self._changes.reopen(tenant, volume))

    async def set_volume_cache(self, tenant: TenantId, volume: VolumeId, mode: CacheMode) -> None:
        await self._runner.run(self._changes.set_cache(tenant, volume, mode))

    async def discard_volume_cache(self, tenant: TenantId, volume: VolumeId) -> None:
        await self._runner.run(self._changes.discard_cache(tenant, volume))

    async def hold_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str, instead_of: str | None = None
    ) -> None:
        await self._runner.run(self._holds.hold(tenant, volume, reason, instead_of))

    async def release_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str | None = None
    ) -> None:
        await self._runner.run(self._holds.release(tenant, volume, reason))

    async def volume_space(self, tenant: TenantId, volume: VolumeId) -> Space:
        return await self._runner.run(self._changes.volume_space(tenant, volume))

    async def snapshot_space(self, tenant: TenantId, snapshot: SnapshotId) -> Space:
        return await self._runner.run(self._changes.snapshot_space(tenant, snapshot))

    async def snapshot_changes(
        self, tenant: TenantId, older: SnapshotId, newer: SnapshotId, offset: int = 0
    ) -> SnapshotChanges:
        return await self._runner.run(self._snapshots.changes(tenant, older, newer, offset))

    async def list_snapshots(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Snapshot]:
        return self._snapshots.list(tenant, page)

    async def create_snapshot(self, tenant: TenantId, new: NewSnapshot) -> Snapshot:
        return await self._runner.run(self._snapshots.create(tenant, new))

    async def show_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        return self._snapshots.show(tenant, snapshot)

    async def delete_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        if self._trashes.keeps(tenant, NodeKind.SNAPSHOT, snapshot):
            await self._runner.run(self._trashes.put(tenant, NodeKind.SNAPSHOT, snapshot))
        else:
            await self._runner.run(self._snapshots.delete(tenant, snapshot))

    async def list_attachments(self, tenant: TenantId, server: str) -> list[Attachment]:
        return self._attachments.list(tenant, server)

    async def show_attachment(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        return self._attachments.show(tenant, server, volume)

    async def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Attachment:
        return await self._runner.run(self._attachments.attach(tenant, server, volume, device))

    async def detach(
        self, tenant: TenantId, server: str, volume: VolumeId, *, force: bool = False
    ) -> None:
        await self._runner.run(self._attachments.detach(tenant, server, volume, force=force))

    def connections(self, attachment: Attachment) -> int:
        return self._exports.clients(attachment)

    def gateways(self, attachment: Attachment) -> Sequence[Gateway]:
        return self._attachments.gateways(attachment)

    async def list_servers(self, tenant: TenantId) -> list[Server]:
        return self._servers.of_tenant(tenant)

    async def show_server(self, tenant: TenantId, server: str) -> Server:
        return self._servers.show(tenant, server)

    async def limits(self, tenant: TenantId) -> Limits:
        with self._index.reading() as txn:
            record = Ledger(txn).tenant(tenant)
        return Limits(self._quota_of(record), record.used)

    async def list_images(self) -> list[Image]:
        with self._index.reading() as txn:
            images = [record.image for record in Ledger(txn).images() if not record.fetched]
        return sorted(images, key=lambda image: (image.name, image.id))

    async def show_image(self, image: ImageId) -> Image:
        with self._index.reading() as txn:
            record = Ledger(txn).image(image)
        refuse_fetched(record)
        return record.image

    async def list_extensions(self) -> list[Extension]:
        return list(EXTENSIONS)
