"""A `BlockStorage` that keeps its records in memory and no data at all.

It judges with the same rules as the real one (`bockd.blockstorage.rules`), so that what the public
API makes of its answers and refusals can be tested without an engine.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

from bockd.blockstorage import rules
from bockd.blockstorage.contract import (
    EVERYTHING,
    Attachment,
    Backing,
    BlockStorage,
    Edit,
    Extension,
    Image,
    ImageId,
    Limits,
    NewSnapshot,
    NewVolume,
    Page,
    Quota,
    Snapshot,
    Status,
    TenantId,
    Usage,
    Volume,
)
from bockd.errors import InvalidRequestError, NotFoundError, OverLimitError
from bockd.model import (
    GIB,
    CacheMode,
    NodeKind,
    Server,
    ServerKind,
    SnapshotId,
    VolumeId,
    export_name,
)
from bockd.pool.gateways import Gateway
from bockd.pool.reports import Changes, Space
from bockd.pool.unsupported import no_cache

EXTENSION = Extension(
    alias="os-volumes",
    name="Volumes",
    namespace="http://docs.openstack.org/volume/ext/volumes/api/v1.1",
    updated="2011-03-25T00:00:00+00:00",
    description="Volumes support",
)


def _backing(kind: NodeKind, node: Volume | Snapshot, size_bytes: int) -> Backing:
    name = f"{kind}-{node.id}"
    return Backing("memory", name, export_name(kind, name), size_bytes, 0, None)


MODEST = Quota(volumes=1000, gigabytes=1000, snapshots=1000)


class MemoryBlockStorage(BlockStorage):
    """See the module."""

    def __init__(self, quota: Quota = MODEST, clock: Callable[[], float] = time.time) -> None:
        self.quota = quota
        self.images: list[Image] = []
        self._clock = clock
        self._ids = itertools.count(1)
        self._volumes: dict[TenantId, dict[VolumeId, Volume]] = {}
        self._snapshots: dict[TenantId, dict[SnapshotId, Snapshot]] = {}

    def volumes_of(self, tenant: TenantId) -> dict[VolumeId, Volume]:
        return self._volumes.setdefault(tenant, {})

    def snapshots_of(self, tenant: TenantId) -> dict[SnapshotId, Snapshot]:
        return self._snapshots.setdefault(tenant, {})

    async def list_volumes(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Volume]:
        return rules.cut_page(self.volumes_of(tenant).values(), rules.check_page(page))

    async def create_volume(self, tenant: TenantId, new: NewVolume) -> Volume:
        size_gib = await self._size_of(tenant, new)
        used = self._usage(tenant)
        if used.volumes >= self.quota.volumes or used.gigabytes + size_gib > self.quota.gigabytes:
            raise OverLimitError(
                f"Volume quota exceeded. You cannot create a volume of size {size_gib}G"
            )
        volume = Volume(
            id=VolumeId(next(self._ids)),
            status=Status.AVAILABLE,
            size_gib=size_gib,
            display_name=rules.check_text("display_name", new.display_name),
            display_description=rules.check_text("display_description", new.display_description),
            availability_zone=new.availability_zone or "nova",
            snapshot_id=new.snapshot_id,
            image_id=new.image_id,
            source_volume=new.source_volume,
            metadata=rules.check_metadata(new.metadata),
            created_at=self._clock(),
            attachment=None,
        )
        size_bytes = new.size_bytes or size_gib * GIB
        volume = dataclasses.replace(volume, backing=_backing(NodeKind.VOLUME, volume, size_bytes))
        self.volumes_of(tenant)[volume.id] = volume
        return dataclasses.replace(volume, status=Status.CREATING)

    async def _size_of(self, tenant: TenantId, new: NewVolume) -> int:
        rules.check_one_source(new)
        if new.source_volume is not None:
            origin = (await self.show_volume(tenant, new.source_volume)).backing
            assert origin is not None
            size_bytes = rules.clone_size(new.source_volume, origin.size_bytes, new)
            return rules.size_in_gib(size_bytes)
        if new.snapshot_id is not None:
            return (await self.show_snapshot(tenant, new.snapshot_id)).size_gib
        exact = rules.exact_size(new.size_gib, new.size_bytes)
        smallest = 1 if new.image_id is None else (await self.show_image(new.image_id)).min_size_gib
        if exact is None:
            if new.image_id is None:
                raise InvalidRequestError("a blank volume needs a size")
            return smallest
        size_gib = rules.size_in_gib(exact)
        if size_gib < smallest:
            raise InvalidRequestError(f"the image needs {smallest} GiB")
        return size_gib

    async def show_volume(self, tenant: TenantId, volume: VolumeId) -> Volume:
        found = self.volumes_of(tenant).get(volume)
        if found is None:
            raise rules.not_found(NodeKind.VOLUME, volume)
        return found

    async def edit_volume(self, tenant: TenantId, volume: VolumeId, edit: Edit) -> Volume:
        found = await self.show_volume(tenant, volume)
        edited = dataclasses.replace(
            found,
            display_name=rules.edited_text("name", found.display_name, edit.display_name),
            display_description=rules.edited_text(
                "description", found.display_description, edit.display_description
            ),
            metadata=rules.edited_metadata(found.metadata, edit),
        )
        self.volumes_of(tenant)[volume] = edited
        return edited

    async def edit_snapshot(self, tenant: TenantId, snapshot: SnapshotId, edit: Edit) -> Snapshot:
        found = await self.show_snapshot(tenant, snapshot)
        edited = dataclasses.replace(
            found,
            display_name=rules.edited_text("name", found.display_name, edit.display_name),
            display_description=rules.edited_text(
                "description", found.display_description, edit.display_description
            ),
        )
        self.snapshots_of(tenant)[snapshot] = edited
        return edited

    async def delete_volume(
        self,
        tenant: TenantId,
        volume: VolumeId,
        hold: str | None = None,
        *,
        for_good: bool = False,
    ) -> None:
        del for_good  # there is no trash
        found = await self.show_volume(tenant, volume)
        if hold is not None:
            rules.check_is_held(volume, found.status, found.hold, hold)
        rules.check_move(NodeKind.VOLUME, volume, found.status, Status.DELETING)
        del self.volumes_of(tenant)[volume]

    async def extend_volume(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        found = await self.show_volume(tenant, volume)
        rules.check_can_be_extended(volume, found.status)
        assert found.backing is not None
        if size_bytes <= found.backing.size_bytes:
            raise InvalidRequestError("it can only grow")
        self.volumes_of(tenant)[volume] = dataclasses.replace(
            found,
            size_gib=rules.size_in_gib(size_bytes),
            backing=dataclasses.replace(found.backing, size_bytes=size_bytes),
        )

    async def revert_volume(self, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId) -> None:
        rules.check_can_be_reverted(volume, (await self.show_volume(tenant, volume)).status)
        source = await self.show_snapshot(tenant, snapshot)
        rules.check_can_be_reverted_to(snapshot, source.status, source.volume_id, volume)

    async def reopen_volume(self, tenant: TenantId, volume: VolumeId) -> None:
        found = await self.show_volume(tenant, volume)
        rules.check_can_be_reopened(volume, found.status, None)

    async def set_volume_cache(self, tenant: TenantId, volume: VolumeId, mode: CacheMode) -> None:
        await self.show_volume(tenant, volume)
        raise no_cache("memory")

    async def discard_volume_cache(self, tenant: TenantId, volume: VolumeId) -> None:
        await self.show_volume(tenant, volume)
        raise no_cache("memory")

    async def hold_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str, instead_of: str | None = None
    ) -> None:
        found = await self.show_volume(tenant, volume)
        rules.check_can_be_held(volume, found.status, found.hold, reason, instead_of)
        self.volumes_of(tenant)[volume] = dataclasses.replace(
            found, status=Status.MAINTENANCE, hold=rules.check_reason(reason)
        )

    async def release_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str | None = None
    ) -> None:
        found = await self.show_volume(tenant, volume)
        rules.check_is_held(volume, found.status, found.hold, reason)
        self.volumes_of(tenant)[volume] = dataclasses.replace(
            found, status=Status.AVAILABLE, hold=None
        )

    async def volume_space(self, tenant: TenantId, volume: VolumeId) -> Space:
        await self.show_volume(tenant, volume)
        return Space(0, 0)

    async def snapshot_space(self, tenant: TenantId, snapshot: SnapshotId) -> Space:
        await self.show_snapshot(tenant, snapshot)
        return Space(0, 0)

    async def snapshot_changes(
        self, tenant: TenantId, older: SnapshotId, newer: SnapshotId, offset: int = 0
    ) -> Changes:
        for one in (older, newer):
            found = await self.show_snapshot(tenant, one)
        assert found.backing is not None
        return Changes((), found.backing.size_bytes)

    async def list_snapshots(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Snapshot]:
        return rules.cut_page(self.snapshots_of(tenant).values(), rules.check_page(page))

    async def create_snapshot(self, tenant: TenantId, new: NewSnapshot) -> Snapshot:
        origin = await self.show_volume(tenant, new.volume_id)
        rules.check_can_be_snapshotted(origin.id, origin.status, force=new.force)
        if not new.consumes_quota:
            mine = self.snapshots_of(tenant).values()
            same = [one for one in mine if one.volume_id == origin.id and not one.consumes_quota]
            rules.check_uncounted(origin.id, len(same))
        elif self._usage(tenant).snapshots >= self.quota.snapshots:
            raise OverLimitError("Snapshot quota exceeded.")
        snapshot = Snapshot(
            id=SnapshotId(next(self._ids)),
            volume_id=origin.id,
            status=Status.AVAILABLE,
            size_gib=origin.size_gib,
            display_name=rules.check_text("display_name", new.display_name),
            display_description=rules.check_text("display_description", new.display_description),
            created_at=self._clock(),
            consumes_quota=new.consumes_quota,
        )
        backing = _backing(NodeKind.SNAPSHOT, snapshot, origin.size_gib * GIB)
        snapshot = dataclasses.replace(snapshot, backing=backing)
        self.snapshots_of(tenant)[snapshot.id] = snapshot
        return dataclasses.replace(snapshot, status=Status.CREATING)

    async def show_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        found = self.snapshots_of(tenant).get(snapshot)
        if found is None:
            raise rules.not_found(NodeKind.SNAPSHOT, snapshot)
        return found

    async def delete_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        await self.show_snapshot(tenant, snapshot)
        del self.snapshots_of(tenant)[snapshot]

    async def list_attachments(self, tenant: TenantId, server: str) -> list[Attachment]:
        rules.check_server(server)
        attached = [volume.attachment for volume in self.volumes_of(tenant).values()]
        return [one for one in attached if one is not None and one.server_id == server]

    async def show_attachment(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        for attachment in await self.list_attachments(tenant, server):
            if attachment.volume_id == volume:
                return attachment
        raise NotFoundError(f"Volume {volume} is not attached to server {server}.")

    async def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Attachment:
        taken = [one.device for one in await self.list_attachments(tenant, server)]
        found = await self.show_volume(tenant, volume)
        rules.check_move(NodeKind.VOLUME, volume, found.status, Status.ATTACHING)
        chosen = rules.choose_device(device, taken)
        attachment = Attachment(volume, server, chosen, f"secret-{volume}", self._clock())
        self.volumes_of(tenant)[volume] = dataclasses.replace(
            found, status=Status.IN_USE, attachment=attachment
        )
        return attachment

    def connections(self, attachment: Attachment) -> int:
        return 0

    def gateways(self, attachment: Attachment) -> Sequence[Gateway]:
        return []

    async def list_servers(self, tenant: TenantId) -> list[Server]:
        return []

    async def show_server(self, tenant: TenantId, server: str) -> Server:
        return Server(rules.check_server(server), ServerKind.PLAIN)

    async def detach(
        self, tenant: TenantId, server: str, volume: VolumeId, *, force: bool = False
    ) -> None:
        found = await self.show_volume(tenant, volume)
        await self.show_attachment(tenant, server, volume)
        self.volumes_of(tenant)[volume] = dataclasses.replace(
            found, status=Status.AVAILABLE, attachment=None
        )

    async def limits(self, tenant: TenantId) -> Limits:
        return Limits(self.quota, self._usage(tenant))

    def _usage(self, tenant: TenantId) -> Usage:
        volumes = self.volumes_of(tenant).values()
        return Usage(
            volumes=len(volumes),
            gigabytes=sum(volume.size_gib for volume in volumes),
            snapshots=sum(one.consumes_quota for one in self.snapshots_of(tenant).values()),
        )

    async def list_images(self) -> list[Image]:
        return list(self.images)

    async def show_image(self, image: ImageId) -> Image:
        for found in self.images:
            if found.id == image:
                return found
        raise NotFoundError(f"Image {image} could not be found.")

    async def list_extensions(self) -> list[Extension]:
        return [EXTENSION]
