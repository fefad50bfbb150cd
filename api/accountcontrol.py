"""The control API's accounts: `/control/v1/tenants`, `/control/v1/users` and
`/control/v1/credentials/rotate`, one endpoint for each method of `bockd.control.AccountControl`.
See `api.control` for what holds for all of them.

New secrets are in the answer that made them and nowhere else.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path
from pydantic import Field

from api.control import Body, Ref, SetLimits
from bockd.accountcontrol import (
    AccountControl,
    NewAccessKey,
    NewPassword,
    NewQuota,
    TenantInfo,
    UserInfo,
)


class QuotaBody(Body):
    """The limits; null leaves a number as it is, -1 is no limit."""

    volumes: int | None = None
    gigabytes: int | None = None
    snapshots: int | None = None

    def wanted(self) -> NewQuota:
        """Return the quota that the body asks for."""
        return NewQuota(self.volumes, self.gigabytes, self.snapshots)


class CreateTenant(Body):
    """A new tenant, with the default quota except for the numbers given."""

    name: str
    quota: QuotaBody = Field(default_factory=QuotaBody)


class SetQuota(Body):
    """A quota; null restores the default one."""

    quota: QuotaBody | None


class CreateUser(Body):
    """`tenants` are ids or names; without a password a random one is made."""

    name: str
    tenants: list[str]
    password: str | None = Field(None, repr=False)


class SetPassword(Body):
    """A password; null asks for a random one."""

    password: str | None = Field(None, repr=False)


class Rotated(Body):
    """Where the new credentials are."""

    path: str


def decode_tenant(tenant: Annotated[str, Path(description="An id or a name, encoded")]) -> str:
    """Decode the tenant of the path. Paths are routed as they were sent (see `api.intake`), so this
    segment is still encoded."""
    return unquote(tenant)


Tenant = Annotated[str, Depends(decode_tenant)]


def account_control_router(accounts: AccountControl) -> APIRouter:
    """Build the router of tenants, users and credentials."""
    router = APIRouter(tags=["accounts"])
    router.include_router(tenant_router(accounts))
    router.include_router(user_router(accounts))

    @router.post("/credentials/rotate")
    async def rotate_credentials() -> Rotated:
        """Write the credentials file with new secrets."""
        return Rotated(path=await accounts.rotate_credentials())

    return router


def tenant_router(accounts: AccountControl) -> APIRouter:
    """Build the router of tenants and their quotas."""
    router = APIRouter(prefix="/tenants")

    @router.get("")
    async def list_tenants() -> list[TenantInfo]:
        """List all tenants by name."""
        return await accounts.list_tenants()

    @router.post("", status_code=201)
    async def create_tenant(body: CreateTenant) -> TenantInfo:
        """Create a tenant."""
        return await accounts.create_tenant(body.name, body.quota.wanted())

    @router.get("/{ref}")
    async def show_tenant(ref: Ref) -> TenantInfo:
        """Show one tenant."""
        return await accounts.show_tenant(ref)

    @router.put("/{ref}/quota")
    async def set_quota(ref: Ref, body: SetQuota) -> TenantInfo:
        """Change a tenant's quota."""
        return await accounts.set_quota(ref, None if body.quota is None else body.quota.wanted())

    @router.put("/{ref}/limits")
    async def limit_tenant(ref: Ref, body: SetLimits) -> TenantInfo:
        """Limit the I/O of all volumes of a tenant together."""
        return await accounts.limit_tenant(ref, body.wanted())

    @router.delete("/{ref}", status_code=204)
    async def delete_tenant(ref: Ref) -> None:
        """Delete a tenant that has nothing any more."""
        await accounts.delete_tenant(ref)

    return router


def user_router(accounts: AccountControl) -> APIRouter:
    """Build the router of users and their secrets."""
    router = APIRouter(prefix="/users")

    @router.get("")
    async def list_users() -> list[UserInfo]:
        """List all users by name."""
        return await accounts.list_users()

    @router.post("", status_code=201)
    async def create_user(body: CreateUser) -> NewPassword:
        """Create a user."""
        return await accounts.create_user(body.name, tuple(body.tenants), body.password)

    @router.get("/{ref}")
    async def show_user(ref: Ref) -> UserInfo:
        """Show one user."""
        return await accounts.show_user(ref)

    @router.delete("/{ref}", status_code=204)
    async def delete_user(ref: Ref) -> None:
        """Delete a user."""
        await accounts.delete_user(ref)

    @router.put("/{ref}/tenants/{tenant}")
    async def grant(ref: Ref, tenant: Tenant) -> UserInfo:
        """Give a user access to a tenant."""
        return await accounts.grant(ref, tenant)

    @router.delete("/{ref}/tenants/{tenant}")
    async def revoke(ref: Ref, tenant: Tenant) -> UserInfo:
        """Take a user's access to a tenant away."""
        return await accounts.revoke(ref, tenant)

    @router.post("/{ref}/password")
    async def set_password(ref: Ref, body: SetPassword) -> NewPassword:
        """Set a new password for a user."""
        return await accounts.set_password(ref, body.password)

    @router.post("/{ref}/access-key")
    async def replace_access_keys(ref: Ref) -> NewAccessKey:
        """Give a user a new access key in place of all others."""
        return await accounts.replace_access_keys(ref)

    return router
