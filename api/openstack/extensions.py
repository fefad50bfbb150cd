"""Extensions: what this API has beyond OpenStack Compute 1.1, for clients that ask first."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Path
from typing_extensions import TypedDict

from api.openstack.access import InTenant
from api.openstack.deferred import reply
from api.openstack.values import shown
from bockd.blockstorage.contract import BlockStorage, Extension
from bockd.errors import NotFoundError


class ExtensionView(TypedDict):
    """One extension, in the form of Compute 1.1."""

    alias: str
    name: str
    namespace: str
    updated: str
    description: str
    links: list[str]


@reply
class OneExtension(TypedDict):
    """`{"extension": {...}}`."""

    extension: ExtensionView


@reply
class ExtensionList(TypedDict):
    """`{"extensions": [...]}`."""

    extensions: list[ExtensionView]


def view_extension(extension: Extension) -> ExtensionView:
    """Render one extension."""
    return {
        "alias": extension.alias,
        "name": extension.name,
        "namespace": extension.namespace,
        "updated": extension.updated,
        "description": extension.description,
        "links": [],
    }


def extension_router(storage: BlockStorage) -> APIRouter:
    """Build the router of `{tenant}/extensions`."""
    router = APIRouter(prefix="/extensions", tags=["extensions"])

    @router.get("")
    async def list_extensions(_: InTenant) -> ExtensionList:
        """List the extensions."""
        return {"extensions": [view_extension(one) for one in await storage.list_extensions()]}

    @router.get("/{alias}")
    async def show_extension(_: InTenant, alias: Annotated[str, Path()]) -> OneExtension:
        """Show an extension."""
        wanted = unquote(alias)
        for extension in await storage.list_extensions():
            if extension.alias == wanted:
                return {"extension": view_extension(extension)}
        raise NotFoundError(f"Extension {shown(wanted)} could not be found.")

    return router
