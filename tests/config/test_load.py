"""Which file is read, what overrides it, and where each value comes from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bockd.cli.bock import main as bock
from bockd.cli.bockd import main
from bockd.config.address import Address
from bockd.config.load import default_data_dir, default_file, find_file, load
from bockd.config.problems import ConfigurationError
from bockd.config.sections import Settings, TenantQuotaSettings

FILE = """\
data_dir = "/srv/pool"
log_level = "debug"
[nbd]
listen = "[::1]:0"
[api]
listen = "none"
[identity]
token_seconds = 600
[keystone]
url = "https://keystone.example.org/identity/v3/"
username = "bockd"
local = false
[catalog]
region = "here"
public_url = "https://volumes.example.org/"
[catalog.zones]
"there.geo-1" = "http://192.0.2.2:8776"
[quota]
gigabytes = -1
[quota.tenants.acme]
volumes = 3
[quota.tenants."6f1c"]
snapshots = 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bockd.toml"
    path.write_text(FILE)
    return path


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "BOCKD_CONFIG": "/dev/null", "BOCKD_DATA": "/var/lib/bockd"}
    assert load(None, environ).settings == Settings()


def test_the_settings_are_those_of_the_file(file: Path) -> None:
    loaded = load(file, {})
    settings = loaded.settings
    assert settings.data_dir == Path("/srv/pool")
    assert settings.api_socket == Path("/srv/pool/api.sock")
    assert settings.log_level == "debug"
    assert settings.nbd.listen == Address("::1", 0)
    assert settings.api.listen is None
    assert settings.identity.token_seconds == 600
    assert settings.keystone.url == "https://keystone.example.org/identity/v3"
    assert settings.keystone.project == "service"
    assert not settings.keystone.local
    assert settings.catalog.public_url == "https://volumes.example.org"
    assert settings.catalog.zones == {"there.geo-1": "http://192.0.2.2:8776"}
    assert settings.quota.gigabytes == -1
    assert settings.quota.tenants == {
        "acme": TenantQuotaSettings(volumes=3),
        "6f1c": TenantQuotaSettings(snapshots=0),
    }
    assert loaded.source("data_dir") == f"{file}:1"
    assert loaded.source("catalog.region") == f"{file}:14"
    assert loaded.source("quota.tenants.acme.volumes") == f"{file}:21"
    assert loaded.source("quota.volumes") == "default"


def test_the_environment_overrides_the_file(file: Path) -> None:
    environ = {
        "BOCKD_CONFIG": str(file),
        "BOCKD_DATA": "relative",
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": "0.0.0.0:80",
    }
    loaded = load(None, environ)
    assert loaded.file == file
    assert loaded.settings.data_dir == Path("relative").absolute()
    assert loaded.settings.nbd.listen is None
    assert loaded.settings.api.listen == Address("0.0.0.0", 80)
    assert loaded.settings.log_level == "debug"
    assert loaded.source("data_dir") == "BOCKD_DATA"
    assert loaded.source("nbd.listen") == "BOCKD_NBD_LISTEN"
    assert loaded.source("api.listen") == "BOCKD_API_LISTEN"


@pytest.mark.parametrize("variable", ["BOCKD_NBD_LISTEN", "BOCKD_API_LISTEN"])
def test_the_environment_can_be_wrong_too(variable: str) -> None:
    for value in ("", "80", "h:", ":80", "h:-1", "h:99999999999999999999"):
        with pytest.raises(ConfigurationError) as caught:
            load(Path("/dev/null"), {variable: value})
        assert str(caught.value) == f"{variable}: {value!r} is not HOST:PORT, nor the word none"


def test_the_named_file_is_read_or_else_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    home = {"HOME": str(tmp_path), "BOCKD_CONFIG": ""}
    assert find_file(home) is None
    usual = tmp_path / ".config" / "bockd" / "bockd.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("log_level = 'error'")
    assert find_file(home) == usual
    loaded = load(None, home)
    assert (loaded.settings.log_level, loaded.file) == ("error", usual)
    assert loaded.settings.data_dir == tmp_path / ".local" / "share" / "bockd"
    named = {**home, "BOCKD_CONFIG": str(tmp_path / "none")}
    with pytest.raises(ConfigurationError, match="No such file"):
        load(None, named)
    usual.unlink()
    usual.symlink_to("nowhere")
    with pytest.raises(ConfigurationError, match="No such file"):
        load(None, home)


def test_the_usual_places() -> None:
    assert default_file({"HOME": "/h"}, as_root=True) == Path("/etc/bockd/bockd.toml")
    assert default_file({"XDG_CONFIG_HOME": "/x"}, as_root=False) == Path("/x/bockd/bockd.toml")
    assert default_data_dir({"XDG_DATA_HOME": "/x"}, as_root=False) == Path("/x/bockd")
    assert default_data_dir({}, as_root=True) == Path("/var/lib/bockd")


# -- the commands ----------------------------------------------------------------------------------


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["config", *arguments], prog_name="bockd", env=environ)
    return result.exit_code, result.output


def test_check_says_that_all_is_right(file: Path) -> None:
    assert run("check", str(file)) == (0, f"{file}: right\n")
    assert run("check", BOCKD_CONFIG=str(file)) == (0, f"{file}: right\n")
    status, output = run("check", str(file), "--json")
    assert (status, json.loads(output)) == (0, {"valid": True, "problems": []})


def test_check_lists_problems_and_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "bockd.toml"
    file.write_text("[nbd]\nlisten = 1\nx = 1\n")
    reasons = [
        "expected a string, found an integer",
        "unknown key; here may stand: listen, tls, client_certificates, keepalive_seconds, "
        "tcp_user_timeout_seconds",
    ]
    expected = f"{file}:2: nbd.listen: {reasons[0]}\n{file}:3: nbd.x: {reasons[1]}\n"
    assert run("check", str(file)) == (1, expected)
    status, output = run("check", str(file), "--json")
    assert status == 1
    assert json.loads(output) == {
        "valid": False,
        "problems": [
            {"source": f"{file}:{line}", "key": f"nbd.{key}", "reason": reason}
            for line, key, reason in zip((2, 3), ("listen", "x"), reasons, strict=True)
        ],
    }


def test_show_tells_values_and_sources(file: Path) -> None:
    status, output = run("show", "--config", str(file), BOCKD_NBD_LISTEN="none")
    rows = [line.split() for line in output.splitlines()]
    assert (status, rows[0]) == (0, ["KEY", "VALUE", "FROM"])
    for row in (
        ["data_dir", "/srv/pool", f"{file}:1"],
        ["nbd.listen", "none", "BOCKD_NBD_LISTEN"],
        ["keystone.local", "false", f"{file}:12"],
        ["keystone.ca_file", "-", "default"],
        ['catalog.zones."there.geo-1"', "http://192.0.2.2:8776", f"{file}:17"],
        ["quota.tenants.acme.volumes", "3", f"{file}:21"],
        ["quota.volumes", "1000", "default"],
    ):
        assert row in rows
    status, output = run("show", "--config", str(file), "--json")
    document = json.loads(output)
    assert (status, document["file"]) == (0, str(file))
    assert document["settings"]["identity.token_seconds"] == {"value": 600, "source": f"{file}:8"}
    assert document["settings"]["api.listen"] == {"value": "none", "source": f"{file}:6"}


def test_the_client_finds_the_daemon_through_the_file(file: Path) -> None:
    result = CliRunner().invoke(bock, ["info"], env={"BOCKD_CONFIG": str(file), "BOCKD_DATA": ""})
    assert result.exit_code == 1
    assert "no daemon answers on /srv/pool/api.sock" in result.stderr


def test_a_data_directory_that_no_uri_can_name(tmp_path: Path) -> None:
    environ = {"BOCKD_CONFIG": "/dev/null", "BOCKD_DATA": f"{tmp_path}/\udcff"}
    with pytest.raises(ConfigurationError, match=r"^BOCKD_DATA: .*udcff' is not UTF-8"):
        load(None, environ)


@pytest.mark.parametrize(
    "url",
    [
        "https://pool.example.org",
        "HTTPS://pool.example.org",
        "http://localhost:8080",
        "http://pool.localhost",
        "http://127.0.0.2:1",
        "http://[::1]:80",
    ],
)
def test_browsers_may_be_here_or_use_https(url: str, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(f"[dashboard]\npublic_url = {url!r}\n")
    assert load(file, {}).settings.dashboard.public_url == url
