"""POST /v2.0/tokens for Keystone's users; bockd's own accounts beside them."""

from __future__ import annotations

import pytest

from bockd.config.sections import KeystoneSettings
from bockd.errors import ForbiddenError, UnauthorizedError
from bockd.identity.contract import (
    AccessKeyCredentials,
    Credentials,
    IssuedToken,
    PasswordCredentials,
    Principal,
)
from bockd.identity.keystone.fallback import FallbackIdentity
from bockd.identity.keystone.identity import KeystoneIdentity
from tests.api.memory_identity import ALICE as LOCAL_ALICE
from tests.api.memory_identity import DEMO, MemoryIdentity

from .asking import Clocks, asking
from .server import Keystone

ALICE = PasswordCredentials("alice", "wonderland")


def test_a_password_gives_a_token_of_keystone(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        for tenant in ("acme", keystone.projects["acme"]):
            issued = await identity.issue_token(ALICE, tenant)
            assert issued.token in keystone.tokens
            assert issued.principal.tenant.name == "acme"
            assert await identity.validate_token(issued.token) == issued.principal

    asking(settings, scenario)


def test_without_a_tenant_the_users_default_or_the_first_by_name(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    keystone.add("bob", "builder", {"zoo": ["member"], "acme": ["member"]})

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> list[str]:
        found = []
        for default in (None, "zoo"):
            keystone.users["bob"].default_project = default
            issued = await identity.issue_token(PasswordCredentials("bob", "builder"), None)
            found.append(issued.principal.tenant.name)
        return found

    assert asking(settings, scenario) == ["acme", "zoo"]


def test_an_application_credential_is_an_access_key(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    keystone.application_credentials["id1"] = ("secret1", keystone.users["alice"], "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        for tenant in (None, "acme", keystone.projects["acme"]):
            issued = await identity.issue_token(AccessKeyCredentials("id1", "secret1"), tenant)
            assert issued.principal.tenant.id == keystone.projects["acme"]
        for key, tenant in (
            (AccessKeyCredentials("id1", "secret2"), None),
            (AccessKeyCredentials("id2", "secret1"), None),
            (AccessKeyCredentials("id1", "secret1"), "zoo"),
        ):
            with pytest.raises(UnauthorizedError):
                await identity.issue_token(key, tenant)

    asking(settings, scenario)


@pytest.mark.parametrize(
    ("credentials", "tenant"),
    [
        (PasswordCredentials("alice", "wrong"), "acme"),
        (PasswordCredentials("unknown", "wonderland"), "acme"),
        (PasswordCredentials("\ud800", "\ud800"), "acme"),
        (ALICE, "service"),
        (ALICE, "unknown"),
        (ALICE, "0" * 32),
        (ALICE, ""),
        (ALICE, "\ud800"),
        (PasswordCredentials("nobody", "nothing"), None),
    ],
)
def test_wrong_credentials_all_get_the_same_answer(
    settings: KeystoneSettings, credentials: Credentials, tenant: str | None
) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        asking(settings, lambda identity, _: identity.issue_token(credentials, tenant))
    assert str(caught.value) == "the credentials are wrong, or not for this tenant"


def test_the_tenants_of_a_token(keystone: Keystone, settings: KeystoneSettings) -> None:
    token = keystone.new_token("alice", "acme")
    tenants = asking(settings, lambda identity, _: identity.list_tenants(token))
    assert [(tenant.name, tenant.id) for tenant in tenants] == [
        (name, keystone.projects[name]) for name in ("acme", "zoo")
    ]


# -- both ------------------------------------------------------------------------------------------


def test_own_accounts_first_then_keystone(keystone: Keystone, settings: KeystoneSettings) -> None:
    local = MemoryIdentity(LOCAL_ALICE)
    theirs = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> tuple[IssuedToken, Principal]:
        both = FallbackIdentity(local, identity)
        ours = await both.issue_token(PasswordCredentials("alice", "wonderland"), None)
        assert (await both.validate_token(ours.token)).tenant == DEMO
        assert await both.list_tenants(ours.token) == [DEMO]
        assert (await both.authorize(ours.token, DEMO.id)).tenant == DEMO
        with pytest.raises(ForbiddenError):
            await both.authorize(ours.token, keystone.projects["acme"])
        assert keystone.asked == []  # what is ours is nobody else's business

        project = keystone.projects["acme"]
        assert (await both.authorize(theirs, project)).tenant.id == project
        assert [tenant.name for tenant in await both.list_tenants(theirs)] == ["acme", "zoo"]
        issued = await both.issue_token(ALICE, "acme")
        assert issued.token in keystone.tokens

        await both.revoke_token(ours.token)
        await both.revoke_token(issued.token)
        for gone in (ours.token, issued.token, "unknown"):
            with pytest.raises(UnauthorizedError):
                await both.validate_token(gone)
        return ours, await both.validate_token(theirs)

    ours, principal = asking(settings, scenario)
    assert ours.principal.tenant == DEMO
    assert principal.tenant.name == "acme"
