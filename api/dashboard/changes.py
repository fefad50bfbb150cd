"""What the dashboard's pages change: `/do/...`, by POST, on behalf of the tenant whose it is.

The rules are block storage's. What cannot be undone names what it destroys (`name`), as the
operator has typed it, so that a page which shows yesterday's list deletes nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from api.control import Body, LimitsBody
from api.dashboard.audit import AuditedRoute
from bockd.accountcontrol import AccountControl
from bockd.blockstorage.contract import BlockStorage, ImageId, NewSnapshot, NewVolume, TenantId
from bockd.blockstorage.trashcontract import StorageWithTrash
from bockd.control import Control
from bockd.errors import ConflictError, InvalidRequestError, NotFoundError
from bockd.model import DeviceProfile, IoLimits, SnapshotId, VolumeId
from bockd.pool.reports import CheckReport
from bockd.profiles.builtin import built_in
from bockd.profiles.document import MAX_SEED, read_profile

CHANGES_PATH = "/do"

Id = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class CreateVolume(Body):
    """A blank volume has a size; one from a snapshot or an image may leave that to it."""

    tenant: str
    name: str
    size_bytes: Bytes | None = None
    snapshot: Id | None = None
    image: str | None = None


class OfVolume(Body):
    """A volume of a tenant's."""

    tenant: str
    volume: Id


class TakeSnapshot(OfVolume):
    """`name` is the snapshot's. Clients may be connected."""

    name: str


class Extend(OfVolume):
    """The whole new size."""

    size_bytes: Bytes


class Revert(OfVolume):
    """`name` is the volume's, as its tenant calls it."""

    snapshot: Id
    name: str


class Attach(OfVolume):
    """The server by its id; without a device the next free one."""

    server: str
    device: str | None = None


class Detach(OfVolume):
    """With `force` connections are cut at once."""

    server: str
    force: bool = False


class DeleteVolume(OfVolume):
    """`name` is the volume's, as its tenant calls it, or else its name in the pool."""

    name: str


class DeleteSnapshot(Body):
    """`name` as that of a volume."""

    tenant: str
    snapshot: Id
    name: str


class LimitVolume(OfVolume):
    """Limits that replace those that there are; null: the configuration's."""

    limits: LimitsBody | None


class LimitTenant(Body):
    """The same, of all volumes of a tenant together."""

    tenant: str
    limits: LimitsBody | None


class ProfileVolume(OfVolume):
    """The name of a profile that bockd brings, or one as docs/profiles.md has its fields; null: it
    is itself again."""

    profile: str | dict[str, Any] | None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """None: the profile's own."""

    def wanted(self) -> DeviceProfile | None:
        """Return the profile. Raises NotFoundError, InvalidRequestError."""
        if self.profile is None:
            return None
        given = self.profile
        found = built_in(given) if isinstance(given, str) else read_profile(given)
        return found if self.seed is None else replace(found, seed=self.seed)


class InTrash(Body):
    """What a tenant has in the trash."""

    tenant: str
    node: Id


class DeleteForGood(InTrash):
    """`name` as it was called before it was deleted."""

    name: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of something that was deleted."""

    kept: bool
    """It is in the trash, and can be restored."""


def change_router(
    control: Control, accounts: AccountControl, storage: StorageWithTrash
) -> APIRouter:
    """Build the router of what changes the pool."""
    router = APIRouter(prefix=CHANGES_PATH, route_class=AuditedRoute)
    router.include_router(volume_changes(storage))
    router.include_router(deletions(storage))
    router.include_router(attachment_changes(storage))
    router.include_router(performance_changes(control, accounts, storage))

    @router.post("/check")
    async def check() -> CheckReport:
        return await control.check()

    return router


def volume_changes(storage: BlockStorage) -> APIRouter:
    """Build the router of what is done with volumes and snapshots."""
    router = APIRouter(route_class=AuditedRoute)

    @router.post("/create-volume", status_code=201)
    async def create_volume(body: CreateVolume) -> dict[str, int]:
        new = NewVolume(
            size_gib=None,
            display_name=body.name,
            snapshot_id=None if body.snapshot is None else SnapshotId(body.snapshot),
            image_id=None if body.image is None else ImageId(body.image),
            size_bytes=body.size_bytes,
        )
        return {"id": (await storage.create_volume(TenantId(body.tenant), new)).id}

    @router.post("/snapshot", status_code=201)
    async def snapshot(body: TakeSnapshot) -> dict[str, int]:
        new = NewSnapshot(VolumeId(body.volume), display_name=body.name, force=True)
        return {"id": (await storage.create_snapshot(TenantId(body.tenant), new)).id}

    @router.post("/extend", status_code=204)
    async def extend(body: Extend) -> None:
        await storage.extend_volume(TenantId(body.tenant), VolumeId(body.volume), body.size_bytes)

    @router.post("/revert", status_code=204)
    async def revert(body: Revert) -> None:
        await confirm_volume(storage, body)
        await storage.revert_volume(
            TenantId(body.tenant), VolumeId(body.volume), SnapshotId(body.snapshot)
        )

    @router.post("/reopen", status_code=204)
    async def reopen(body: OfVolume) -> None:
        await storage.reopen_volume(TenantId(body.tenant), VolumeId(body.volume))

    return router


def deletions(storage: StorageWithTrash) -> APIRouter:
    """Build the router of what is deleted, restored, and deleted for good."""
    router = APIRouter(route_class=AuditedRoute)
    trash = storage.trash

    async def kept(tenant: str, node: int) -> Deleted:
        try:
            await trash.show(TenantId(tenant), node)
        except NotFoundError:
            return Deleted(kept=False)
        return Deleted(kept=True)

    @router.post("/delete-volume")
    async def delete_volume(body: DeleteVolume) -> Deleted:
        await confirm_volume(storage, body)
        await storage.delete_volume(TenantId(body.tenant), VolumeId(body.volume))
        return await kept(body.tenant, body.volume)

    @router.post("/delete-snapshot")
    async def delete_snapshot(body: DeleteSnapshot) -> Deleted:
        tenant, wanted = TenantId(body.tenant), SnapshotId(body.snapshot)
        found = await storage.show_snapshot(tenant, wanted)
        assert found.backing is not None
        confirm(found.display_name or found.backing.name, body.name)
        await storage.delete_snapshot(tenant, wanted)
        return await kept(body.tenant, body.snapshot)

    @router.post("/restore", status_code=204)
    async def restore(body: InTrash) -> None:
        await trash.restore(TenantId(body.tenant), body.node)

    @router.post("/delete-for-good", status_code=204)
    async def delete_for_good(body: DeleteForGood) -> None:
        found = await trash.show(TenantId(body.tenant), body.node)
        confirm(found.display_name or found.name, body.name)
        await trash.delete(TenantId(body.tenant), body.node)

    return router


def attachment_changes(storage: BlockStorage) -> APIRouter:
    """Build the router of what is done with attachments."""
    router = APIRouter(route_class=AuditedRoute)

    @router.post("/attach", status_code=204)
    async def attach(body: Attach) -> None:
        if not body.server:
            raise InvalidRequestError("name the server to attach to")
        await storage.attach(
            TenantId(body.tenant), body.server, VolumeId(body.volume), body.device or None
        )

    @router.post("/detach", status_code=204)
    async def detach(body: Detach) -> None:
        await storage.detach(
            TenantId(body.tenant), body.server, VolumeId(body.volume), force=body.force
        )

    return router


def performance_changes(
    control: Control, accounts: AccountControl, storage: BlockStorage
) -> APIRouter:
    """Build the router of limits of I/O and of device profiles. They are the operator's; but the
    volume must be the tenant's that the page has shown."""
    router = APIRouter(route_class=AuditedRoute)

    def asked(limits: LimitsBody | None) -> IoLimits | None:
        return None if limits is None else limits.wanted()

    async def owned(body: OfVolume) -> str:
        return str((await storage.show_volume(TenantId(body.tenant), VolumeId(body.volume))).id)

    @router.post("/limit-volume", status_code=204)
    async def limit_volume(body: LimitVolume) -> None:
        await control.limit_volume(await owned(body), asked(body.limits))

    @router.post("/profile-volume", status_code=204)
    async def profile_volume(body: ProfileVolume) -> None:
        await control.profile_volume(await owned(body), body.wanted())

    @router.post("/limit-tenant", status_code=204)
    async def limit_tenant(body: LimitTenant) -> None:
        await accounts.limit_tenant(body.tenant, asked(body.limits))

    return router


async def confirm_volume(storage: BlockStorage, body: DeleteVolume | Revert) -> None:
    """Raise ConflictError unless the volume's name was typed as it is."""
    found = await storage.show_volume(TenantId(body.tenant), VolumeId(body.volume))
    assert found.backing is not None
    confirm(found.display_name or found.backing.name, body.name)


def confirm(name: str, typed: str) -> None:
    """Raise ConflictError unless the name was typed as it is."""
    if typed != name:
        raise ConflictError(f"this is {name!r}, and {typed!r} was typed: nothing was done")
