"""The file with the first user's credentials: made at the first start, and changed by the operator.

The file and the index change together, so that a crash in between leaves them in agreement. At a
first start and at a rotation the new credentials are written durably to a second file
(`PENDING_FILE`); then the index is changed in one transaction; then the second file replaces the
first. A start or a rotation that finds the second file asks the index which of the two is right.

Where several daemons share an index, the file is in the directory of the one that made the
credentials. Another one that starts finds the user in the index, and writes no file.

All functions block (on scrypt and on synced commits) and are not for the event loop.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from bockd.blockstorage.contract import Tenant, TenantId, Usage
from bockd.blockstorage.records import USERS, Ledger, TenantRecord
from bockd.durable import sync_directory
from bockd.errors import NotFoundError, UnavailableError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.identity.accounts import (
    AccessKey,
    add_user,
    new_access_key,
    new_epoch,
    new_user,
    replace_keys,
)
from bockd.identity.secrethash import hash_secret, new_secret, verify_secret
from bockd.pool.index import Index, Transaction

CREDENTIALS_FILE = "credentials.json"
"""In the data directory, readable by its owner only."""

PENDING_FILE = f".{CREDENTIALS_FILE}.new"

DEMO = "demo"
"""The tenant and the user of the first start."""


def establish(index: Index, data_dir: Path, note: Callable[[str], None] = lambda _: None) -> None:
    """Create the tenant and user `demo` at the first start of a pool, and write their credentials
    to `CREDENTIALS_FILE`, mode 0600. `note` is called with the path of the file.

    After a crash in between, the next start finds no user and begins again, with new secrets; or
    finds the user, and puts the file in place. If another daemon that shares the index is faster,
    nothing is made.

    At a later start, finish or undo a rotation that was interrupted.
    """
    with index.reading() as txn:
        has_users = txn.count(USERS) > 0
    if has_users:
        _settle(index, data_dir)
        return
    tenant = Tenant(TenantId(secrets.token_hex(16)), DEMO)
    password = new_secret()
    user = new_user(DEMO, password, (tenant.id,))
    key, key_record = new_access_key(DEMO)
    _prepare(data_dir, _document(tenant, user.name, password, key))
    hit(Failpoint.CREDENTIALS_WRITTEN)

    def change(txn: Transaction) -> bool:
        if txn.count(USERS) > 0:
            return False
        ledger = Ledger(txn)
        ledger.put_tenant(TenantRecord(tenant, None, Usage()))
        add_user(ledger, user)
        ledger.put_access_key(key.access_key, key_record)
        return True

    first = index.update(change)
    hit(Failpoint.ACCOUNTS_COMMITTED)
    if not first:
        _settle(index, data_dir)
        return
    _put_in_place(data_dir)
    note(str(data_dir / CREDENTIALS_FILE))


def rotate(index: Index, data_dir: Path) -> dict[str, str]:
    """Give the user of the credentials file a new password and access key, and write the file anew.
    A file that is lost is written again, for `DEMO`. Returns the file's new content.

    All tokens of the user are invalid from now on. Raises NotFoundError when there is no such user
    or it is in no tenant. An error of the disk is raised, and nothing has changed then.
    UnavailableError: it may not be known whether the index was changed, so the new credentials stay
    in the second file, and the next rotation or start finds that out.
    """
    _settle(index, data_dir)
    name = _username(data_dir)
    password = new_secret()
    key, key_record = new_access_key(name)
    hashed = hash_secret(password)
    with index.reading() as txn:
        tenant = _tenant_of(Ledger(txn), name)
    document = _document(tenant, name, password, key)

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        _tenant_of(ledger, name)
        user = ledger.user(name)
        assert user is not None
        ledger.put_user(replace(user, password=hashed, epoch=new_epoch()))
        replace_keys(ledger, name, key, key_record)

    _prepare(data_dir, document)
    try:
        index.update(change)
    except UnavailableError:
        raise
    except BaseException:
        _settle(index, data_dir)
        raise
    _put_in_place(data_dir)
    return document


def _username(data_dir: Path) -> str:
    """Whose credentials the file has."""
    try:
        content = (data_dir / CREDENTIALS_FILE).read_bytes()
        return msgspec.json.decode(content, type=dict[str, str])["username"]
    except (OSError, msgspec.MsgspecError, KeyError):
        return DEMO


def _tenant_of(ledger: Ledger, name: str) -> Tenant:
    """The first tenant of a user, by name."""
    user = ledger.user(name)
    tenants = [] if user is None else [ledger.tenant(tenant).tenant for tenant in user.roles]
    if not tenants:
        raise NotFoundError(
            f"there is no user {name!r} in a tenant, whose credentials could be written: make "
            "one with 'bock user create'"
        )
    return min(tenants, key=lambda tenant: tenant.name)


def _settle(index: Index, data_dir: Path) -> None:
    """Finish a rotation if the index has it, undo it otherwise."""
    pending = data_dir / PENDING_FILE
    try:
        content = pending.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, f"reading {pending}") from error
    try:
        found = msgspec.json.decode(content, type=dict[str, str])
        name, password = found["username"], found["password"]
    except (msgspec.MsgspecError, KeyError):
        pending.unlink(missing_ok=True)
        return
    index.refresh()
    with index.reading() as txn:
        user = Ledger(txn).user(name)
    if verify_secret(password, user.password if user else None):
        _put_in_place(data_dir)
    else:
        pending.unlink(missing_ok=True)


def _document(tenant: Tenant, username: str, password: str, key: AccessKey) -> dict[str, str]:
    """What is in the file."""
    return {
        "tenant": tenant.name,
        "tenant_id": tenant.id,
        "username": username,
        "password": password,
        "access_key": key.access_key,
        "secret_key": key.secret_key,
    }


def _prepare(data_dir: Path, content: dict[str, str]) -> None:
    """Write the pending file, which only its owner reads, durably."""
    path = data_dir / PENDING_FILE
    try:
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(fd)
        sync_directory(data_dir)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def _put_in_place(data_dir: Path) -> None:
    """Let the pending file be the file, durably."""
    path = data_dir / CREDENTIALS_FILE
    try:
        os.replace(data_dir / PENDING_FILE, path)
        sync_directory(data_dir)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
