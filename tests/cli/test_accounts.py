"""`bock tenant`, `bock user` and `bock credentials rotate`, against a running daemon."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.cli.storage import StorageClient
from bockd.config.load import load

from .daemon import Daemon, acting, running_daemon


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose credentials may change."""
    with running_daemon(tmp_path_factory.mktemp("accounts") / "pool") as daemon:
        yield daemon


def test_the_life_of_a_tenant_and_its_user(own: Daemon) -> None:
    made = own.bock_json("tenant", "create", "acme", "--volumes", "1", "--gigabytes", "unlimited")
    assert (made["max_volumes"], made["max_gigabytes"], made["max_snapshots"]) == (1, -1, 1000)
    assert "exists already" in own.refusal("tenant", "create", "acme")
    assert "no tenant 'none'" in own.refusal("user", "create", "ann", "--tenant", "none")
    ann = own.bock_json("user", "create", "ann", "--tenant", "acme")
    assert "exists already" in own.refusal("user", "create", "ann", "--tenant", "acme")
    there = acting(own, "ann", ann["password"], "acme")
    assert own.run("bock", "volume", "create", "mine", "--size", "1M", **there).status == 0
    assert "quota exceeded" in own.refusal("volume", "create", "two", "--size", "1M", **there)
    changed = own.bock_json("tenant", "quota", "acme", "--volumes", "2")
    assert (changed["max_volumes"], changed["max_gigabytes"], changed["volumes"]) == (2, -1, 1)
    assert own.run("bock", "volume", "create", "two", "--size", "1M", **there).status == 0
    assert own.bock_json("tenant", "quota", "acme", "--default")["quota_from"] == "default"
    assert own.run("bock", "tenant", "quota", "acme").status == 2
    assert own.run("bock", "tenant", "quota", "acme", "--volumes", "many").status == 2

    told = own.refusal("tenant", "delete", "acme")
    assert "tenant 'acme' has 2 volumes and 0 snapshots; delete them first" in told
    for name in ("mine", "two"):
        assert own.run("bock", "volume", "delete", name, **there).status == 0
    own.bock("server", "add", "box", "--kind", "plain", "--tenant", "acme")
    assert "bock server remove box" in own.refusal("tenant", "delete", "acme")
    own.bock("server", "remove", "box")
    assert own.bock("tenant", "delete", "acme").startswith("deleted tenant acme (")
    assert "are refused" in own.refusal("limits", **there)
    assert own.bock_json("user", "show", "ann")["tenants"] == []
    own.bock("user", "delete", "ann")
    assert "no user 'ann'" in own.refusal("user", "show", "ann")
    assert {one["name"] for one in own.bock_json("tenant", "list")} == {"demo"}
    assert "demo" in own.bock("tenant", "list")
    assert "demo" in own.bock("user", "list")


def test_who_has_a_token_is_turned_away_at_once(own: Daemon) -> None:
    """After a new password, a new access key, another tenant, and the end of the user."""
    own.bock("tenant", "create", "one")
    own.bock("tenant", "create", "other")
    given = subprocess.run(
        ["bock", "user", "create", "bob", "--tenant", "one", "--password-stdin", "--json"],
        input="first\n",
        env=own.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(given.stdout) == {"username": "bob", "password": "first"}

    def token(password: str, tenant: str = "one") -> dict[str, str]:
        there = acting(own, "bob", password, tenant)
        with StorageClient(load(None, own.environment).settings, there) as client:
            issued = client.token
        return {"OS_AUTH_URL": there["OS_AUTH_URL"], "OS_TOKEN": issued}

    def works(by_token: dict[str, str]) -> bool:
        return own.run("bock", "limits", **by_token).status == 0

    first = token("first")
    assert works(first)
    password = own.bock_json("user", "password", "bob")["password"]
    assert not works(first)
    assert "are refused" in own.refusal("limits", **acting(own, "bob", "first", "one"))
    second = token(password)
    key = own.bock_json("user", "access-key", "bob")
    assert own.bock_json("user", "show", "bob")["access_keys"] == [key["access_key"]]
    assert not works(second)
    newer = own.bock_json("user", "access-key", "bob")
    assert own.bock_json("user", "show", "bob")["access_keys"] == [newer["access_key"]]
    assert own.bock_json("user", "grant", "bob", "other")["tenants"] == ["one", "other"]
    third, fourth = token(password), token(password, "other")
    assert works(third)
    assert own.bock_json("user", "revoke", "bob", "one")["tenants"] == ["other"]
    assert not works(third)
    assert works(fourth)
    assert "not in tenant 'one'" in own.refusal("user", "revoke", "bob", "one")
    own.bock("user", "delete", "bob")
    own.bock("user", "create", "bob", "--tenant", "other")
    assert not works(fourth)  # he is another one


def test_rotating_the_credentials(own: Daemon) -> None:
    path = own.data_dir / "credentials.json"
    before = json.loads(path.read_text())
    with own.storage() as storage:
        by_token = {"OS_TOKEN": storage.token}
        by_token["OS_AUTH_URL"] = acting(own, "", "", "")["OS_AUTH_URL"]
        assert own.bock("credentials", "rotate") == f"wrote new credentials to {path}\n"
    after = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [one for one in own.data_dir.iterdir() if one.name.endswith(".new")]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"password", "access_key", "secret_key"}
    own.bock("limits")
    assert "OS_TOKEN is refused" in own.refusal("limits", **by_token)
    old = acting(own, before["username"], before["password"], "demo")
    assert "are refused" in own.refusal("limits", **old)
    assert own.bock_json("user", "show", "demo")["access_keys"] == [after["access_key"]]
    path.unlink()
    own.bock("credentials", "rotate")
    own.bock("limits")


def test_the_configuration_prevails(tmp_path: Path) -> None:
    configuration = tmp_path / "bockd.toml"
    configuration.write_text("[quota.tenants.demo]\nvolumes = 3\n")
    with running_daemon(tmp_path / "pool", BOCKD_CONFIG=str(configuration)) as daemon:
        shown = daemon.bock_json("tenant", "show", "demo")
        assert (shown["max_volumes"], shown["quota_from"]) == (3, "configuration")
        told = daemon.refusal("tenant", "quota", "demo", "--volumes", "7")
        assert "the configuration has the quota of tenant 'demo'" in told
