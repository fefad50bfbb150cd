"""Serve a volume's metadata, whole and item by item, as Cinder's API does."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Response, status

from api.openstack.access import InTenant
from api.openstack.bodies import MetadataBody, OneItemBody, without_nulls
from api.openstack.media import JsonRoute
from api.openstack.params import InVolume
from api.openstack.replies import MetadataView, OneItem
from api.openstack.values import shown
from bockd.blockstorage.contract import BlockStorage, Edit
from bockd.errors import InvalidRequestError, NotFoundError


async def key_in_path(key: Annotated[str, Path(description="An item's key")]) -> str:
    """Return the path's `{key}`, which may hold any character."""
    return unquote(key)


Key = Annotated[str, Depends(key_in_path)]


def metadata_router(storage: BlockStorage, prefix: str) -> APIRouter:
    """Build the router below `{tenant}` + `prefix` + `/{volume_id}/metadata`."""
    router = APIRouter(
        prefix=f"{prefix}/{{volume_id:node}}/metadata", tags=["volumes"], route_class=JsonRoute
    )

    @router.get("")
    async def list_metadata(tenant: InTenant, volume: InVolume) -> MetadataView:
        """Show a volume's metadata."""
        found = await storage.show_volume(tenant, volume)
        return {"metadata": dict(found.metadata)}

    @router.post("")
    async def add_metadata(tenant: InTenant, volume: InVolume, body: MetadataBody) -> MetadataView:
        """Set some items of a volume's metadata; the others stay."""
        edit = Edit(metadata=without_nulls(body.metadata), keeps_other_metadata=True)
        return {"metadata": dict((await storage.edit_volume(tenant, volume, edit)).metadata)}

    @router.put("")
    async def replace_metadata(
        tenant: InTenant, volume: InVolume, body: MetadataBody
    ) -> MetadataView:
        """Set a volume's metadata; other items are removed."""
        edit = Edit(metadata=without_nulls(body.metadata))
        return {"metadata": dict((await storage.edit_volume(tenant, volume, edit)).metadata)}

    @router.get("/{key}")
    async def show_item(tenant: InTenant, volume: InVolume, key: Key) -> OneItem:
        """Show one item of a volume's metadata."""
        found = await storage.show_volume(tenant, volume)
        if key not in found.metadata:
            raise NotFoundError(f"Metadata item {shown(key)} could not be found.")
        return {"meta": {key: found.metadata[key]}}

    @router.put("/{key}")
    async def set_item(tenant: InTenant, volume: InVolume, key: Key, body: OneItemBody) -> OneItem:
        """Set one item of a volume's metadata."""
        if body.meta.keys() != {key}:
            raise InvalidRequestError(f"meta holds one item, with the path's key {shown(key)!r}")
        edit = Edit(metadata=dict(body.meta), keeps_other_metadata=True)
        await storage.edit_volume(tenant, volume, edit)
        return {"meta": body.meta}

    @router.delete("/{key}", response_class=Response)
    async def remove_item(tenant: InTenant, volume: InVolume, key: Key) -> Response:
        """Remove one item of a volume's metadata."""
        edit = Edit(metadata={key: None}, keeps_other_metadata=True)
        await storage.edit_volume(tenant, volume, edit)
        return Response(status_code=status.HTTP_200_OK)

    return router
