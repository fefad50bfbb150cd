"""Identity from the pool's own accounts: tokens issued, validated, revoked.

A token is looked up by its hash, so its text is nowhere on disk, and whoever reads the index
cannot use it. What it allows is looked up in the user's record each time it is used.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NoReturn

from bockd.blockstorage.contract import (
    Credentials,
    IssuedToken,
    PasswordCredentials,
    Principal,
    Tenant,
)
from bockd.blockstorage.records import Ledger, TokenRecord, UserRecord
from bockd.blockstorage.running import Driver, blocking
from bockd.blockstorage.secrethash import digest_token, new_secret, verify_secret
from bockd.errors import ForbiddenError, OverLimitError, UnauthorizedError
from bockd.failpoints import Failpoint, hit
from bockd.store.index import Index, Table, Transaction

TOKEN_SECONDS = 24 * 3600.0
"""How long a token is valid, as Keystone's default was."""

MAX_PENDING = 64
"""Authentications at once, waiting included: each costs 16 MiB and 40 ms of a core."""

MAX_TOKENS = 100_000
"""Valid tokens at once: a bound on what clients that never keep a token may fill."""

PURGE_SECONDS = 600.0
"""Expired tokens are removed this often, while a new one is issued."""

CLOCK_TOLERANCE_SECONDS = 300.0
"""The clock may be set back by so much without a valid token being refused."""

FULL_SECONDS = 10.0
"""While there are `MAX_TOKENS`, they are looked through this often, and not at each login: that
takes a good part of a second, with the index's only writer."""

RETRY_AFTER_SECONDS = 1


class LocalIdentity:
    """Implements bockd.blockstorage.contract.Identity."""

    def __init__(
        self,
        index: Index,
        driver: Driver,
        clock: Callable[[], float],
        token_seconds: float = TOKEN_SECONDS,
    ) -> None:
        """`driver` should have threads of its own: hashing must not keep block I/O waiting."""
        self._index = index
        self._driver = driver
        self._clock = clock
        self._token_seconds = token_seconds
        self._pending = 0
        self._next_purge = 0.0
        self._full_since = float("-inf")

    # -- issuing -----------------------------------------------------------------------------

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        if self._pending >= MAX_PENDING:
            raise OverLimitError("too many authentications at once", RETRY_AFTER_SECONDS)
        self._pending += 1
        try:
            return await self._driver.run(blocking(lambda: self._issue(credentials, tenant)))
        finally:
            self._pending -= 1

    def _issue(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        user = self._authenticate(credentials)
        token = new_secret()
        digest = digest_token(token)
        now = self._clock()

        def change(txn: Transaction) -> Principal:
            ledger = Ledger(txn)
            self._make_room(ledger, now)
            chosen = _choose_tenant(_tenants_of(ledger, user), tenant)
            record = TokenRecord(
                digest.hex(), user.name, chosen.id, now + self._token_seconds, user.epoch
            )
            ledger.put_token(digest, record)
            return _principal(user, chosen, record)

        principal = self._index.update(change)
        hit(Failpoint.TOKEN_ISSUED)
        if not self._next_purge - PURGE_SECONDS <= now < self._next_purge:
            self._next_purge = now + PURGE_SECONDS
        return IssuedToken(token, principal)

    def _authenticate(self, credentials: Credentials) -> UserRecord:
        """The user whose credentials they are. Takes as long for a user that does not exist."""
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            if isinstance(credentials, PasswordCredentials):
                user = ledger.user(credentials.username)
                given, stored = credentials.password, user.password if user else None
            else:
                key = ledger.access_key(credentials.access_key)
                user = ledger.user(key.username) if key else None
                given, stored = credentials.secret_key, key.secret if key else None
        if not verify_secret(given, stored) or user is None:
            raise UnauthorizedError("the credentials are wrong, or not for this tenant")
        return user

    def _make_room(self, ledger: Ledger, now: float) -> None:
        full = ledger.txn.count(Table.TOKENS) >= MAX_TOKENS
        if full and self._full_since <= now < self._full_since + FULL_SECONDS:
            raise OverLimitError("too many tokens are valid", int(PURGE_SECONDS))
        if full or not self._next_purge - PURGE_SECONDS <= now < self._next_purge:
            for digest, record in ledger.tokens():
                if not self._is_valid(record, now):
                    ledger.remove_token(digest)
        if full and ledger.txn.count(Table.TOKENS) >= MAX_TOKENS:
            self._full_since = now
            raise OverLimitError("too many tokens are valid", int(PURGE_SECONDS))

    def _is_valid(self, record: TokenRecord, now: float) -> bool:
        """A token that was issued in the future, before the clock was set back, would live longer
        than any should."""
        latest = now + self._token_seconds + CLOCK_TOLERANCE_SECONDS
        return now < record.expires_at <= latest

    # -- using -------------------------------------------------------------------------------

    async def validate_token(self, token: str) -> Principal:
        return self._validate(token)

    async def authorize(self, token: str, tenant: str) -> Principal:
        principal = self._validate(token)
        if principal.tenant.id != tenant:
            raise ForbiddenError("the token is for another tenant")
        return principal

    async def revoke_token(self, token: str) -> None:
        self._validate(token)
        digest = digest_token(token)
        await self._driver.run(
            blocking(lambda: self._index.update(lambda txn: Ledger(txn).remove_token(digest)))
        )

    async def list_tenants(self, token: str) -> list[Tenant]:
        principal = self._validate(token)
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            user = ledger.user(principal.username)
            return _tenants_of(ledger, user) if user else []

    def _validate(self, token: str) -> Principal:
        digest = digest_token(token)
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            record = ledger.token(digest)
            if record is None or not hmac.compare_digest(record.digest, digest.hex()):
                _refuse_token()
            user = ledger.user(record.username)
            if not self._is_valid(record, self._clock()) or user is None:
                _refuse_token()
            if record.tenant not in user.roles or record.epoch != user.epoch:
                _refuse_token()
            return _principal(user, ledger.tenant(record.tenant).tenant, record)


def _refuse_token() -> NoReturn:
    raise UnauthorizedError("the token is unknown or has expired; ask for a new one")


def _tenants_of(ledger: Ledger, user: UserRecord) -> list[Tenant]:
    tenants = [ledger.tenant(tenant).tenant for tenant in user.roles]
    return sorted(tenants, key=lambda tenant: tenant.name)


def _choose_tenant(tenants: list[Tenant], wanted: str | None) -> Tenant:
    """By id first, because a tenant may be named like another one's id."""
    candidates = (
        tenants
        if wanted is None
        else [
            *(tenant for tenant in tenants if tenant.id == wanted),
            *(tenant for tenant in tenants if tenant.name == wanted),
        ]
    )
    if not candidates:
        raise UnauthorizedError("the credentials are wrong, or not for this tenant")
    return candidates[0]


def _principal(user: UserRecord, tenant: Tenant, record: TokenRecord) -> Principal:
    return Principal(user.id, user.name, tenant, tuple(user.roles[tenant.id]), record.expires_at)
