"""The account that a first start makes, and the rotation of its secrets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.blockstorage.records import ACCESS_KEYS, TENANTS, USERS
from bockd.errors import NoSpaceError, UnauthorizedError, UnavailableError
from bockd.identity import credentialsfile
from bockd.identity.contract import AccessKeyCredentials, PasswordCredentials
from bockd.identity.credentialsfile import CREDENTIALS_FILE, PENDING_FILE, establish, rotate
from bockd.pool.index import Transaction
from tests.blockstorage.store import Store

from .desk import Desk


def test_the_first_start_makes_demo_and_only_the_first(store: Store, tmp_path: Path) -> None:
    index = store.pool.index
    establish(index, tmp_path)
    path = tmp_path / CREDENTIALS_FILE
    written = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = json.loads(written)
    assert (found["tenant"], found["username"]) == ("demo", "demo")
    desk = Desk(store)
    by_password = PasswordCredentials(found["username"], found["password"])
    by_key = AccessKeyCredentials(found["access_key"], found["secret_key"])
    for credentials in (by_password, by_key):
        assert desk.issue(credentials, "demo").principal.tenant.id == found["tenant_id"]
    establish(index, tmp_path)
    assert path.read_bytes() == written
    os.unlink(path)
    establish(index, tmp_path)
    assert not path.exists()


def test_a_first_start_that_dies_before_its_commit_begins_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = store.pool.index
    (tmp_path / f".{CREDENTIALS_FILE}.new").write_text("half")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(credentialsfile, "add_user", die)
        with pytest.raises(KeyboardInterrupt):
            establish(index, tmp_path)
    first = json.loads((tmp_path / PENDING_FILE).read_text())
    assert not (tmp_path / CREDENTIALS_FILE).exists()
    with index.reading() as txn:
        assert _nothing(txn)
    establish(index, tmp_path)
    second = json.loads((tmp_path / CREDENTIALS_FILE).read_text())
    assert second["password"] != first["password"]
    Desk(store).issue(PasswordCredentials("demo", second["password"]), "demo")
    with pytest.raises(UnauthorizedError):
        Desk(store).issue(PasswordCredentials("demo", first["password"]), "demo")


def test_a_first_start_that_dies_after_its_commit_is_finished_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = store.pool.index

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(credentialsfile, "_put_in_place", die)
        with pytest.raises(KeyboardInterrupt):
            establish(index, tmp_path)
    establish(index, tmp_path)
    found = json.loads((tmp_path / CREDENTIALS_FILE).read_text())
    Desk(store).issue(PasswordCredentials("demo", found["password"]), "demo")
    assert not (tmp_path / PENDING_FILE).exists()


def test_of_two_daemons_that_share_an_index_one_makes_the_accounts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one may start later, or at the same time: then it finds them made when it
    commits."""
    index = store.pool.index
    first, later, slow = (tmp_path / name for name in ("first", "later", "slow"))
    for directory in (first, later, slow):
        directory.mkdir()
    prepare = credentialsfile._prepare

    def overtaken(data_dir: Path, content: dict[str, str]) -> None:
        prepare(data_dir, content)
        if data_dir == slow:
            establish(index, first)

    monkeypatch.setattr(credentialsfile, "_prepare", overtaken)
    establish(index, slow)
    establish(index, later)
    found = json.loads((first / CREDENTIALS_FILE).read_text())
    Desk(store).issue(PasswordCredentials("demo", found["password"]), "demo")
    assert [*later.iterdir(), *slow.iterdir()] == []
    assert [one.name for one in store.accounts.users()] == ["demo"]
    assert [one.tenant.name for one in store.accounts.tenants()] == ["demo"]


def test_a_rotation_that_dies_leaves_credentials_that_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of its steps, and started again."""
    index = store.pool.index
    establish(index, tmp_path)
    path = tmp_path / CREDENTIALS_FILE

    def works(content: str) -> bool:
        stored = json.loads(content)
        keys = AccessKeyCredentials(stored["access_key"], stored["secret_key"])
        try:
            for given in (PasswordCredentials("demo", stored["password"]), keys):
                Desk(store).issue(given, "demo")
        except UnauthorizedError:
            return False
        return True

    def dies_in(name: str, *, after: bool) -> bool:
        """Whether the new credentials are those that count in the end."""
        before = path.read_text()
        original = getattr(credentialsfile, name)

        def die(*arguments: object) -> None:
            if after:
                original(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(credentialsfile, name, die)
            with pytest.raises(KeyboardInterrupt):
                rotate(index, tmp_path)
        establish(index, tmp_path)
        assert works(path.read_text())
        assert [one.name for one in tmp_path.iterdir() if "credentials" in one.name] == [path.name]
        changed = path.read_text() != before
        assert works(before) is not changed
        return changed

    assert not dies_in("_prepare", after=False)
    assert not dies_in("_prepare", after=True)
    assert dies_in("_put_in_place", after=False)
    assert dies_in("_put_in_place", after=True)
    assert not dies_in("replace_keys", after=True)  # in the transaction
    for torn in (b"", b"{", b"{}", b"\xff"):
        (tmp_path / PENDING_FILE).write_bytes(torn)
        establish(index, tmp_path)
        assert works(path.read_text())
        assert not (tmp_path / PENDING_FILE).exists()


def test_a_rotation_on_a_full_disk_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = store.pool.index
    establish(index, tmp_path)
    before = (tmp_path / CREDENTIALS_FILE).read_text()

    def full(*_: object) -> None:
        raise NoSpaceError("the index is full")

    for broken, name in ((index, "update"), (credentialsfile, "_prepare")):
        with monkeypatch.context() as patch:
            patch.setattr(broken, name, full)
            with pytest.raises(NoSpaceError):
                rotate(index, tmp_path)
        assert (tmp_path / CREDENTIALS_FILE).read_text() == before
        assert not (tmp_path / PENDING_FILE).exists()
    Desk(store).issue(PasswordCredentials("demo", json.loads(before)["password"]), "demo")


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_a_rotation_whose_outcome_is_unknown_is_settled_by_the_next_one_or_a_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool, restarted: bool
) -> None:
    index = store.pool.index
    establish(index, tmp_path)
    path, pending = tmp_path / CREDENTIALS_FILE, tmp_path / PENDING_FILE
    before, real = path.read_text(), index.update

    def unanswered(change: Callable[[Transaction], object]) -> object:
        if made:
            real(change)
        raise UnavailableError("no answer")

    def full(*_: object) -> None:
        raise NoSpaceError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(index, "update", unanswered)
        with pytest.raises(UnavailableError):
            rotate(index, tmp_path)
    assert path.read_text() == before
    new = pending.read_text()
    if restarted:
        establish(index, tmp_path)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(credentialsfile, "_prepare", full)
            with pytest.raises(NoSpaceError):
                rotate(index, tmp_path)
    assert not pending.exists()
    assert path.read_text() == (new if made else before)
    password = json.loads(path.read_text())["password"]
    Desk(store).issue(PasswordCredentials("demo", password), "demo")


def _nothing(txn: Transaction) -> bool:
    return not any(txn.count(t) for t in (TENANTS, USERS, ACCESS_KEYS))
