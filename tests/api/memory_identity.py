"""An `Identity` that knows a few users, and keeps its tokens in memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bockd.blockstorage.contract import Tenant, TenantId, UserId
from bockd.errors import ForbiddenError, UnauthorizedError
from bockd.identity.contract import (
    AccessKeyCredentials,
    Credentials,
    Identity,
    IssuedToken,
    PasswordCredentials,
    Principal,
)

DEMO = Tenant(TenantId("68718112013920"), "demo")
OTHER = Tenant(TenantId("95096564413950"), "other")

EXPIRES_AT = 4_102_444_800.0
"""The year 2100: tokens end when a test says so."""


@dataclass
class User:
    """Somebody with a password and a pair of keys."""

    id: UserId
    name: str
    password: str
    access_key: str
    secret_key: str
    tenants: tuple[Tenant, ...]


ALICE = User(UserId("u1"), "alice", "wonderland", "AKALICE", "SKALICE", (DEMO,))
BOB = User(UserId("u2"), "bob", "builder", "AKBOB", "SKBOB", (OTHER,))


class MemoryIdentity(Identity):
    """See the module. `expire_all` makes all tokens old."""

    def __init__(self, *users: User) -> None:
        self._users = users or (ALICE, BOB)
        self._tokens: dict[str, Principal] = {}
        self._numbers = itertools.count(1)

    def expire_all(self) -> None:
        self._tokens.clear()

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        for user in self._users:
            if known(user, credentials):
                for one in user.tenants:
                    if tenant in (None, one.id, one.name):
                        return self._issue(user, one)
        raise UnauthorizedError("Invalid credentials.")

    def _issue(self, user: User, tenant: Tenant) -> IssuedToken:
        principal = Principal(user.id, user.name, tenant, ("member",), EXPIRES_AT)
        token = f"HPAuth_{next(self._numbers)}"
        self._tokens[token] = principal
        return IssuedToken(token, principal)

    async def validate_token(self, token: str) -> Principal:
        if token not in self._tokens:
            raise UnauthorizedError("The token is unknown or has expired.")
        return self._tokens[token]

    async def authorize(self, token: str, tenant: str) -> Principal:
        principal = await self.validate_token(token)
        if principal.tenant.id != tenant:
            raise ForbiddenError("The token is for another tenant.")
        return principal

    async def revoke_token(self, token: str) -> None:
        await self.validate_token(token)
        del self._tokens[token]

    async def list_tenants(self, token: str) -> list[Tenant]:
        principal = await self.validate_token(token)
        users = (user for user in self._users if user.id == principal.user_id)
        return [tenant for user in users for tenant in user.tenants]


def known(user: User, credentials: Credentials) -> bool:
    """Whether these are the user's credentials."""
    match credentials:
        case PasswordCredentials(username, password):
            return (user.name, user.password) == (username, password)
        case AccessKeyCredentials(access_key, secret_key):
            return (user.access_key, user.secret_key) == (access_key, secret_key)
