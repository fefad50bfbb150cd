"""Servers, as far as volumes are attached to them (section 4.4.3).

Of a server no more is known than what the operator has registered, or nothing. Old clients look at
one before they attach to it, so it is shown as active, with what those clients read.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, status
from typing_extensions import TypedDict

from api.openstack import values
from api.openstack.access import Caller, InTenant
from api.openstack.bodies import AttachVolume
from api.openstack.catalog import Catalog
from api.openstack.deferred import reply
from api.openstack.media import JsonRoute
from api.openstack.nbd import NbdFrontends
from api.openstack.params import InForce, InServer, InVolume
from api.openstack.replies import (
    AttachmentExtra,
    AttachmentList,
    AttachmentView,
    OneAttachment,
    view_attachment,
)
from bockd.blockstorage.contract import Attachment, BlockStorage
from bockd.errors import InvalidRequestError
from bockd.model import VolumeId

Reference = dict[str, str]


class ServerExtra(TypedDict):
    """What is ours in a server."""

    kind: str
    """host, vm or plain."""


class ServerView(TypedDict):
    """The keys that clients of Compute 1.1 take for granted."""

    id: int | str
    name: str
    status: str
    tenant_id: str
    user_id: str
    hostId: str
    addresses: dict[str, list[Reference]]
    metadata: Reference
    image: Reference
    flavor: Reference
    links: list[Reference]
    created: str
    updated: str
    bockd: ServerExtra


@reply
class OneServer(TypedDict):
    """`{"server": {...}}`."""

    server: ServerView


def attachment_router(storage: BlockStorage, nbd_frontends: NbdFrontends) -> APIRouter:
    """Build the router below `{tenant}/servers/{server_id}/os-volume_attachments`."""
    router = APIRouter(
        prefix="/servers/{server_id}/os-volume_attachments",
        tags=["servers"],
        route_class=JsonRoute,
    )

    def view(attachment: Attachment, request: Request) -> AttachmentView:
        export = attachment.export_name
        extra: AttachmentExtra = {
            "uri": nbd_frontends.uri(export, request),
            "unix_uri": nbd_frontends.unix_uri(export),
            "export": export,
            "connections": storage.connections(attachment),
            "kind": attachment.server_kind.value,
            "device_info": dict(attachment.device_info),
        }
        if gateways := storage.gateways(attachment):
            extra["uris"] = nbd_frontends.uris(export, gateways, request)
            extra["uri"] = next(iter(extra["uris"]), None)
        return view_attachment(attachment, extra)

    @router.get("")
    async def list_attachments(
        request: Request, tenant: InTenant, server: InServer
    ) -> AttachmentList:
        """List the volumes attached to a server (section 4.4.3.1)."""
        found = await storage.list_attachments(tenant, server)
        return {"volumeAttachments": [view(attachment, request) for attachment in found]}

    @router.post("")
    async def attach_volume(
        request: Request, tenant: InTenant, server: InServer, body: AttachVolume
    ) -> OneAttachment:
        """Attach a volume to a server (section 4.4.3.2)."""
        wanted = body.volume_attachment
        if wanted.volume_id is None:
            raise InvalidRequestError("volumeAttachment.volumeId is missing")
        volume = values.volume_id(wanted.volume_id)
        attachment = await storage.attach(tenant, server, volume, wanted.wanted_device())
        return {"volumeAttachment": view(attachment, request)}

    @router.post("/{volume_id}")
    async def attach_volume_in_path(
        request: Request, tenant: InTenant, server: InServer, volume: InVolume, body: AttachVolume
    ) -> OneAttachment:
        """Attach a volume to a server, under the path that section 4.1 lists."""
        check_same_volume(volume, body)
        device = body.volume_attachment.wanted_device()
        attachment = await storage.attach(tenant, server, volume, device)
        return {"volumeAttachment": view(attachment, request)}

    @router.get("/{volume_id}")
    async def show_attachment(
        request: Request, tenant: InTenant, server: InServer, volume: InVolume
    ) -> OneAttachment:
        """Show one attachment."""
        attachment = await storage.show_attachment(tenant, server, volume)
        return {"volumeAttachment": view(attachment, request)}

    @router.delete("/{volume_id}", status_code=status.HTTP_202_ACCEPTED, response_class=Response)
    async def detach_volume(
        tenant: InTenant, server: InServer, volume: InVolume, force: InForce = False
    ) -> Response:
        """Detach a volume from a server (section 4.4.3.3).

        With `force=true` its connections are cut at once, for a server that is gone.
        """
        await storage.detach(tenant, server, volume, force=force)
        return Response(status_code=status.HTTP_202_ACCEPTED)

    return router


def check_same_volume(in_path: VolumeId, body: AttachVolume) -> None:
    """Raise InvalidRequestError when the body names another volume than the path."""
    in_body = body.volume_attachment.volume_id
    if in_body is not None and values.volume_id(in_body) != in_path:
        raise InvalidRequestError(
            f"the path names volume {in_path}, the body volume {values.shown(in_body)}"
        )


def server_router(storage: BlockStorage, catalog: Catalog) -> APIRouter:
    """Build the router of `{tenant}/servers/{server_id}`."""
    router = APIRouter(prefix="/servers", tags=["servers"])

    @router.get("/{server_id}")
    async def show_server(
        request: Request, tenant: InTenant, server: InServer, caller: Caller
    ) -> OneServer:
        """Show a server, as old clients do before they attach a volume to it."""
        found = await storage.show_server(tenant, server)
        attached = await storage.list_attachments(tenant, server)
        here = f"{catalog.own_url(request)}{request.url.path}"
        latest = max((one.attached_at for one in attached), default=found.added_at)
        return {
            "server": {
                "id": values.server_number(server),
                "name": server,
                "status": "ACTIVE",
                "tenant_id": tenant,
                "user_id": caller.user_id,
                "hostId": "",
                "addresses": {},
                "metadata": {},
                "image": {"id": ""},
                "flavor": {"id": ""},
                "links": [{"href": here, "rel": "self"}],
                "created": values.iso_date(found.added_at or latest),
                "updated": values.iso_date(latest),
                "bockd": {"kind": found.kind.value},
            }
        }

    return router
