"""Snapshots (section 4.4.4)."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from api.openstack.access import InTenant
from api.openstack.bodies import CreateSnapshot
from api.openstack.media import JsonRoute
from api.openstack.params import InPage, InSnapshot
from api.openstack.replies import (
    NewSnapshotView,
    OneSnapshot,
    OneSpace,
    SnapshotList,
    view_new_snapshot,
    view_snapshot,
    view_space,
)
from bockd.blockstorage.contract import BlockStorage


def snapshot_router(storage: BlockStorage, prefix: str) -> APIRouter:
    """The endpoints below `{tenant}` + `prefix`."""
    router = APIRouter(prefix=prefix, tags=["snapshots"], route_class=JsonRoute)

    @router.get("")
    @router.get("/detail")
    async def list_snapshots(tenant: InTenant, page: InPage) -> SnapshotList:
        """List snapshots (section 4.4.4.1)."""
        snapshots = await storage.list_snapshots(tenant, page)
        return {"snapshots": [view_snapshot(snapshot) for snapshot in snapshots]}

    @router.post("")
    async def create_snapshot(tenant: InTenant, body: CreateSnapshot) -> NewSnapshotView:
        """Create a snapshot of a volume (section 4.4.4.2)."""
        snapshot = await storage.create_snapshot(tenant, body.snapshot.wanted())
        return {"snapshot": view_new_snapshot(snapshot)}

    @router.get("/{snapshot_id:node}")
    async def show_snapshot(tenant: InTenant, snapshot: InSnapshot) -> OneSnapshot:
        """Show a snapshot (section 4.4.4.3)."""
        view = view_snapshot(await storage.show_snapshot(tenant, snapshot))
        return {"snapshot": view, "snapshots": view}

    @router.get("/{snapshot_id:node}/bockd-space")
    async def snapshot_space(tenant: InTenant, snapshot: InSnapshot) -> OneSpace:
        """Measure the space that a snapshot takes, by a walk over its maps."""
        return {"space": view_space(await storage.snapshot_space(tenant, snapshot))}

    @router.delete("/{snapshot_id:node}", response_class=Response)
    async def delete_snapshot(tenant: InTenant, snapshot: InSnapshot) -> Response:
        """Delete a snapshot (section 4.4.4.4)."""
        await storage.delete_snapshot(tenant, snapshot)
        return Response(status_code=status.HTTP_200_OK)

    return router
