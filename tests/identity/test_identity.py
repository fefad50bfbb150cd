"""Tenants, users and tokens."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bockd.blockstorage.contract import Quota, TenantId
from bockd.blockstorage.records import TOKENS, Ledger, TokenRecord
from bockd.errors import (
    ConflictError,
    DamagedError,
    ForbiddenError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    OverLimitError,
    UnauthorizedError,
)
from bockd.identity import local as identity
from bockd.identity.contract import AccessKeyCredentials, Credentials, PasswordCredentials
from bockd.identity.local import CLOCK_TOLERANCE_SECONDS, LocalIdentity, state_of
from bockd.identity.secrethash import digest_token, hash_secret, verify_secret
from bockd.identity.tokens import KEY_FILE, Claims, load_key, sign
from bockd.pool.index import Transaction
from bockd.runtime.steprunner import StepRunner
from tests.blockstorage.store import Store

from .desk import KEY, Desk


@pytest.fixture
def desk(store: Store, tenant: TenantId) -> Desk:
    store.accounts.create_user("ann", "right", (tenant,))
    return Desk(store)


ANN = PasswordCredentials("ann", "right")


def test_a_password_gives_a_token_that_tells_who(desk: Desk, tenant: TenantId) -> None:
    for wanted in (None, "acme", tenant):
        issued = desk.issue(ANN, wanted)
        who = issued.principal
        assert (who.username, who.tenant.id, who.tenant.name) == ("ann", tenant, "acme")
        assert (who.roles, who.expires_at) == (("admin",), 1060.0)
        assert trio.run(desk.identity.validate_token, issued.token) == who
        assert trio.run(desk.identity.authorize, issued.token, tenant) == who
        assert issued.token not in repr(issued)


def test_an_access_key_gives_a_token(store: Store, desk: Desk) -> None:
    key = store.accounts.create_access_key("ann")
    issued = desk.issue(AccessKeyCredentials(key.access_key, key.secret_key), "acme")
    assert issued.principal.username == "ann"
    assert key.secret_key not in repr(key)


@pytest.mark.parametrize(
    ("credentials", "wanted"),
    [
        (PasswordCredentials("ann", "wrong"), "acme"),
        (PasswordCredentials("ann", ""), "acme"),
        (PasswordCredentials("bob", "right"), "acme"),
        (PasswordCredentials("", "right"), "acme"),
        (PasswordCredentials("x" * 1000, "right"), "acme"),
        (PasswordCredentials("\ud800", "\ud800"), "acme"),
        (PasswordCredentials("ann", "x" * 100_000), "acme"),
        (AccessKeyCredentials("ann", "right"), "acme"),
        (AccessKeyCredentials("", ""), "acme"),
        (ANN, "other"),
        (ANN, ""),
        (ANN, "\ud800"),
    ],
)
def test_wrong_credentials_all_get_the_same_answer(
    store: Store, desk: Desk, credentials: Credentials, wanted: str
) -> None:
    store.tenant("other")
    with pytest.raises(UnauthorizedError) as caught:
        desk.issue(credentials, wanted)
    assert str(caught.value) == "the credentials are wrong, or not for this tenant"


def test_of_several_tenants_the_first_by_name(store: Store) -> None:
    tenants = tuple(store.tenant(name) for name in ("zoo", "acme", "mid"))
    store.accounts.create_user("ann", "right", tenants)
    desk = Desk(store)
    issued = desk.issue(ANN)
    assert issued.principal.tenant.name == "acme"
    listed = trio.run(desk.identity.list_tenants, issued.token)
    assert [tenant.name for tenant in listed] == ["acme", "mid", "zoo"]
    assert desk.issue(ANN, tenants[0]).principal.tenant.name == "zoo"


def test_a_text_that_is_no_token_is_refused(desk: Desk) -> None:
    token = desk.issue(ANN).token
    for wrong in ("", token[:-1], token + "x", token.swapcase(), "\ud800", "x" * 100_000):
        with pytest.raises(UnauthorizedError):
            trio.run(desk.identity.validate_token, wrong)


def test_a_token_that_was_changed_or_forged_is_none(desk: Desk, tenant: TenantId) -> None:
    """Of a token, no bit can be changed, and another key makes none."""
    token = desk.issue(ANN).token
    for at, was in enumerate(token):
        for other in "A_z.":
            if other != was:
                with pytest.raises(UnauthorizedError):
                    trio.run(desk.identity.validate_token, token[:at] + other + token[at + 1 :])
    with desk.store.pool.index.reading() as txn:
        user = Ledger(txn).user("ann")
    assert user is not None
    claims = Claims("ann", tenant, desk.now + 30)
    trio.run(desk.identity.validate_token, sign(claims, KEY, state_of(user)))
    for forged in (sign(claims, b"x" * 32, state_of(user)), sign(claims, KEY, "")):
        with pytest.raises(UnauthorizedError):
            trio.run(desk.identity.validate_token, forged)


def test_a_new_password_ends_a_users_tokens(store: Store, desk: Desk) -> None:
    token = desk.issue(ANN).token

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        user = ledger.user("ann")
        assert user is not None
        ledger.put_user(replace(user, password=hash_secret("right")))

    store.pool.index.update(change)
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.validate_token, token)
    desk.issue(ANN)


def test_a_token_expires(desk: Desk) -> None:
    token = desk.issue(ANN).token
    desk.now += 59.9
    trio.run(desk.identity.validate_token, token)
    desk.now += 0.1
    with pytest.raises(UnauthorizedError, match="expired"):
        trio.run(desk.identity.validate_token, token)


def test_logging_in_and_using_a_token_writes_nothing(store: Store, desk: Desk) -> None:
    """Both go on when the disk is full or read-only."""
    index = store.root / "index" / "data.mdb"
    before = index.read_bytes()
    issued = desk.issue(ANN)
    trio.run(desk.identity.validate_token, issued.token)
    assert index.read_bytes() == before


def test_the_key_is_kept_and_private(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    assert len(key) == 32
    assert load_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / KEY_FILE).write_bytes(b"short")
    assert load_key(tmp_path) not in (key, b"short")


def test_a_clock_that_is_set_back_prolongs_no_token(desk: Desk) -> None:
    """By a little: tokens go on. By a lot: none lives longer than it should for it, and new ones
    are issued."""
    desk.now = 1_000_000.0
    issued = desk.issue(ANN)
    desk.now -= CLOCK_TOLERANCE_SECONDS - 1
    trio.run(desk.identity.validate_token, issued.token)
    desk.now -= 100_000
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.validate_token, issued.token)
    again = desk.issue(ANN)
    assert trio.run(desk.identity.validate_token, again.token).expires_at == desk.now + 60
    desk.now += 61
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.validate_token, again.token)


def test_a_token_survives_a_restart_and_is_not_stored(store: Store, desk: Desk) -> None:
    token, revoked = desk.issue(ANN).token, desk.issue(ANN).token
    trio.run(desk.identity.revoke_token, revoked)
    store.restart()
    assert trio.run(Desk(store).identity.validate_token, token).username == "ann"
    stored = (store.root / "index" / "data.mdb").read_bytes()
    assert token.encode() not in stored
    assert revoked.encode() not in stored
    assert b"right" not in stored
    assert digest_token(revoked) in stored


def test_a_token_is_revoked_at_once_and_for_good(store: Store, desk: Desk) -> None:
    token, other = desk.issue(ANN).token, desk.issue(ANN).token
    trio.run(desk.identity.revoke_token, token)
    for call in (desk.identity.validate_token, desk.identity.revoke_token):
        with pytest.raises(UnauthorizedError):
            trio.run(call, token)
    store.restart()
    again = Desk(store).identity
    with pytest.raises(UnauthorizedError):
        trio.run(again.validate_token, token)
    trio.run(again.validate_token, other)


def test_a_revocation_that_cannot_be_stored_holds_here(
    store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told."""

    def full(*_: object) -> None:
        raise NoSpaceError("full")

    token = desk.issue(ANN).token
    with monkeypatch.context() as patch:
        patch.setattr(store.pool.index, "update", full)
        with pytest.raises(NoSpaceError):
            trio.run(desk.identity.revoke_token, token)
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.validate_token, token)


def test_what_older_versions_stored_of_a_token_lets_nobody_in(store: Store, desk: Desk) -> None:
    """And what is stored of a revoked one is not valid to them: it has expired long ago."""
    token = desk.issue(ANN).token
    trio.run(desk.identity.revoke_token, token)
    with store.pool.index.reading() as txn:
        ((_, record),) = Ledger(txn).tokens()
    assert record.expires_at == -1060.0

    def issue_as_before(txn: Transaction) -> None:
        issued = replace(record, digest=digest_token("old").hex(), expires_at=1060.0)
        Ledger(txn).put_token(digest_token("old"), issued)

    store.pool.index.update(issue_as_before)
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.validate_token, "old")


def test_a_token_is_for_one_tenant(store: Store, desk: Desk) -> None:
    token = desk.issue(ANN).token
    for other in (store.tenant("other"), "acme", "", "\ud800"):
        with pytest.raises(ForbiddenError):
            trio.run(desk.identity.authorize, token, other)
    with pytest.raises(UnauthorizedError):
        trio.run(desk.identity.authorize, "wrong", "acme")


def test_too_many_authentications_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_PENDING", 3)
    refused: list[int] = []

    async def one() -> None:
        try:
            await desk.identity.issue_token(ANN, None)
        except OverLimitError as error:
            refused.append(error.retry_after_seconds)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)

    trio.run(main)
    assert refused == [1] * 5
    desk.issue(ANN)


def revoke_one(desk: Desk) -> None:
    trio.run(desk.identity.revoke_token, desk.issue(ANN).token)


def test_revoked_tokens_are_limited_and_forgotten_when_they_have_expired(
    store: Store, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "MAX_REVOKED", 2)
    revoke_one(desk)
    revoke_one(desk)
    with pytest.raises(OverLimitError):
        revoke_one(desk)
    desk.issue(ANN)
    desk.now += 60 + CLOCK_TOLERANCE_SECONDS + 1
    revoke_one(desk)
    with store.pool.index.reading() as txn:
        assert txn.count(TOKENS) == 1


def test_a_revocation_is_kept_while_any_daemon_may_take_the_token(store: Store, desk: Desk) -> None:
    """Of two that share an index, the one whose tokens live shorter, and whose clock is ahead,
    forgets what has expired for both."""
    longer = LocalIdentity(store.pool.index, StepRunner(2), lambda: 1000.0, KEY, 3600)
    token = trio.run(longer.issue_token, ANN, None).token
    trio.run(longer.revoke_token, token)
    revoke_one(desk)
    desk.now += CLOCK_TOLERANCE_SECONDS
    desk.identity._next_purge = 0.0
    revoke_one(desk)
    with pytest.raises(UnauthorizedError):
        trio.run(longer.validate_token, token)
    with store.pool.index.reading() as txn:
        assert txn.count(TOKENS) == 3


def test_a_full_table_is_not_looked_through_at_each_revocation(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "MAX_REVOKED", 1)
    revoke_one(desk)
    looks = []
    real = Ledger.tokens

    def look(ledger: Ledger) -> list[tuple[bytes, TokenRecord]]:
        looks.append(1)
        return real(ledger)

    monkeypatch.setattr(Ledger, "tokens", look)
    for _ in range(3):
        with pytest.raises(OverLimitError):
            revoke_one(desk)
    assert len(looks) == 1
    desk.now += identity.FULL_SECONDS
    with pytest.raises(OverLimitError):
        revoke_one(desk)
    assert len(looks) == 2


def test_hashes() -> None:
    stored = hash_secret("secret")
    assert stored != hash_secret("secret")
    assert "secret" not in stored
    assert verify_secret("secret", stored)
    assert not verify_secret("Secret", stored)
    assert not verify_secret("secret", None)
    assert not verify_secret("", None)
    for damaged in ("x", "md5$1$1$1$00$00"):
        with pytest.raises(DamagedError):
            verify_secret("secret", damaged)


def test_accounts_are_unique(store: Store, tenant: TenantId) -> None:
    with pytest.raises(ConflictError):
        store.accounts.create_tenant("acme")
    store.accounts.create_user("ann", "x", (tenant,))
    with pytest.raises(ConflictError):
        store.accounts.create_user("ann", "x", (tenant,))
    with pytest.raises(InvalidRequestError):
        store.accounts.create_tenant("")
    with pytest.raises(NotFoundError):
        store.accounts.create_access_key("bob")
    with pytest.raises(NotFoundError):
        store.accounts.set_quota(TenantId("none"), lambda _: None)


def test_a_quota_can_be_changed(store: Store, tenant: TenantId) -> None:
    store.volume(tenant)
    store.accounts.set_quota(tenant, lambda _: Quota(1, 1, 1))
    with pytest.raises(OverLimitError):
        store.volume(tenant)
    store.accounts.set_quota(tenant, lambda _: None)
    store.volume(tenant)
