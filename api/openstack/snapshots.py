"""Snapshots (section 4.4.4)."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from api.openstack.access import InTenant
from api.openstack.bodies import CreateSnapshot, EditSnapshot
from api.openstack.listing import answer_list
from api.openstack.media import JsonRoute
from api.openstack.params import InChanges, InPage, InSnapshot
from api.openstack.replies import (
    NewSnapshotView,
    OneChanges,
    OneSnapshot,
    OneSpace,
    SnapshotList,
    SnapshotView,
    Spelling,
    as_documented,
    view_changes,
    view_new_snapshot,
    view_snapshot,
    view_space,
)
from bockd.blockstorage.contract import BlockStorage, Page, Snapshot


def snapshot_router(
    storage: BlockStorage, prefix: str, spelled: Spelling[SnapshotView] = as_documented
) -> APIRouter:
    """Build the router below `{tenant}` + `prefix`, with the keys that `spelled` gives replies."""
    router = APIRouter(prefix=prefix, tags=["snapshots"], route_class=JsonRoute)

    @router.get("", response_model=SnapshotList)
    @router.get("/detail", response_model=SnapshotList)
    async def list_snapshots(tenant: InTenant, page: InPage) -> Response:
        """List snapshots (section 4.4.4.1)."""

        async def fetch(part: Page) -> list[Snapshot]:
            return await storage.list_snapshots(tenant, part)

        return await answer_list("snapshots", page, fetch, lambda one: spelled(view_snapshot(one)))

    @router.post("")
    async def create_snapshot(tenant: InTenant, body: CreateSnapshot) -> NewSnapshotView:
        """Create a snapshot of a volume (section 4.4.4.2)."""
        snapshot = await storage.create_snapshot(tenant, body.snapshot.wanted())
        return {"snapshot": spelled(view_new_snapshot(snapshot))}

    @router.get("/{snapshot_id:node}")
    async def show_snapshot(tenant: InTenant, snapshot: InSnapshot) -> OneSnapshot:
        """Show a snapshot (section 4.4.4.3)."""
        view = spelled(view_snapshot(await storage.show_snapshot(tenant, snapshot)))
        return {"snapshot": view, "snapshots": view}

    @router.put("/{snapshot_id:node}")
    async def edit_snapshot(
        tenant: InTenant, snapshot: InSnapshot, body: EditSnapshot
    ) -> NewSnapshotView:
        """Change a snapshot's name and description, in the form of Cinder's update."""
        edited = await storage.edit_snapshot(tenant, snapshot, body.wanted())
        return {"snapshot": spelled(view_snapshot(edited))}

    @router.get("/{snapshot_id:node}/bockd-space")
    async def snapshot_space(tenant: InTenant, snapshot: InSnapshot) -> OneSpace:
        """Measure the space that a snapshot takes, by a walk over its maps."""
        return {"space": view_space(await storage.snapshot_space(tenant, snapshot))}

    @router.get("/{snapshot_id:node}/bockd-changes")
    async def snapshot_changes(
        tenant: InTenant, snapshot: InSnapshot, asked: InChanges
    ) -> OneChanges:
        """Find where a snapshot may differ from an older one, some ranges at once."""
        older, offset = asked
        found = await storage.snapshot_changes(tenant, older, snapshot, offset)
        return {"changes": view_changes(found)}

    # Cinder's clients expect Cinder's status, under Cinder's path: HP's document says 200.
    cinder = spelled is not as_documented
    deleted = status.HTTP_202_ACCEPTED if cinder else status.HTTP_200_OK

    @router.delete("/{snapshot_id:node}", status_code=deleted, response_class=Response)
    async def delete_snapshot(tenant: InTenant, snapshot: InSnapshot) -> Response:
        """Delete a snapshot (section 4.4.4.4)."""
        await storage.delete_snapshot(tenant, snapshot)
        return Response(status_code=deleted)

    return router
