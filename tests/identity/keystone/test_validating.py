"""Tokens are valid when Keystone says so, for as long as the configuration allows, and not else."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from bockd.config.sections import KeystoneSettings
from bockd.errors import ForbiddenError, UnauthorizedError
from bockd.identity.contract import Principal
from bockd.identity.keystone import tokencache
from bockd.identity.keystone.identity import KeystoneIdentity
from bockd.identity.keystone.tokencache import TokenCache

from .asking import TEST_SECONDS, Clocks, asking
from .server import Handler, Keystone


def test_a_token_tells_who_and_where(keystone: Keystone, settings: KeystoneSettings) -> None:
    token = keystone.new_token("alice", "acme")
    project = keystone.projects["acme"]

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> Principal:
        who = await identity.validate_token(token)
        assert await identity.authorize(token, project) == who
        with pytest.raises(ForbiddenError, match="for another tenant"):
            await identity.authorize(token, keystone.projects["zoo"])
        return who

    who = asking(settings, scenario)
    assert (who.username, who.user_id) == ("alice", keystone.users["alice"].id)
    assert (who.tenant.id, who.tenant.name) == (project, "acme")
    assert who.roles == ("member", "reader")
    assert who.expires_at == pytest.approx(keystone.tokens[token].expires_at.timestamp(), abs=1e-5)
    assert (keystone.count("POST"), keystone.count("GET")) == (1, 1)


@pytest.mark.parametrize("suffix", ["", "/", "/v3"])
def test_the_url_may_end_in_v3(keystone: Keystone, settings: KeystoneSettings, suffix: str) -> None:
    token = keystone.new_token("alice", "acme")
    url = f"{keystone.url}{suffix}".removesuffix("/")
    asking(replace(settings, url=url), lambda identity, _: identity.validate_token(token))
    assert keystone.asked[-1] == "GET /v3/auth/tokens?nocatalog"


@pytest.mark.parametrize(
    "token",
    ["unknown", "", "a b", "a\r\nX-Auth-Token: b", "\ud800", "é", "x" * 8193, "\0"],
    ids=lambda token: ascii(token[:30]),
)
def test_a_text_that_is_no_token_is_refused(
    keystone: Keystone, settings: KeystoneSettings, token: str
) -> None:
    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        for ask in (
            identity.validate_token,
            identity.list_tenants,
            identity.revoke_token,
            lambda token: identity.authorize(token, "x"),
        ):
            with pytest.raises(UnauthorizedError):
                await ask(token)

    asking(settings, scenario)
    if token != "unknown":
        assert keystone.asked == []


def test_a_token_for_no_project(keystone: Keystone, settings: KeystoneSettings) -> None:
    token = keystone.new_token("alice", None)
    with pytest.raises(UnauthorizedError, match="for no project"):
        asking(settings, lambda identity, _: identity.validate_token(token))


def test_a_role_is_needed(keystone: Keystone, settings: KeystoneSettings) -> None:
    token = keystone.new_token("alice", "zoo")  # a reader there
    with pytest.raises(ForbiddenError, match=r"project zoo admits you here \(admin, manager, mem"):
        asking(settings, lambda identity, _: identity.validate_token(token))
    readers = replace(settings, roles=("reader",))
    asking(readers, lambda identity, _: identity.validate_token(token))


# -- for how long ----------------------------------------------------------------------------------


def test_keystone_is_cached_for_the_configured_time(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, clocks: Clocks) -> None:
        await identity.validate_token(token)
        del keystone.tokens[token]  # revoked
        clocks.forward(settings.cache_seconds - 1)
        await identity.validate_token(token)
        assert keystone.count("GET") == 1
        clocks.forward(1)
        for _ in range(2):  # and no refusal is kept
            with pytest.raises(UnauthorizedError):
                await identity.validate_token(token)
        assert keystone.count("GET") == 3

    asking(settings, scenario)


def test_nothing_is_cached_when_so_configured(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(token)
        del keystone.tokens[token]
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(token)

    asking(replace(settings, cache_seconds=0), scenario)


def test_a_cached_token_ends_when_it_expires(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    keystone.token_seconds = 3000.0
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, clocks: Clocks) -> None:
        clocks.forward(2990)
        await identity.validate_token(token)
        clocks.forward(11)  # Keystone's own clock has not moved: only ours says so
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(token)

    asking(replace(settings, cache_seconds=3600), scenario)


def test_a_token_revoked_here_is_not_cached(keystone: Keystone, settings: KeystoneSettings) -> None:
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(token)
        await identity.revoke_token(token)
        assert token not in keystone.tokens
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(token)
        with pytest.raises(UnauthorizedError):
            await identity.revoke_token(token)

    asking(settings, scenario)


def test_what_is_cached_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokencache, "MAX_ENTRIES", 3)
    kept = TokenCache(10, lambda: 0.0)
    who: Principal = object()  # type: ignore[assignment]
    for token in "abc":
        kept.keep(token, who)
    assert kept.find("a") is who  # and so "b" was not used for longest
    kept.keep("d", who)
    assert len(kept) == 3
    assert [token for token in "abcd" if kept.find(token)] == ["a", "c", "d"]


# -- many at once ----------------------------------------------------------------------------------


def test_many_requests_with_one_token_are_one_question(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        async with trio.open_nursery() as nursery:
            for _number in range(100):
                nursery.start_soon(identity.validate_token, token)

    asking(settings, scenario)
    assert (keystone.count("POST"), keystone.count("GET")) == (1, 1)


def test_a_client_that_hangs_up_leaves_the_answer_to_others(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    token = keystone.new_token("alice", "acme")
    asked, answer = threading.Event(), threading.Event()

    def wait(handler: Handler) -> bool:
        if handler.command == "GET":
            asked.set()
            answer.wait(TEST_SECONDS)
        return False

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> Principal:
        found: list[Principal] = []

        async def patient() -> None:
            found.append(await identity.validate_token(token))

        async with trio.open_nursery() as nursery, trio.open_nursery() as impatient:
            impatient.start_soon(identity.validate_token, token)
            await trio.to_thread.run_sync(asked.wait, TEST_SECONDS)
            nursery.start_soon(patient)
            await wait_all_tasks_blocked()
            assert keystone.count("GET") == 1
            impatient.cancel_scope.cancel()
            answer.set()
        return found[0]

    keystone.fault = wait
    assert asking(settings, scenario).username == "alice"
    assert keystone.count("GET") == 2


def test_a_refusal_is_for_all_who_wait(keystone: Keystone, settings: KeystoneSettings) -> None:
    async def scenario(identity: KeystoneIdentity, _: Clocks) -> int:
        refused = 0

        async def ask() -> None:
            nonlocal refused
            with pytest.raises(UnauthorizedError):
                await identity.validate_token("unknown")
            refused += 1

        async with trio.open_nursery() as nursery:
            for _number in range(10):
                nursery.start_soon(ask)
        return refused

    assert asking(settings, scenario) == 10
    assert keystone.count("GET") == 1
