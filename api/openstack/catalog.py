"""The service catalog (section 3.3): where a client finds what.

There is one endpoint for each availability zone. Old novaclients look for volumes under
type `compute` only, and libcloud there by the name nova, so the same endpoints stand there too.
HP's fog looks by the name Compute and at no type; novaclients of 2012 refuse a catalog with two
services of type `compute` as ambiguous. So what has that name has a type of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from api.openstack.paths import IDENTITY_PATH, IMAGE_ROOT, VERSION, VERSION_PATH
from bockd.blockstorage.contract import TenantId

if TYPE_CHECKING:  # the daemon imports this before it is ready, and Starlette after that
    from starlette.requests import Request

DEFAULT_REGION = "az-1.region-a.geo-1"
"""As section 3.2 names them: an availability zone in a region in a geography."""


FOG_TYPE = "compute-by-name"
"""A type that no client looks for."""


@dataclass(frozen=True, slots=True)
class Zone:
    """An availability zone. `url` is scheme and host of its API; None is where the client asks,
    which is right as long as there is one daemon."""

    region: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is published. The first zone is the one that answers for itself."""

    zones: tuple[Zone, ...] = (Zone(DEFAULT_REGION),)

    def own_url(self, request: Request) -> str:
        """Return scheme and host for links to this daemon."""
        return url_of(self.zones[0], request)


class Endpoint(TypedDict):
    """Section 3.3."""

    tenantId: str
    publicURL: str
    region: str
    versionId: str
    versionInfo: str
    versionList: str


class Service(TypedDict):
    """Section 3.3."""

    name: str
    type: str
    endpoints: list[Endpoint]


def url_of(zone: Zone, request: Request) -> str:
    """Return scheme and host of a zone, without a slash at the end."""
    return (zone.url or f"{request.url.scheme}://{request.url.netloc}").rstrip("/")


def endpoints(
    catalog: Catalog, request: Request, tenant: TenantId, version: str, path: str
) -> list[Endpoint]:
    """Return one endpoint for each zone; `path` follows the host."""
    found: list[Endpoint] = []
    for zone in catalog.zones:
        url = url_of(zone, request)
        found.append(
            {
                "tenantId": tenant,
                "publicURL": url + path,
                "region": zone.region,
                "versionId": version,
                "versionInfo": url + VERSION_PATH,
                "versionList": url,
            }
        )
    return found


def services(catalog: Catalog, request: Request, tenant: TenantId) -> list[Service]:
    """Return the whole catalog for `tenant`."""

    def service(name: str, kind: str, version: str, path: str) -> Service:
        return {
            "name": name,
            "type": kind,
            "endpoints": endpoints(catalog, request, tenant, version, path),
        }

    return [
        service("Block Storage", "volume", "1.1", f"/{VERSION}/{tenant}"),
        service("nova", "compute", "1.1", f"/{VERSION}/{tenant}"),
        service("Compute", FOG_TYPE, "1.1", f"/{VERSION}/{tenant}"),
        service("Image Management", "image", "2", IMAGE_ROOT),
        service("Identity", "identity", "2.0", IDENTITY_PATH),
    ]
