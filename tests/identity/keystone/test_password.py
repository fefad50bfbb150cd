"""The service user's password: where it may be, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.errors import InvalidRequestError
from bockd.identity.keystone.password import MAX_BYTES, VARIABLE, password_source


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_one_line_in_a_private_file(tmp_path: Path, ending: bytes, mode: int) -> None:
    path = private(tmp_path / "p", "pässword ".encode() + ending, mode)
    assert password_source(path, {})() == "pässword "


def test_a_changed_password_file_is_read_again(tmp_path: Path) -> None:
    password = password_source(private(tmp_path / "p", b"old"), {VARIABLE: "other"})
    assert password() == "old"
    private(tmp_path / "p", b"new")
    assert password() == "new"


def test_the_environment_has_the_password_where_no_file_is_named(tmp_path: Path) -> None:
    assert password_source(None, {VARIABLE: "secret"})() == "secret"
    for environ in ({}, {VARIABLE: ""}):
        with pytest.raises(InvalidRequestError, match="unless BOCKD_KEYSTONE_PASSWORD is set"):
            password_source(None, environ)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "p", b"x", mode)
    with pytest.raises(InvalidRequestError, match=rf"\(mode {mode:04o}\): chmod 600 "):
        password_source(path, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user(tmp_path: Path) -> None:
    path = private(tmp_path / "p", b"x")
    os.chown(path, 12345, -1)
    with pytest.raises(InvalidRequestError, match="belongs to another user"):
        password_source(path, {})


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"x" * (MAX_BYTES + 1)])
def test_a_file_that_holds_not_one_password_is_refused(tmp_path: Path, content: bytes) -> None:
    path = private(tmp_path / "p", content)
    with pytest.raises(InvalidRequestError, match="must hold the password alone"):
        password_source(path, {})


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot read .* No such file"):
        password_source(tmp_path / "none", {})
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        password_source(tmp_path, {})
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        password_source(tmp_path / "pipe", {})
    with pytest.raises(InvalidRequestError, match="not UTF-8"):
        password_source(private(tmp_path / "p", b"\xff"), {})
