"""`[rbd]` of the configuration, read as the file's other tables are."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.config.load import load
from bockd.config.problems import ConfigurationError
from bockd.config.rbd import RbdSettings
from bockd.config.schema import READ, section_fields
from bockd.model import PoolDriver


def read(name: str, value: object) -> object:
    reader: Callable[[object], object] = section_fields(RbdSettings)[name].metadata[READ]
    return reader(value)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("conf_file", "/etc/ceph/other.conf", Path("/etc/ceph/other.conf")),
        ("user", "bockd", "bockd"),
        ("keyring_file", "/root/keyring", Path("/root/keyring")),
        ("pool", "fast disks", "fast disks"),
        ("namespace", "b-1", "b-1"),
        ("gateway", "gw-1.example", "gw-1.example"),
        ("connect_seconds", 1, 1),
        ("max_open_volumes", 10_000, 10_000),
        ("max_clone_depth", 15, 15),
    ],
)
def test_a_good_value_is_read(name: str, value: object, meant: object) -> None:
    assert read(name, value) == meant


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("conf_file", "ceph.conf", "'ceph.conf' is not an absolute path"),
        ("conf_file", 1, "expected a string, found an integer"),
        ("user", "client.bockd", "write 'bockd', without 'client.'"),
        ("user", "", "is not 1 to 255 printable characters"),
        ("keyring_file", "~/keyring", "is not an absolute path"),
        ("pool", "rbd/bockd", "is not the name of a Ceph pool: it has no '/'"),
        ("pool", "rbd@now", "no '@'"),
        ("namespace", "", "is not 1 to 255 printable characters"),
        ("namespace", "a/b", "is not the name of a namespace"),
        ("gateway", "gw 1", "is not 1 to 255 letters, digits, '.', '_' and '-'"),
        ("connect_seconds", 0, "0 is not between 1 and 300"),
        ("connect_seconds", "10", "expected an integer, found a string"),
        ("max_open_volumes", 0, "0 is not between 1 and 10000"),
        ("max_clone_depth", 16, "16 is not between 1 and 15"),
    ],
)
def test_a_bad_value_is_refused_with_a_reason(name: str, value: object, reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(reason)):
        read(name, value)


def test_the_gateway_is_named_as_the_host_if_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "storage-1")
    assert RbdSettings().gateway_name == "storage-1"
    assert RbdSettings(gateway="gw1").gateway_name == "gw1"
    monkeypatch.setattr(socket, "gethostname", lambda: "my host")
    assert RbdSettings(gateway="gw1").gateway_name == "gw1"
    with pytest.raises(ValueError, match="is missing, and the host's name is none: 'my host'"):
        RbdSettings().gateway_name  # noqa: B018 - it raises


def test_a_host_whose_name_is_none_needs_a_gateway_only_for_a_pool_in_ceph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "my host")
    file = tmp_path / "bockd.toml"
    file.write_text("[rbd]\nuser = 'other'\n")
    assert load(file, {}).settings.rbd.user == "other"
    file.write_text("[pool]\ndriver = 'rbd'\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}:2: rbd.gateway: is missing, and the host's name")
    loaded = load(file, {"BOCKD_RBD_GATEWAY": "gw1"})
    assert loaded.settings.rbd.gateway_name == "gw1"
    assert loaded.source("rbd.gateway") == "BOCKD_RBD_GATEWAY"


def test_the_driver_is_one_that_there_is(tmp_path: Path) -> None:
    file = tmp_path / "bockd.toml"
    file.write_text("[pool]\ndriver = 'ceph'\n[rbd]\ngateway = 'gw1'\n")
    with pytest.raises(ConfigurationError, match="'ceph' is none of local, rbd"):
        load(file, {})
    file.write_text("[pool]\ndriver = 'rbd'\n[rbd]\ngateway = 'gw1'\n")
    assert load(file, {}).settings.pool.driver is PoolDriver.RBD
    loaded = load(file, {"BOCKD_POOL_DRIVER": "local"})
    assert loaded.settings.pool.driver is PoolDriver.LOCAL
    assert loaded.source("pool.driver") == "BOCKD_POOL_DRIVER"
    with pytest.raises(ConfigurationError) as caught:
        load(file, {"BOCKD_POOL_DRIVER": "ceph"})
    assert str(caught.value) == "BOCKD_POOL_DRIVER: 'ceph' is none of local, rbd"
    with pytest.raises(ConfigurationError, match=r"^BOCKD_RBD_GATEWAY: 'gw 1' is not 1 to 255"):
        load(file, {"BOCKD_RBD_GATEWAY": "gw 1"})
