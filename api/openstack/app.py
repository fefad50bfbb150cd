"""The public application: routes, who may pass, intake and faults put together."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI

import bockd
from api.freshness import Freshness, Refresh
from api.intake import Intake
from api.openstack.access import Access
from api.openstack.catalog import Catalog
from api.openstack.docs import docs_router
from api.openstack.extensions import extension_router
from api.openstack.faults import (
    NAME_OF_STATUS,
    SERVER_FAULT,
    fault_of_error,
    install_faults,
    refuse_body,
)
from api.openstack.identity import identity_router
from api.openstack.images import image_root_router, image_router
from api.openstack.limits import limits_router
from api.openstack.metadata import metadata_router
from api.openstack.nbd import NbdFrontends
from api.openstack.paths import (
    IDENTITY_ROOT,
    IMAGE_ROOT,
    OPENAPI_PATH,
    VERSION_PATH,
)
from api.openstack.replies import as_cinder_does
from api.openstack.servers import attachment_router, server_router
from api.openstack.snapshots import snapshot_router
from api.openstack.trash import trash_router
from api.openstack.versions import identity_version_router, version_router
from api.openstack.volumes import volume_router
from api.openstack.volumetypes import volume_type_router
from bockd.blockstorage.contract import BlockStorage
from bockd.blockstorage.trashcontract import TrashStorage
from bockd.identity.contract import Identity

FAULT_SCHEMA = {
    "title": "Fault",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["message", "code"],
        "properties": {
            "message": {"type": "string"},
            "code": {"type": "integer"},
            "retryAfter": {"type": "integer"},
        },
        "additionalProperties": False,
    },
}
"""One key, the fault's name. Written out, because a model would be compiled for each route."""

FAULTS: dict[int | str, dict[str, Any]] = {
    int(status): {
        "content": {"application/json": {"schema": FAULT_SCHEMA}},
        "description": f"{HTTPStatus(status).phrase}: a {name} fault",
    }
    for status, name in {
        **NAME_OF_STATUS,
        HTTPStatus.INTERNAL_SERVER_ERROR: SERVER_FAULT,
    }.items()
}
"""What any operation may answer instead."""


def create_public_app(
    storage: BlockStorage,
    identity: Identity,
    catalog: Catalog | None = None,
    nbd_frontends: NbdFrontends | None = None,
    refresh: Refresh | None = None,
    trash: TrashStorage | None = None,
) -> FastAPI:
    """Create the HP Block Storage API over `storage`. Clients get in by the tokens of `identity`.
    Attachments name the URIs of their exports at `nbd_frontends`. `refresh` is awaited before a
    request is looked at. Without `trash` there are no routes to that.

    Its OpenAPI document is at `/openapi.json`, a page that shows it at `/docs`.
    """
    published = catalog or Catalog()
    app = FastAPI(
        title="HP Block Storage API",
        version=bockd.__version__,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=FAULTS,
    )
    install_faults(app)
    # The last one added is the first to see a request.
    app.add_middleware(Access, identity=identity)
    if refresh is not None:
        app.add_middleware(Freshness, refresh=refresh, fault_of_error=fault_of_error)
    app.add_middleware(Intake, refuse=refuse_body)
    app.include_router(docs_router(app.title))
    app.include_router(version_router(published))
    app.include_router(identity_version_router(published))
    app.include_router(identity_router(identity, published))
    app.include_router(
        identity_router(identity, published), prefix=IDENTITY_ROOT, include_in_schema=False
    )
    app.include_router(image_root_router(published))
    app.include_router(image_router(storage))
    app.include_router(image_router(storage), prefix=IMAGE_ROOT, include_in_schema=False)
    app.include_router(
        tenant_router(storage, published, nbd_frontends or NbdFrontends()),
        prefix=f"{VERSION_PATH}{{tenant}}",
    )
    if trash is not None:
        app.include_router(trash_router(trash), prefix=f"{VERSION_PATH}{{tenant}}")
    return app


def tenant_router(
    storage: BlockStorage, catalog: Catalog, nbd_frontends: NbdFrontends
) -> APIRouter:
    """Build the router of all that a tenant has. `/volumes` and `/snapshots` are the paths of
    Cinder's clients, so the replies there have Cinder's keys, too."""
    router = APIRouter()
    router.include_router(volume_router(storage, "/os-volumes"))
    router.include_router(snapshot_router(storage, "/os-snapshots"))
    router.include_router(
        volume_router(storage, "/volumes", as_cinder_does), include_in_schema=False
    )
    router.include_router(
        snapshot_router(storage, "/snapshots", as_cinder_does), include_in_schema=False
    )
    router.include_router(metadata_router(storage, "/os-volumes"))
    router.include_router(metadata_router(storage, "/volumes"), include_in_schema=False)
    router.include_router(volume_type_router("/os-volume-types"))
    router.include_router(volume_type_router("/types"), include_in_schema=False)
    router.include_router(attachment_router(storage, nbd_frontends))
    router.include_router(server_router(storage, catalog))
    router.include_router(limits_router(storage))
    router.include_router(extension_router(storage))
    return router
