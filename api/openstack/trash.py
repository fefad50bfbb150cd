"""Our extension `bockd-trash`: what a tenant has deleted, and can restore."""

from __future__ import annotations

from typing import Annotated, NotRequired
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Response, status
from typing_extensions import TypedDict

from api.openstack import values
from api.openstack.access import InTenant
from api.openstack.bodies import TrashAction
from api.openstack.listing import answer_list
from api.openstack.media import JsonRoute
from api.openstack.params import InPage, PathNumber
from api.openstack.replies import OneSpace, view_space
from bockd.blockstorage.contract import Page, Snapshot
from bockd.blockstorage.trashcontract import TrashedNode, TrashStorage
from bockd.errors import NotFoundError


class TrashBackingView(TypedDict):
    """What the pool has."""

    name: str
    size_bytes: int


class TrashedView(TypedDict):
    """A volume or snapshot in the trash. Its id is what it was."""

    id: int
    kind: str
    displayName: str | None
    displayDescription: str | None
    size: int
    status: str
    """The one in which it was deleted, and to which it is restored."""
    createdAt: str
    deletedAt: str
    expiresAt: str
    consumesQuota: bool
    volumeId: NotRequired[int]
    """Of a snapshot: its origin."""
    bockd: TrashBackingView


class OneTrashed(TypedDict):
    """`{"trashed": {...}}`."""

    trashed: TrashedView


class TrashList(TypedDict):
    """`{"trash": [...]}`."""

    trash: list[TrashedView]


class Emptied(TypedDict):
    """How many were deleted for good."""

    deleted: int


def view_trashed(found: TrashedNode) -> TrashedView:
    """Render what is in the trash."""
    node = found.node
    view: TrashedView = {
        "id": found.id,
        "kind": found.kind.value,
        "displayName": node.display_name,
        "displayDescription": node.display_description,
        "size": node.size_gib,
        "status": node.status.value,
        "createdAt": values.date(node.created_at),
        "deletedAt": values.date(found.deleted_at),
        "expiresAt": values.date(found.expires_at),
        "consumesQuota": found.consumes_quota,
        "bockd": {"name": found.name, "size_bytes": found.size_bytes},
    }
    if isinstance(node, Snapshot):
        view["volumeId"] = node.volume_id
    return view


async def trashed_in_path(node_id: PathNumber) -> int:
    """Return the id of the path's `{node_id}`. Raise NotFoundError for what cannot be one."""
    text = unquote(node_id)
    number = values.id_number(text)
    if number is None:
        raise NotFoundError(f"there is no {values.shown(text)} in the trash")
    return number


InTrash = Annotated[int, Depends(trashed_in_path)]


def trash_router(trash: TrashStorage) -> APIRouter:
    """Build the router of `{tenant}/bockd-trash`."""
    router = APIRouter(prefix="/bockd-trash", tags=["trash"], route_class=JsonRoute)

    @router.get("", response_model=TrashList)
    @router.get("/detail", response_model=TrashList)
    async def list_trash(tenant: InTenant, page: InPage) -> Response:
        """List what is in the trash, by id."""

        async def fetch(part: Page) -> list[TrashedNode]:
            return await trash.list(tenant, part)

        return await answer_list("trash", page, fetch, view_trashed)

    @router.delete("")
    async def empty_trash(tenant: InTenant) -> Emptied:
        """Delete all that is in the trash for good."""
        return {"deleted": await trash.empty(tenant)}

    @router.get("/{node_id:node}")
    async def show_trashed(tenant: InTenant, node: InTrash) -> OneTrashed:
        """Show a volume or snapshot in the trash."""
        return {"trashed": view_trashed(await trash.show(tenant, node))}

    @router.get("/{node_id:node}/bockd-space")
    async def trashed_space(tenant: InTenant, node: InTrash) -> OneSpace:
        """Measure the space that one takes, by a walk over its maps."""
        return {"space": view_space(await trash.space(tenant, node))}

    @router.post(
        "/{node_id:node}/action", status_code=status.HTTP_202_ACCEPTED, response_class=Response
    )
    async def act_on_trashed(tenant: InTenant, node: InTrash, body: TrashAction) -> Response:
        """Restore a volume or snapshot: `{"bockd-restore": {}}`."""
        del body
        await trash.restore(tenant, node)
        return Response(status_code=status.HTTP_202_ACCEPTED)

    @router.delete("/{node_id:node}", status_code=status.HTTP_202_ACCEPTED, response_class=Response)
    async def delete_trashed(tenant: InTenant, node: InTrash) -> Response:
        """Delete a volume or snapshot for good."""
        await trash.delete(tenant, node)
        return Response(status_code=status.HTTP_202_ACCEPTED)

    return router
