"""The version documents (section 4.4.1), and those of the identity service, which today's clients
read before they ask for a token. None needs one."""

from __future__ import annotations

from typing import NotRequired

from fastapi import APIRouter, Request, status
from typing_extensions import TypedDict

from api.openstack.catalog import Catalog
from api.openstack.deferred import reply
from api.openstack.paths import (
    IDENTITY_PATH,
    IDENTITY_ROOT,
    IDENTITY_VERSION,
    VERSION,
    VERSION_PATH,
)

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


@reply
class OneVersion(TypedDict):
    """Section 4.4.1.1."""

    version: Version


@reply
class VersionList(TypedDict):
    """Section 4.4.1.2."""

    versions: list[Version]


class Versions(TypedDict):
    """Keystone's list of versions has one more level than that of section 4.4.1.2."""

    values: list[Version]


@reply
class IdentityVersions(TypedDict):
    """What is at the root of the identity service."""

    versions: Versions


IDENTITY_UPDATED = "2014-04-17T00:00:00Z"
"""When Keystone's version 2.0 was last changed."""

IDENTITY_MEDIA_TYPES: list[MediaType] = [
    {"base": "application/json", "type": "application/vnd.openstack.identity-v2.0+json"}
]

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
    """Return the link to a version's own document."""
    return {"href": f"{url}/{version}/", "rel": "self"}


def version_router(catalog: Catalog) -> APIRouter:
    """Build the router of `/` and `/v1.1/`."""
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


def identity_version(url: str) -> Version:
    """Return the only version of the identity service. "stable" is Keystone's word for current."""
    return {
        "status": "stable",
        "updated": IDENTITY_UPDATED,
        "media-types": IDENTITY_MEDIA_TYPES,
        "id": IDENTITY_VERSION,
        "links": [self_link(url, IDENTITY_VERSION)],
    }


def identity_version_router(catalog: Catalog) -> APIRouter:
    """Build the router of `/v2.0` and `/identity`. Clients that are given either of them read it to
    learn which versions there are; what answers with 404 (`/v3`) is none."""
    router = APIRouter(tags=["versions"])

    @router.get(f"{IDENTITY_ROOT}{IDENTITY_PATH}", include_in_schema=False)
    @router.get(IDENTITY_PATH)
    async def show_identity_version(request: Request) -> OneVersion:
        """Describe version 2.0 of the identity service, as Keystone does."""
        return {"version": identity_version(catalog.own_url(request))}

    @router.get(IDENTITY_ROOT, status_code=status.HTTP_300_MULTIPLE_CHOICES)
    async def list_identity_versions(request: Request) -> IdentityVersions:
        """List the versions of the identity service, as Keystone does."""
        return {"versions": {"values": [identity_version(catalog.own_url(request))]}}

    return router
