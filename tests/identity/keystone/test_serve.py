"""A daemon whose tokens come from Keystone, as its clients see it; its log tells no secrets."""

from __future__ import annotations

import os
import subprocess

import httpx
import pytest

from bockd.config.sections import KeystoneSettings
from tests.config.served import serving as serving_bockd
from tests.config.served import token_for
from tests.daemon.process import program

from .desk import Desk, volumes
from .server import SERVICE_PASSWORD, Handler, Keystone, serving


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, settings: KeystoneSettings) -> Desk:
    return Desk(tmp_path_factory.mktemp("ks"), settings)


def unexpected_error(handler: Handler) -> bool:
    handler.refuse(500, "An unexpected error prevented the server from fulfilling your request.")
    return True


def test_projects_are_tenants(keystone: Keystone, desk: Desk) -> None:
    desk.configure()
    token, project = keystone.new_token("alice", "acme"), keystone.projects["acme"]
    with serving_bockd(desk.config, desk.log) as url, httpx.Client(base_url=url) as client:
        made = client.post(
            f"/v1.1/{project}/os-volumes",
            json={"volume": {"size": 1, "display_name": "mine"}},
            headers={"X-Auth-Token": token},
        )
        assert made.status_code == 200, made.text
        status, found = volumes(client, project, token)
        assert (status, [one["displayName"] for one in found["volumes"]]) == (200, ["mine"])
        assert volumes(client, keystone.projects["zoo"], token)[0] == 403
        reader = keystone.new_token("alice", "zoo")
        assert volumes(client, keystone.projects["zoo"], reader)[0] == 403
        status, fault = volumes(client, project, "unknown")
        assert (status, list(fault)) == (401, ["unauthorized"])

        own = token_for(client, desk.data_dir)["token"]
        assert volumes(client, own["tenant"]["id"], own["id"]) == (200, {"volumes": []})
        assert volumes(client, project, own["id"])[0] == 403

        passwords = {"username": "alice", "password": "wonderland"}
        auth = {"passwordCredentials": passwords, "tenantName": "acme"}
        answer = client.post("/v2.0/tokens", json={"auth": auth})
        access = answer.json()["access"]
        assert access["token"]["tenant"]["id"] == project
        assert volumes(client, project, access["token"]["id"])[0] == 200
        tenants = client.get("/v2.0/tenants", headers={"X-Auth-Token": token}).json()["tenants"]
        assert [tenant["name"] for tenant in tenants] == ["acme", "zoo"]

        keystone.fault = unexpected_error
        status, fault = volumes(client, project, token)
        assert (status, list(fault)) == (503, ["serviceUnavailable"])
        assert volumes(client, own["tenant"]["id"], own["id"])[0] == 200
        keystone.fault = None
        assert volumes(client, project, token)[0] == 200

    log = desk.log.read_text()
    assert "Keystone cannot be used: it answers with status 500" in log
    assert "Keystone can be used again" in log
    secrets = [SERVICE_PASSWORD, "wonderland", own["id"], *keystone.tokens]
    assert [secret for secret in secrets if secret in log] == []


def test_without_accounts_of_its_own(keystone: Keystone, desk: Desk) -> None:
    desk.configure(local=False)
    with serving_bockd(desk.config, desk.log) as url, httpx.Client(base_url=url) as client:
        token, project = keystone.new_token("alice", "acme"), keystone.projects["acme"]
        assert volumes(client, project, token)[0] == 200
        with pytest.raises(AssertionError, match="unauthorized"):
            token_for(client, desk.data_dir)


def test_a_start_does_not_need_keystone(desk: Desk) -> None:
    with serving() as gone:
        desk.settings = KeystoneSettings(
            url=gone.url, username="bockd", password_file=desk.settings.password_file
        )
    desk.configure()
    with serving_bockd(desk.config, desk.log) as url, httpx.Client(base_url=url) as client:
        own = token_for(client, desk.data_dir)["token"]
        assert volumes(client, own["tenant"]["id"], own["id"])[0] == 200
        assert volumes(client, own["tenant"]["id"], "x")[0] == 503


def test_a_password_that_others_may_read_stops_the_daemon(desk: Desk) -> None:
    desk.configure()
    path = desk.settings.password_file
    assert path is not None
    path.chmod(0o644)
    ended = subprocess.run(
        [program("bockd"), "serve", "--config", desk.config],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"bockd: keystone.password_file: others may read {path} (mode 0644): chmod 600 {path}\n"
    )
    assert not desk.data_dir.exists()
