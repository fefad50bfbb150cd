"""Identity by a Keystone: its projects are tenants, its tokens are accepted.

Who has one of the configured roles in a project may do everything in it; other tokens are refused
(403), so that Keystone's `reader` cannot delete. `POST /v2.0/tokens`, which no Keystone has any
more, is answered here: clients of version 2 get a token of version 3 for their credentials.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import trio

from bockd.blockstorage.contract import Tenant, TenantId, UserId
from bockd.errors import BockdError, ForbiddenError, UnauthorizedError
from bockd.identity.contract import Credentials, IssuedToken, PasswordCredentials, Principal
from bockd.identity.keystone.client import (
    Issued,
    KeystoneClient,
    checked,
    unknown_token,
    wrong_credentials,
)
from bockd.identity.keystone.documents import (
    PROJECT_ID,
    Token,
    by_application_credential,
    by_password,
    by_token,
    in_project,
)
from bockd.identity.keystone.tokencache import TokenCache


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about clients."""

    roles: Collection[str]
    """One of these is needed in the project."""
    domain: str
    """Of users and projects whose clients name none, because version 2 knows no domains."""


@dataclass(slots=True)
class _Question:
    """What Keystone is asked about a token, and what came of it: neither of both if who asked was
    cancelled."""

    answered: trio.Event = field(default_factory=trio.Event)
    principal: Principal | None = None
    error: BockdError | None = None


class KeystoneIdentity:
    """Implements bockd.identity.contract.Identity. UnavailableError while Keystone cannot be
    asked."""

    def __init__(
        self,
        client: KeystoneClient,
        cache: TokenCache,
        clock: Callable[[], float],
        rules: Rules,
    ) -> None:
        self._client = client
        self._cache = cache
        self._clock = clock
        self._rules = rules
        self._asked: dict[str, _Question] = {}
        """Tokens that Keystone is being asked about."""

    # -- using ---------------------------------------------------------------------------------

    async def validate_token(self, token: str) -> Principal:
        principal = self._cache.find(checked(token)) or await self._ask(token)
        if principal.expires_at <= self._clock():
            self._cache.forget(token)
            raise unknown_token()
        if not set(principal.roles) & set(self._rules.roles):
            raise ForbiddenError(
                f"none of your roles in project {principal.tenant.name} admits you here "
                f"({', '.join(self._rules.roles)})"
            )
        return principal

    async def authorize(self, token: str, tenant: str) -> Principal:
        principal = await self.validate_token(token)
        if principal.tenant.id != tenant:
            raise ForbiddenError("the token is for another tenant")
        return principal

    async def _ask(self, token: str) -> Principal:
        """Ask Keystone, once for all that want to know at the same time."""
        while (asked := self._asked.get(token)) is not None:
            await asked.answered.wait()
            if asked.principal is not None:
                return asked.principal
            if asked.error is not None:
                raise copy.copy(asked.error)
            # Who asked has hung up without waiting for the answer.
        asked = self._asked[token] = _Question()
        try:
            asked.principal = _principal(await self._client.validate(token))
        except BockdError as error:
            asked.error = error
            raise
        finally:
            del self._asked[token]
            asked.answered.set()
        self._cache.keep(token, asked.principal)
        return asked.principal

    async def revoke_token(self, token: str) -> None:
        try:
            await self._client.revoke(token)
        finally:
            self._cache.forget(token)

    async def list_tenants(self, token: str) -> list[Tenant]:
        await self.validate_token(token)
        return await self._tenants(token)

    async def _tenants(self, token: str) -> list[Tenant]:
        projects = await self._client.projects(token)
        tenants = [
            Tenant(TenantId(one.id), one.name) for one in projects if PROJECT_ID.fullmatch(one.id)
        ]
        return sorted(tenants, key=lambda tenant: (tenant.name, tenant.id))

    # -- issuing -------------------------------------------------------------------------------

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        """Issue a token of Keystone for the credentials. `apiAccessKeyCredentials` are an
        application credential: its id and its secret."""
        domain = self._rules.domain
        if isinstance(credentials, PasswordCredentials):
            scope = None if tenant is None else in_project(tenant, domain)
            who = by_password(credentials.username, credentials.password, domain)
            issued = await self._client.authenticate(who, scope)
            if issued.token.project is None:
                issued = await self._enter_first(issued)
        else:
            who = by_application_credential(credentials.access_key, credentials.secret_key)
            issued = await self._client.authenticate(who, None)
        principal = _principal(issued.token)
        if tenant not in (None, principal.tenant.id, principal.tenant.name):
            raise wrong_credentials()
        return IssuedToken(issued.text, principal)

    async def _enter_first(self, unscoped: Issued) -> Issued:
        """For a user without a default project: a token for the first one by name."""
        tenants = await self._tenants(unscoped.text)
        if not tenants:
            raise wrong_credentials()
        scope = {"project": {"id": tenants[0].id}}
        return await self._client.authenticate(by_token(unscoped.text), scope)


def _principal(token: Token) -> Principal:
    """On whose behalf; UnauthorizedError for a token that is for no project."""
    if token.project is None:
        raise UnauthorizedError("the token is for no project; ask for one with a project as scope")
    return Principal(
        UserId(token.user.id),
        token.user.name,
        Tenant(TenantId(token.project.id), token.project.name),
        tuple(role.name for role in token.roles),
        token.expires,
    )
