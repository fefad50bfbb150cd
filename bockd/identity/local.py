"""Identity from the pool's own accounts: tokens issued, validated, revoked.

A token proves itself (bockd.identity.tokens): issuing and using one changes nothing on disk, so
both go on when the disk is full or read-only. What it allows is looked up in the user's record each
time it is used. The index knows those that were revoked, by their hashes, until they expire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from bockd.blockstorage.contract import Tenant
from bockd.blockstorage.records import TOKENS, Ledger, TokenRecord, UserRecord
from bockd.blockstorage.running import OperationRunner
from bockd.errors import BockdError, ForbiddenError, OverLimitError, UnauthorizedError
from bockd.failpoints import Failpoint, hit
from bockd.identity.contract import Credentials, IssuedToken, PasswordCredentials, Principal
from bockd.identity.secrethash import digest_token, verify_secret
from bockd.identity.tokens import Claims, parse, sign
from bockd.pool.index import Index, Transaction
from bockd.runtime.steps import call_blocking

TOKEN_SECONDS = 24 * 3600.0
"""How long a token is valid, as Keystone's default was."""

MAX_PENDING = 64
"""Authentications at once, waiting included: each costs 16 MiB and 40 ms of a core."""

MAX_REVOKED = 100_000
"""Revoked tokens that are remembered at once: a bound on what clients may fill by revoking."""

PURGE_SECONDS = 600.0
"""Revoked tokens that have expired are forgotten this often, while another one is revoked."""

CLOCK_TOLERANCE_SECONDS = 300.0
"""The clock may be set back by so much without a valid token being refused."""

FULL_SECONDS = 10.0
"""While there are `MAX_REVOKED`, they are looked through this often, and not at each revocation:
that takes a good part of a second, with the index's only writer."""

RETRY_AFTER_SECONDS = 1


class LocalIdentity:
    """Implements bockd.identity.contract.Identity."""

    def __init__(
        self,
        index: Index,
        runner: OperationRunner,
        clock: Callable[[], float],
        key: bytes,
        token_seconds: float = TOKEN_SECONDS,
    ) -> None:
        """`key` signs the tokens. `runner` should have threads of its own: hashing must not keep
        block I/O waiting."""
        self._index = index
        self._runner = runner
        self._clock = clock
        self._key = key
        self._token_seconds = token_seconds
        self._revoked_here: set[bytes] = set()
        """Those whose revocation the index could not take."""
        self._pending = 0
        self._next_purge = 0.0
        self._full_since = float("-inf")

    # -- issuing -----------------------------------------------------------------------------

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        if self._pending >= MAX_PENDING:
            raise OverLimitError("too many authentications at once", RETRY_AFTER_SECONDS)
        self._pending += 1
        try:
            return await self._runner.run(call_blocking(self._issue, credentials, tenant))
        finally:
            self._pending -= 1

    def _issue(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        user = self._authenticate(credentials)
        with self._index.reading() as txn:
            chosen = _choose_tenant(_tenants_of(Ledger(txn), user), tenant)
        claims = Claims(user.name, chosen.id, self._clock() + self._token_seconds)
        token = sign(claims, self._key, state_of(user))
        return IssuedToken(token, _principal(user, chosen, claims))

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

    # -- using -------------------------------------------------------------------------------

    async def validate_token(self, token: str) -> Principal:
        return self._validate(token)

    async def authorize(self, token: str, tenant: str) -> Principal:
        principal = self._validate(token)
        if principal.tenant.id != tenant:
            raise ForbiddenError("the token is for another tenant")
        return principal

    async def revoke_token(self, token: str) -> None:
        principal = self._validate(token)
        await self._runner.run(call_blocking(self._revoke, token, principal))

    def _revoke(self, token: str, principal: Principal) -> None:
        digest = digest_token(token)
        now = self._clock()
        # A negative time: versions that stored the tokens they issued take it for an expired one.
        expires_at = -principal.expires_at
        record = TokenRecord(digest.hex(), principal.username, principal.tenant.id, expires_at)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            self._make_room(ledger, now)
            ledger.put_token(digest, record)

        try:
            self._index.update(change)
        except BockdError:
            # It holds for as long as this process lives, and the caller is told that it may end.
            if len(self._revoked_here) < MAX_REVOKED:
                self._revoked_here.add(digest)
            raise
        hit(Failpoint.TOKEN_REVOKED)
        if not self._next_purge - PURGE_SECONDS <= now < self._next_purge:
            self._next_purge = now + PURGE_SECONDS

    def _make_room(self, ledger: Ledger, now: float) -> None:
        full = ledger.txn.count(TOKENS) >= MAX_REVOKED
        if full and self._full_since <= now < self._full_since + FULL_SECONDS:
            raise OverLimitError("too many tokens were revoked", int(PURGE_SECONDS))
        if full or not self._next_purge - PURGE_SECONDS <= now < self._next_purge:
            for digest, record in ledger.tokens():
                # Expired for whoever shares the index, whatever this clock and settings are. One
                # that ends too far ahead here may be valid to another daemon.
                if abs(record.expires_at) + CLOCK_TOLERANCE_SECONDS < now:
                    ledger.remove_token(digest)
        if full and ledger.txn.count(TOKENS) >= MAX_REVOKED:
            self._full_since = now
            raise OverLimitError("too many tokens were revoked", int(PURGE_SECONDS))

    async def list_tenants(self, token: str) -> list[Tenant]:
        principal = self._validate(token)
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            user = ledger.user(principal.username)
            return _tenants_of(ledger, user) if user else []

    def _validate(self, token: str) -> Principal:
        presented = parse(token)
        if presented is None:
            _refuse_token()
        claims = presented.claims
        digest = digest_token(token)
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            user = ledger.user(claims.username)
            if user is None or not presented.is_genuine(self._key, state_of(user)):
                _refuse_token()
            if not self._is_valid(claims.expires_at, self._clock()):
                _refuse_token()
            if digest in self._revoked_here or ledger.token(digest) is not None:
                _refuse_token()
            if claims.tenant not in user.roles:
                _refuse_token()
            return _principal(user, ledger.tenant(claims.tenant).tenant, claims)

    def _is_valid(self, expires_at: float, now: float) -> bool:
        """A token that was issued in the future, before the clock was set back, would live longer
        than any should."""
        latest = now + self._token_seconds + CLOCK_TOLERANCE_SECONDS
        return now < expires_at <= latest


def state_of(user: UserRecord) -> str:
    """Return the user's state, which is part of the key of its tokens (bockd.identity.tokens).
    The tokens become invalid when it changes."""
    return f"{user.id}:{user.epoch}:{user.password}"


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


def _principal(user: UserRecord, tenant: Tenant, claims: Claims) -> Principal:
    return Principal(user.id, user.name, tenant, tuple(user.roles[tenant.id]), claims.expires_at)
