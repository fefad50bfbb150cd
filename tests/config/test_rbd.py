"""`[rbd]` of the configuration, read as the file's other tables are."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.config.schema import READ, section_fields


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
    assert not list(RbdSettings().problems())
    monkeypatch.setattr(socket, "gethostname", lambda: "my host")
    assert [name for name, _ in RbdSettings().problems()] == ["gateway"]
    assert not list(RbdSettings(gateway="gw1").problems())
