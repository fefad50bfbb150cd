"""Ask a second identity service about what the first one does not know."""

from __future__ import annotations

from bockd.blockstorage.contract import Tenant
from bockd.errors import UnauthorizedError
from bockd.identity.contract import Credentials, Identity, IssuedToken, Principal


class FallbackIdentity:
    """Implements bockd.identity.contract.Identity. `first` should be quick to say no.

    Only UnauthorizedError leads from the first to the second: a token that the first knows is its
    own, and a password that fits is not sent elsewhere.
    """

    def __init__(self, first: Identity, second: Identity) -> None:
        self._first = first
        self._second = second

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        try:
            return await self._first.issue_token(credentials, tenant)
        except UnauthorizedError:
            return await self._second.issue_token(credentials, tenant)

    async def validate_token(self, token: str) -> Principal:
        try:
            return await self._first.validate_token(token)
        except UnauthorizedError:
            return await self._second.validate_token(token)

    async def authorize(self, token: str, tenant: str) -> Principal:
        try:
            return await self._first.authorize(token, tenant)
        except UnauthorizedError:
            return await self._second.authorize(token, tenant)

    async def revoke_token(self, token: str) -> None:
        try:
            await self._first.revoke_token(token)
        except UnauthorizedError:
            await self._second.revoke_token(token)

    async def list_tenants(self, token: str) -> list[Tenant]:
        try:
            return await self._first.list_tenants(token)
        except UnauthorizedError:
            return await self._second.list_tenants(token)
