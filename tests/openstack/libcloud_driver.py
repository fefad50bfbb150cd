"""libcloud's drivers for the public API, unmodified and as their users construct them."""

from __future__ import annotations

from typing import Any

from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

from ..api.public import Served

REGION = "az-1.region-a.geo-1"


def connect(served: Served, **changes: object) -> Any:
    """Construct the driver for volumes, as its users do."""
    account = served.service.account
    password = str(changes.pop("password", account.password))
    return connect_to(served.url, account.username, password, account.tenant_name, **changes)


def connect_to(url: str, username: str, password: str, tenant: str, **changes: object) -> Any:
    """Construct it for a server at some address."""
    options: dict[str, object] = {
        "secure": False,
        "api_version": "1.1",
        "ex_force_auth_url": url,
        "ex_force_auth_version": "2.0_password",
        "ex_tenant_name": tenant,
        "ex_force_service_type": "volume",
        "ex_force_service_name": "Block Storage",
        "ex_force_service_region": REGION,
        **changes,
    }
    return get_driver(Provider.OPENSTACK)(username, password, **options)


def connect_to_images(served: Served) -> Any:
    """Construct the driver for OpenStack's later API, whose images are Glance's."""
    account = served.service.account
    return get_driver(Provider.OPENSTACK)(
        account.username,
        account.password,
        secure=False,
        api_version="2.2",
        ex_force_auth_url=served.url,
        ex_force_auth_version="2.0_password",
        ex_tenant_name=account.tenant_name,
        ex_force_service_type="image",
        ex_force_service_name="Image Management",
        ex_force_service_region=REGION,
    )
