"""What a frontend may ask of an identity service: who a request comes from, and whose volumes it
may reach. `bockd.identity.local` and `bockd.identity.keystone` implement it.

The methods raise BockdError subclasses only; what a token's text is, each service decides itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from bockd.blockstorage.contract import Tenant, UserId


@dataclass(frozen=True, slots=True)
class PasswordCredentials:
    """`passwordCredentials` of POST /v2.0/tokens."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AccessKeyCredentials:
    """`apiAccessKeyCredentials` of POST /v2.0/tokens."""

    access_key: str
    secret_key: str = field(repr=False)


Credentials = PasswordCredentials | AccessKeyCredentials


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request acts: a user in a tenant, until its token expires."""

    user_id: UserId
    username: str
    tenant: Tenant
    roles: tuple[str, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token. Its text is shown here once and kept nowhere."""

    token: str = field(repr=False)
    principal: Principal


class Identity(Protocol):
    """Authentication and authorization. Another implementation may ask a Keystone instead."""

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        """Issue a token for a tenant, given by id or name. None means the user's only tenant (the
        first by name when there are several).

        Raises UnauthorizedError for wrong credentials and for a tenant that the user is not in,
        without saying which; OverLimitError when too many requests come at once.
        """
        ...

    async def validate_token(self, token: str) -> Principal:
        """Return the principal whose token it is. Raise UnauthorizedError when the token is unknown
        or has expired."""
        ...

    async def authorize(self, token: str, tenant: str) -> Principal:
        """Validate a token for a request to a path of `tenant` (an id). Raise UnauthorizedError as
        `validate_token` does, and ForbiddenError when the token is valid for another tenant."""
        ...

    async def revoke_token(self, token: str) -> None:
        """Make a token invalid at once. Raise UnauthorizedError when it is invalid already."""
        ...

    async def list_tenants(self, token: str) -> list[Tenant]:
        """List all tenants of the token's user, by name. Raise UnauthorizedError for an invalid
        token."""
        ...
