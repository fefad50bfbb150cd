"""Who may pass: where there is anything but version documents (`api.openstack.paths`), a request
carries a valid token in `X-Auth-Token`, and a path of a tenant needs a token of that tenant
(section 4.2).

It is checked before anything else about a request, so that a stranger learns nothing from how
the rest is refused.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request, Security
from fastapi.security import APIKeyHeader
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.openstack.faults import fault_of_error
from api.openstack.paths import needs_token, tenant_of, tidy
from bockd import logcontext
from bockd.blockstorage.contract import TenantId
from bockd.errors import BockdError, UnauthorizedError
from bockd.identity.contract import Identity, Principal

TOKEN_HEADER = "X-Auth-Token"  # noqa: S105 - the name of a header

token_header = APIKeyHeader(
    name=TOKEN_HEADER, auto_error=False, description="A token from POST /v2.0/tokens"
)
"""For the OpenAPI document; `Access` has checked it when a route is reached."""


class Access:
    """The ASGI middleware that checks. What is let through finds its `Principal` in
    `request.state.principal`, and its token in `request.state.token`."""

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self._app = app
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = tidy(scope["path"])
        state = dict(scope.get("state", {}))
        if needs_token(path):
            token = Headers(scope=scope).get(TOKEN_HEADER, "")
            try:
                principal = state["principal"] = await self._admit(token, path)
            except BockdError as error:
                await fault_of_error(error)(scope, receive, send)
                return
            state["token"] = token
            logcontext.note(logcontext.TENANT, principal.tenant.id)
        await self._app({**scope, "path": path, "state": state}, receive, send)

    async def _admit(self, token: str, path: str) -> Principal:
        if not token:
            raise UnauthorizedError(f"A token is needed: send one in {TOKEN_HEADER}.")
        tenant = tenant_of(path)
        if tenant is None:
            return await self._identity.validate_token(token)
        return await self._identity.authorize(token, tenant)


async def principal_of(
    request: Request, _: Annotated[str | None, Security(token_header)] = None
) -> Principal:
    """Return the principal on whose behalf the request is made."""
    principal: Principal = request.state.principal
    return principal


async def token_of(
    request: Request, _: Annotated[str | None, Security(token_header)] = None
) -> str:
    """Return the token that came with the request."""
    token: str = request.state.token
    return token


async def tenant_in_path(
    principal: Annotated[Principal, Depends(principal_of)],
    tenant: Annotated[str, Path(description="The tenant's id")],
) -> TenantId:
    """Return the tenant of the path, which the token has been checked against."""
    return principal.tenant.id


Caller = Annotated[Principal, Depends(principal_of)]
Token = Annotated[str, Depends(token_of)]
InTenant = Annotated[TenantId, Depends(tenant_in_path)]
