"""The version documents (section 4.4.1); they need no token."""

from __future__ import annotations

from typing import NotRequired

from fastapi import APIRouter, Request
from typing_extensions import TypedDict

from api.openstack.catalog import Catalog
from api.openstack.paths import VERSION, VERSION_PATH

UPDATED = "2011-01-21T11:33:21Z"
GUIDE = "http://docs.rackspacecloud.com/servers/api/v1.1/"


class Link(TypedDict):
    """Where something is."""

    href: str
    rel: str
    type: NotRequired[str]


class MediaType(TypedDict):
    """As the document lists them; only JSON is served (section 4.1)."""

    base: str
    type: str


Version = TypedDict(
    "Version",
    {
        "status": str,
        "updated": str,
        "media-types": NotRequired[list[MediaType]],
        "id": str,
        "links": list[Link],
    },
)


class OneVersion(TypedDict):
    """Section 4.4.1.1."""

    version: Version


class VersionList(TypedDict):
    """Section 4.4.1.2."""

    versions: list[Version]


MEDIA_TYPES: list[MediaType] = [
    {"base": f"application/{kind}", "type": f"application/vnd.openstack.compute-{VERSION}+{kind}"}
    for kind in ("xml", "json")
]

DESCRIPTIONS: list[Link] = [
    {"href": f"{GUIDE}cs-devguide-20110125.pdf", "type": "application/pdf", "rel": "describedby"},
    {
        "href": f"{GUIDE}application.wadl",
        "type": "application/vnd.sun.wadl+xml",
        "rel": "describedby",
    },
]


def self_link(url: str, version: str) -> Link:
    """Where a version's own document is."""
    return {"href": f"{url}/{version}/", "rel": "self"}


def version_router(catalog: Catalog) -> APIRouter:
    """`/` and `/v1.1/`."""
    router = APIRouter(tags=["versions"])

    @router.get("/")
    async def list_versions(request: Request) -> VersionList:
        """List the versions of this API (section 4.4.1.2)."""
        url = catalog.own_url(request)
        return {
            "versions": [
                {
                    "status": status,
                    "updated": UPDATED,
                    "id": version,
                    "links": [self_link(url, version)],
                }
                for status, version in [("CURRENT", VERSION), ("DEPRECATED", "v1.0")]
            ]
        }

    @router.get(VERSION_PATH)
    async def show_version(request: Request) -> OneVersion:
        """Describe version 1.1 (section 4.4.1.1)."""
        return {
            "version": {
                "status": "CURRENT",
                "updated": UPDATED,
                "media-types": MEDIA_TYPES,
                "id": VERSION,
                "links": [self_link(catalog.own_url(request), VERSION), *DESCRIPTIONS],
            }
        }

    return router
