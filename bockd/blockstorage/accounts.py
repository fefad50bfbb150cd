"""Tenants, users and access keys: made by the operator, and the first ones at the first start.

All functions block (on scrypt and on a synced commit) and are not for the event loop.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bockd.blockstorage.contract import Quota, Tenant, TenantId, Usage, UserId
from bockd.blockstorage.records import AccessKeyRecord, Ledger, TenantRecord, UserRecord
from bockd.blockstorage.secrethash import hash_secret, new_secret
from bockd.errors import ConflictError, NotFoundError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.model import check_name
from bockd.store.index import Index, Table, Transaction
from bockd.store.layout import sync_directory

CREDENTIALS_FILE = "credentials.json"
"""In the data directory, readable by its owner only."""

DEMO = "demo"
"""The tenant and the user of the first start."""

DEFAULT_ROLES = ("admin",)
"""A user may do everything in its tenants. "admin" is what clients look for."""


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A new access key. The secret is shown here once."""

    access_key: str
    secret_key: str = field(repr=False)


class Accounts:
    """What the operator may do about tenants and users."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def create_tenant(self, name: str, quota: Quota | None = None) -> Tenant:
        """A tenant with a new id; ConflictError when the name is taken."""
        check_name(name)
        tenant = Tenant(TenantId(secrets.token_hex(16)), name)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            if any(record.tenant.name == name for record in ledger.tenants()):
                raise ConflictError(f"a tenant named {name!r} exists already")
            ledger.put_tenant(TenantRecord(tenant, quota, Usage()))

        self._index.update(change)
        return tenant

    def set_quota(self, tenant: TenantId, quota: Quota | None) -> None:
        """Give a tenant a quota of its own, or None for the default. What it has already stays,
        though it be more. NotFoundError."""

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            known = {record.tenant.id: record for record in ledger.tenants()}
            if tenant not in known:
                raise NotFoundError(f"there is no tenant {tenant}")
            ledger.put_tenant(replace(known[tenant], quota=quota))

        self._index.update(change)

    def create_user(self, name: str, password: str, tenants: tuple[TenantId, ...]) -> UserId:
        """A user in these tenants; ConflictError when the name is taken."""
        user = _new_user(name, password, tenants)
        self._index.update(lambda txn: _add_user(Ledger(txn), user))
        return user.id

    def create_access_key(self, username: str) -> AccessKey:
        """Another way in for a user; NotFoundError."""
        key, record = _new_access_key(username)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            if ledger.user(username) is None:
                raise NotFoundError(f"there is no user {username!r}")
            ledger.put_access_key(key.access_key, record)

        self._index.update(change)
        return key


def establish(index: Index, data_dir: Path, note: Callable[[str], None] = lambda _: None) -> None:
    """At the first start, make the tenant and user `demo` and write their credentials to
    `CREDENTIALS_FILE`, mode 0600.

    The file comes first, then the commit: who dies in between finds no user at the next start and
    begins again, with new secrets in a new file. `note` is told where the file is.
    """
    with index.reading() as txn:
        if txn.count(Table.USERS):
            return
    tenant = Tenant(TenantId(secrets.token_hex(16)), DEMO)
    password = new_secret()
    user = _new_user(DEMO, password, (tenant.id,))
    key, key_record = _new_access_key(DEMO)
    path = data_dir / CREDENTIALS_FILE
    _write_private(
        path,
        {
            "tenant": tenant.name,
            "tenant_id": tenant.id,
            "username": user.name,
            "password": password,
            "access_key": key.access_key,
            "secret_key": key.secret_key,
        },
    )

    hit(Failpoint.CREDENTIALS_WRITTEN)

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        ledger.put_tenant(TenantRecord(tenant, None, Usage()))
        _add_user(ledger, user)
        ledger.put_access_key(key.access_key, key_record)

    index.update(change)
    hit(Failpoint.ACCOUNTS_COMMITTED)
    note(str(path))


def _new_user(name: str, password: str, tenants: tuple[TenantId, ...]) -> UserRecord:
    roles = dict.fromkeys(tenants, DEFAULT_ROLES)
    return UserRecord(UserId(secrets.token_hex(16)), check_name(name), hash_secret(password), roles)


def _new_access_key(username: str) -> tuple[AccessKey, AccessKeyRecord]:
    key = AccessKey(secrets.token_hex(10).upper(), new_secret())
    return key, AccessKeyRecord(username, hash_secret(key.secret_key))


def _add_user(ledger: Ledger, user: UserRecord) -> None:
    if ledger.user(user.name) is not None:
        raise ConflictError(f"a user named {user.name!r} exists already")
    ledger.put_user(user)


def _write_private(path: Path, content: dict[str, str]) -> None:
    """Replace a file by one that only its owner reads, all or nothing, durably."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
        sync_directory(path.parent)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
