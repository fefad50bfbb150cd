"""Against OpenStack's own Keystone (`make test-keystone`), which the other tests imitate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from bockd.config.sections import KeystoneSettings
from bockd.errors import ForbiddenError, UnauthorizedError, UnavailableError
from bockd.identity.contract import AccessKeyCredentials, PasswordCredentials
from bockd.identity.keystone.identity import KeystoneIdentity
from tests.config.served import serving as serving_bockd

from .asking import Clocks, asking
from .desk import Desk, volumes
from .real import RealKeystone, running
from .server import SERVICE_PASSWORD

pytestmark = pytest.mark.real_keystone

ALICE = PasswordCredentials("alice", "wonderland")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKeystone]:
    with running(tmp_path_factory.mktemp("real")) as keystone:
        yield keystone


@pytest.fixture
def asked(real: RealKeystone, tmp_path: Path) -> KeystoneSettings:
    """Settings for it."""
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(SERVICE_PASSWORD)
    return KeystoneSettings(url=real.url, username="bockd", password_file=password, cache_seconds=0)


def test_a_token_is_validated_by_a_user_with_the_role_service(
    real: RealKeystone, asked: KeystoneSettings
) -> None:
    token, document = real.token("alice", "wonderland", "acme")
    who = asking(asked, lambda identity, _: identity.validate_token(token))
    assert (who.username, who.user_id) == ("alice", real.ids["alice"])
    assert (who.tenant.name, who.tenant.id) == ("acme", real.ids["acme"])
    assert set(who.roles) == {"member", "reader"}  # a member is implied to be a reader
    assert who.expires_at == datetime.fromisoformat(document["expires_at"]).timestamp()


def test_tokens_that_are_not_valid(real: RealKeystone, asked: KeystoneSettings) -> None:
    revoked, _ = real.token("alice", "wonderland", "acme")
    unscoped, _ = real.token("alice", "wonderland", None)
    whole, _ = real.token("alice", "wonderland", "acme")
    real.revoke(revoked)

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        for token in (revoked, unscoped, "unknown", "gAAAAABk" + "x" * 150, whole[:-8], "x" * 8192):
            with pytest.raises(UnauthorizedError):
                await identity.validate_token(token)
        with pytest.raises(ForbiddenError):
            await identity.validate_token(real.token("alice", "wonderland", "zoo")[0])

    asking(asked, scenario)


def test_a_user_that_is_disabled_is_out(real: RealKeystone, asked: KeystoneSettings) -> None:
    real.make("user", "brief", password="wonderland")
    real.grant("brief", "acme", "member")
    token, _ = real.token("brief", "wonderland", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(token)
        path = f"/users/{real.ids['brief']}"
        assert real.admin.patch(path, json={"user": {"enabled": False}}).status_code == 200
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(token)

    asking(asked, scenario)


def test_our_own_token_is_renewed(real: RealKeystone, asked: KeystoneSettings) -> None:
    token, _ = real.token("alice", "wonderland", "acme")

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(token)
        ours = identity._client._service_token
        assert ours is not None
        real.revoke(ours)
        await identity.validate_token(token)
        assert identity._client._service_token != ours

    asking(asked, scenario)


def test_a_service_user_without_the_role(real: RealKeystone, asked: KeystoneSettings) -> None:
    assert asked.password_file is not None
    asked.password_file.write_text("wonderland")
    alice = replace(asked, username="alice", project="acme")
    other, _ = real.token("admin", "admin-password-2Lk", "admin")
    with pytest.raises(UnavailableError):
        asking(alice, lambda identity, _: identity.validate_token(other))


def test_tokens_for_clients_of_version_2(real: RealKeystone, asked: KeystoneSettings) -> None:
    made = real.admin.post(
        f"/users/{real.ids['alice']}/application_credentials",
        json={"application_credential": {"name": "key"}},
        headers={"X-Auth-Token": real.token("alice", "wonderland", "acme")[0]},
    )
    key = made.json()["application_credential"]

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        for tenant in ("acme", real.ids["acme"], None):
            issued = await identity.issue_token(ALICE, tenant)
            assert issued.principal.tenant.name == "acme"
            assert await identity.validate_token(issued.token) == issued.principal
        access_key = AccessKeyCredentials(key["id"], key["secret"])
        issued = await identity.issue_token(access_key, "acme")
        assert issued.principal.username == "alice"
        tenants = await identity.list_tenants(issued.token)
        assert [tenant.name for tenant in tenants] == ["acme", "zoo"]
        await identity.revoke_token(issued.token)
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(issued.token)
        for wrong, tenant in (
            (PasswordCredentials("alice", "wrong"), "acme"),
            (PasswordCredentials("", ""), "acme"),
            (PasswordCredentials("x" * 1000, "x" * 5000), "acme"),
            (ALICE, "service"),
            (ALICE, ""),
            (ALICE, "0" * 32),
            (AccessKeyCredentials(key["id"], "wrong"), None),
            (AccessKeyCredentials("unknown", "wrong"), None),
        ):
            with pytest.raises(UnauthorizedError):
                await identity.issue_token(wrong, tenant)

    asking(asked, scenario)


def test_an_application_credential_with_access_rules_is_refused(
    real: RealKeystone, asked: KeystoneSettings
) -> None:
    """They limit it to certain requests of certain services, which bockd would not enforce."""
    rule = {"service": "volume", "method": "GET", "path": "/v1.1/**"}
    made = real.admin.post(
        f"/users/{real.ids['alice']}/application_credentials",
        json={"application_credential": {"name": "limited", "access_rules": [rule]}},
        headers={"X-Auth-Token": real.token("alice", "wonderland", "acme")[0]},
    )
    key = made.json()["application_credential"]

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        issued = await identity.issue_token(AccessKeyCredentials(key["id"], key["secret"]), None)
        with pytest.raises(UnauthorizedError):
            await identity.validate_token(issued.token)

    asking(asked, scenario)


def test_a_daemon_beside_it(
    real: RealKeystone, asked: KeystoneSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    desk = Desk(tmp_path_factory.mktemp("rk"), asked)
    desk.configure()
    token, _ = real.token("alice", "wonderland", "acme")
    with serving_bockd(desk.config, desk.log) as url, httpx.Client(base_url=url) as client:
        made = client.post(
            f"/v1.1/{real.ids['acme']}/os-volumes",
            json={"volume": {"size": 1}},
            headers={"X-Auth-Token": token},
        )
        assert made.status_code == 200, made.text
        assert len(volumes(client, real.ids["acme"], token)[1]["volumes"]) == 1
        real.revoke(token)
        assert volumes(client, real.ids["acme"], token)[0] == 401
    assert token not in desk.log.read_text()
