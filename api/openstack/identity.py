"""Identity in the form of Keystone v2: tokens for credentials, with the service catalog."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, status
from pydantic import Field
from typing_extensions import TypedDict

from api.openstack.access import Token
from api.openstack.bodies import Body
from api.openstack.catalog import Catalog, Service, services
from api.openstack.deferred import reply
from api.openstack.media import JsonRoute
from api.openstack.paths import IDENTITY_PATH, TOKENS_PATH
from api.openstack.values import iso_date
from bockd.blockstorage.contract import Tenant
from bockd.errors import InvalidRequestError, NotFoundError, UnauthorizedError
from bockd.identity.contract import (
    AccessKeyCredentials,
    Credentials,
    Identity,
    IssuedToken,
    PasswordCredentials,
)


class PasswordBody(Body):
    """`passwordCredentials`."""

    username: str
    password: str = Field(repr=False)


class AccessKeyBody(Body):
    """`apiAccessKeyCredentials`."""

    access_key: str = Field(alias="accessKey")
    secret_key: str = Field(alias="secretKey", repr=False)


class Auth(Body):
    """Credentials of one kind, and a tenant's id or name; without either the user's own."""

    password_credentials: PasswordBody | None = Field(None, alias="passwordCredentials")
    access_key_credentials: AccessKeyBody | None = Field(None, alias="apiAccessKeyCredentials")
    tenant_id: str | None = Field(None, alias="tenantId")
    tenant_name: str | None = Field(None, alias="tenantName")

    def credentials(self) -> Credentials:
        """Return the credentials of the one kind that is given. Raises InvalidRequestError."""
        password, access_key = self.password_credentials, self.access_key_credentials
        if password is not None and access_key is None:
            return PasswordCredentials(password.username, password.password)
        if access_key is not None and password is None:
            return AccessKeyCredentials(access_key.access_key, access_key.secret_key)
        raise InvalidRequestError(
            "auth holds either passwordCredentials or apiAccessKeyCredentials"
        )


class CreateToken(Body):
    """`{"auth": {...}}`."""

    auth: Auth


class TenantView(TypedDict):
    """A tenant."""

    id: str
    name: str
    enabled: bool


class TokenView(TypedDict):
    """A token, and until when it is valid."""

    id: str
    expires: str
    tenant: TenantView


class Role(TypedDict):
    """What a user may be in a tenant."""

    name: str


class UserView(TypedDict):
    """A user."""

    id: str
    name: str
    roles: list[Role]


class AccessView(TypedDict):
    """All that a client needs for its requests."""

    token: TokenView
    user: UserView
    serviceCatalog: list[Service]


@reply
class OneAccess(TypedDict):
    """`{"access": {...}}`."""

    access: AccessView


@reply
class TenantList(TypedDict):
    """`{"tenants": [...]}`."""

    tenants: list[TenantView]


def view_tenant(tenant: Tenant) -> TenantView:
    """Render one tenant."""
    return {"id": tenant.id, "name": tenant.name, "enabled": True}


def view_access(issued: IssuedToken, catalog: list[Service]) -> AccessView:
    """Render a new token together with the catalog."""
    principal = issued.principal
    return {
        "token": {
            "id": issued.token,
            "expires": iso_date(principal.expires_at),
            "tenant": view_tenant(principal.tenant),
        },
        "user": {
            "id": principal.user_id,
            "name": principal.username,
            "roles": [{"name": role} for role in principal.roles],
        },
        "serviceCatalog": catalog,
    }


def identity_router(identity: Identity, catalog: Catalog) -> APIRouter:
    """Build the router of `/v2.0/tokens` and `/v2.0/tenants`."""
    router = APIRouter(tags=["identity"], route_class=JsonRoute)

    @router.post(TOKENS_PATH)
    async def create_token(request: Request, body: CreateToken) -> OneAccess:
        """Issue a token for credentials, with the service catalog (section 3.3)."""
        auth = body.auth
        wanted = auth.tenant_id or auth.tenant_name or None
        issued = await identity.issue_token(auth.credentials(), wanted)
        tenant = issued.principal.tenant.id
        return {"access": view_access(issued, services(catalog, request, tenant))}

    @router.delete(f"{TOKENS_PATH}/{{token}}", status_code=status.HTTP_204_NO_CONTENT)
    async def revoke_token(token: str) -> Response:
        """Make a token invalid at once. Anybody who has its text may do that, as in Keystone."""
        try:
            await identity.revoke_token(token)
        except UnauthorizedError as error:
            raise NotFoundError("there is no such token") from error
        return Response(status_code=status.HTTP_204_NO_CONTENT)

    @router.get(f"{IDENTITY_PATH}/tenants")
    async def list_tenants(token: Token) -> TenantList:
        """List the tenants of the token's user."""
        return {"tenants": [view_tenant(one) for one in await identity.list_tenants(token)]}

    return router
