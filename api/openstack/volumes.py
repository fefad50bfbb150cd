"""Volumes (section 4.4.2)."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Response, status

from api.openstack import values
from api.openstack.access import InTenant, Token
from api.openstack.bodies import CreateVolume, EditVolume, VolumeAction
from api.openstack.listing import answer_list
from api.openstack.media import JsonRoute
from api.openstack.params import InForGood, InHold, InPage, InVolume
from api.openstack.replies import (
    OneSpace,
    OneVolume,
    Spelling,
    VolumeList,
    VolumeView,
    as_documented,
    list_volume,
    view_space,
    view_volume,
)
from bockd.blockstorage.contract import BlockStorage, Page, Volume


def volume_router(
    storage: BlockStorage, prefix: str, spelled: Spelling[VolumeView] = as_documented
) -> APIRouter:
    """Build the router below `{tenant}` + `prefix`, with the keys that `spelled` gives replies."""
    router = APIRouter(prefix=prefix, tags=["volumes"], route_class=JsonRoute)

    @router.get("", response_model=VolumeList)
    @router.get("/detail", response_model=VolumeList)
    async def list_volumes(tenant: InTenant, page: InPage) -> Response:
        """List volumes (section 4.4.2.1)."""

        async def fetch(part: Page) -> list[Volume]:
            return await storage.list_volumes(tenant, part)

        return await answer_list("volumes", page, fetch, lambda one: spelled(list_volume(one)))

    @router.post("")
    async def create_volume(tenant: InTenant, body: CreateVolume, token: Token) -> OneVolume:
        """Create a volume: blank, from a snapshot, or from an image (section 4.4.2.2)."""
        wanted = replace(body.volume.wanted(), token=token)
        return {"volume": spelled(view_volume(await storage.create_volume(tenant, wanted)))}

    @router.get("/{volume_id:node}")
    async def show_volume(tenant: InTenant, volume: InVolume) -> OneVolume:
        """Show a volume (section 4.4.2.3)."""
        return {"volume": spelled(view_volume(await storage.show_volume(tenant, volume)))}

    @router.put("/{volume_id:node}")
    async def edit_volume(tenant: InTenant, volume: InVolume, body: EditVolume) -> OneVolume:
        """Change a volume's name, description and metadata, in the form of Cinder's update."""
        edited = await storage.edit_volume(tenant, volume, body.volume.wanted())
        return {"volume": spelled(view_volume(edited))}

    @router.post(
        "/{volume_id:node}/action",
        status_code=status.HTTP_202_ACCEPTED,
        response_class=Response,
    )
    async def act_on_volume(tenant: InTenant, volume: InVolume, body: VolumeAction) -> Response:
        """Grow a volume, revert it to a snapshot, use it again after an error, choose how it is
        cached, or hold and release it, in the form of Cinder's actions."""
        if body.extend is not None:
            await storage.extend_volume(tenant, volume, body.extend.size_bytes())
        elif body.revert is not None:
            source = values.snapshot_id(body.revert.snapshot_id)
            await storage.revert_volume(tenant, volume, source)
        elif body.set_cache is not None:
            await storage.set_volume_cache(tenant, volume, body.set_cache.mode)
        elif body.discard_cache is not None:
            await storage.discard_volume_cache(tenant, volume)
        elif body.hold is not None:
            await storage.hold_volume(tenant, volume, body.hold.reason, body.hold.instead_of)
        elif body.release is not None:
            await storage.release_volume(tenant, volume, body.release.reason)
        else:
            await storage.reopen_volume(tenant, volume)
        return Response(status_code=status.HTTP_202_ACCEPTED)

    @router.get("/{volume_id:node}/bockd-space")
    async def volume_space(tenant: InTenant, volume: InVolume) -> OneSpace:
        """Measure the space that a volume takes, by a walk over its maps."""
        return {"space": view_space(await storage.volume_space(tenant, volume))}

    @router.delete(
        "/{volume_id:node}", status_code=status.HTTP_202_ACCEPTED, response_class=Response
    )
    async def delete_volume(
        tenant: InTenant, volume: InVolume, for_good: InForGood, hold: InHold = None
    ) -> Response:
        """Delete a volume (section 4.4.2.4); with `hold`, only if it is held for this reason; with
        `bockd-for-good=true`, past the trash."""
        await storage.delete_volume(tenant, volume, hold, for_good=for_good)
        return Response(status_code=status.HTTP_202_ACCEPTED)

    return router
