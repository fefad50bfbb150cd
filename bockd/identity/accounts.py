"""Tenants, users and access keys, as the operator makes and changes them.

All functions block (on scrypt and on a synced commit) and are not for the event loop.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bockd.blockstorage.contract import Quota, Tenant, TenantId, Usage, UserId
from bockd.blockstorage.records import AccessKeyRecord, Ledger, TenantRecord, UserRecord
from bockd.blockstorage.trashrecords import TrashLedger
from bockd.errors import ConflictError, InUseError, NotFoundError
from bockd.identity.secrethash import hash_secret, new_secret
from bockd.model import IoLimits
from bockd.pool.index import Index, Transaction
from bockd.validation import check_name

DEFAULT_ROLES = ("admin",)
"""A user may do everything in its tenants. "admin" is what clients look for."""


MAX_SHOWN = 64
"""Characters of a name that does not exist, in a message."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as the operator sees one: tenants by name, without any secret."""

    id: UserId
    name: str
    tenants: tuple[str, ...]
    access_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A new access key. The secret is shown here once."""

    access_key: str
    secret_key: str = field(repr=False)


class Accounts:
    """The operator's operations on tenants and users. A tenant is given by its id or its name, a
    user by its name. Raises NotFoundError for one that does not exist."""

    def __init__(self, index: Index) -> None:
        self._index = index

    # -- tenants -----------------------------------------------------------------------------

    def tenants(self) -> list[TenantRecord]:
        """Return all tenants by name, with those projects of Keystone that have or had something in
        the pool."""
        with self._index.reading() as txn:
            return sorted(Ledger(txn).tenants(), key=lambda record: record.tenant.name)

    def tenant(self, ref: str) -> TenantRecord:
        """Return one tenant's record."""
        with self._index.reading() as txn:
            return _tenant(Ledger(txn), ref)

    def create_tenant(self, name: str, quota: Quota | None = None) -> Tenant:
        """Create a tenant with a new id. Raise ConflictError when the name is taken."""
        check_name(name)
        tenant = Tenant(TenantId(secrets.token_hex(16)), name)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            if any(record.tenant.name == name for record in ledger.tenants()):
                raise ConflictError(f"a tenant named {name!r} exists already")
            ledger.put_tenant(TenantRecord(tenant, quota, Usage()))

        self._index.update(change)
        return tenant

    def set_quota(self, ref: str, quota_of: Callable[[TenantRecord], Quota | None]) -> TenantRecord:
        """Give a tenant the quota that `quota_of` makes of its record, within the transaction; None
        means the default quota. What the tenant has stays, even if it is more. What `quota_of`
        raises passes through."""

        def change(txn: Transaction) -> TenantRecord:
            ledger = Ledger(txn)
            found = _tenant(ledger, ref)
            record = replace(found, quota=quota_of(found))
            ledger.put_tenant(record)
            return record

        return self._index.update(change)

    def set_limits(self, ref: str, limits: IoLimits | None) -> TenantRecord:
        """Limit the I/O of all volumes of a tenant together; None means the default."""

        def change(txn: Transaction) -> TenantRecord:
            ledger = Ledger(txn)
            record = replace(_tenant(ledger, ref), limits=limits)
            ledger.put_tenant(record)
            return record

        return self._index.update(change)

    def delete_tenant(self, ref: str) -> TenantRecord:
        """Delete a tenant, and take its users out of it. Raise InUseError while it has volumes,
        snapshots, or servers of its own."""

        def change(txn: Transaction) -> TenantRecord:
            ledger = Ledger(txn)
            record = _tenant(ledger, ref)
            _refuse_with_belongings(ledger, record)
            tenant = record.tenant.id
            for user in [user for user in ledger.users() if tenant in user.roles]:
                ledger.put_user(_without_tenant(user, tenant))
            ledger.remove_tenant(tenant)
            return record

        return self._index.update(change)

    # -- users -------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """Return all users by name."""
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            return [_seen(ledger, record) for record in ledger.users()]

    def user(self, name: str) -> User:
        """Return one user."""
        with self._index.reading() as txn:
            ledger = Ledger(txn)
            return _seen(ledger, _user(ledger, name))

    def create_user(self, name: str, password: str, tenants: tuple[str, ...]) -> UserId:
        """Create a user in these tenants and return its id. Raise ConflictError when the name is
        taken."""
        user = new_user(name, password, ())

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            inside = [_tenant(ledger, ref).tenant.id for ref in tenants]
            add_user(ledger, replace(user, roles=dict.fromkeys(inside, DEFAULT_ROLES)))

        self._index.update(change)
        return user.id

    def delete_user(self, name: str) -> None:
        """Delete a user; tokens and access keys are invalid from now on."""

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            ledger.remove_user(_user(ledger, name).name)

        self._index.update(change)

    def grant(self, name: str, ref: str) -> User:
        """Give a user access to a tenant."""

        def change(txn: Transaction) -> User:
            ledger = Ledger(txn)
            user, tenant = _user(ledger, name), _tenant(ledger, ref).tenant.id
            user = replace(user, roles={**user.roles, tenant: DEFAULT_ROLES})
            ledger.put_user(user)
            return _seen(ledger, user)

        return self._index.update(change)

    def revoke(self, name: str, ref: str) -> User:
        """Take a user out of a tenant; tokens for it are invalid from now on."""

        def change(txn: Transaction) -> User:
            ledger = Ledger(txn)
            user, tenant = _user(ledger, name), _tenant(ledger, ref).tenant.id
            if tenant not in user.roles:
                raise NotFoundError(f"user {name!r} is not in tenant {ref!r}")
            user = _without_tenant(user, tenant)
            ledger.put_user(user)
            return _seen(ledger, user)

        return self._index.update(change)

    # -- secrets -----------------------------------------------------------------------------

    def set_password(self, name: str, password: str) -> None:
        """Set a new password for a user; tokens are invalid from now on."""
        hashed = hash_secret(password)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            ledger.put_user(replace(_user(ledger, name), password=hashed, epoch=new_epoch()))

        self._index.update(change)

    def create_access_key(self, username: str) -> AccessKey:
        """Create one more access key for a user. The others stay valid."""
        key, record = new_access_key(username)

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            _user(ledger, username)
            ledger.put_access_key(key.access_key, record)

        self._index.update(change)
        return key

    def replace_access_keys(self, username: str) -> AccessKey:
        """Create an access key in place of all others of a user. They are invalid from now on, and
        so are the user's tokens."""
        key, record = new_access_key(username)
        self._index.update(lambda txn: replace_keys(Ledger(txn), username, key, record))
        return key


def _tenant(ledger: Ledger, ref: str) -> TenantRecord:
    """By id first, because a tenant may be named like another one's id."""
    known = ledger.tenants()
    for found in (*(r for r in known if r.tenant.id == ref), *known):
        if ref in (found.tenant.id, found.tenant.name):
            return found
    raise NotFoundError(f"there is no tenant {ref[:MAX_SHOWN]!r}; 'bock tenant list' shows all")


def _user(ledger: Ledger, name: str) -> UserRecord:
    found = ledger.user(name)
    if found is None:
        raise NotFoundError(f"there is no user {name[:MAX_SHOWN]!r}; 'bock user list' shows all")
    return found


def _seen(ledger: Ledger, record: UserRecord) -> User:
    names = sorted(ledger.tenant(tenant).tenant.name for tenant in record.roles)
    return User(record.id, record.name, tuple(names), tuple(ledger.access_keys_of(record.name)))


def _without_tenant(user: UserRecord, tenant: TenantId) -> UserRecord:
    return replace(user, roles={one: roles for one, roles in user.roles.items() if one != tenant})


def _refuse_with_belongings(ledger: Ledger, record: TenantRecord) -> None:
    tenant = record.tenant
    volumes = [volume.id for volume in ledger.volumes(tenant.id)]
    snapshots = [snapshot.id for snapshot in ledger.snapshots(tenant.id)]
    if volumes or snapshots:
        raise InUseError(
            f"tenant {tenant.name!r} has {_counted(len(volumes), 'volume')} and "
            f"{_counted(len(snapshots), 'snapshot')}; delete them first, as one of its users"
        )
    if kept := TrashLedger(ledger.txn).count_of_tenant(tenant.id):
        raise InUseError(
            f"tenant {tenant.name!r} has {kept} in the trash; empty it first, with 'bock trash "
            "empty' as one of its users ('bockd check' names what cannot be read there)"
        )
    servers = [server.name for server in ledger.servers() if server.tenant == tenant.id]
    if servers:
        raise InUseError(
            f"server {servers[0]} is registered for tenant {tenant.name!r}; remove it first, with "
            f"'bock server remove {servers[0]}'"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def replace_keys(ledger: Ledger, username: str, key: AccessKey, record: AccessKeyRecord) -> None:
    ledger.put_user(replace(_user(ledger, username), epoch=new_epoch()))
    for old in ledger.access_keys_of(username):
        ledger.remove_access_key(old)
    ledger.put_access_key(key.access_key, record)


def new_epoch() -> str:
    return secrets.token_hex(8)


def new_user(name: str, password: str, tenants: tuple[TenantId, ...]) -> UserRecord:
    roles = dict.fromkeys(tenants, DEFAULT_ROLES)
    return UserRecord(
        UserId(secrets.token_hex(16)),
        check_name(name),
        hash_secret(password),
        roles,
        new_epoch(),
    )


def new_access_key(username: str) -> tuple[AccessKey, AccessKeyRecord]:
    key = AccessKey(secrets.token_hex(10).upper(), new_secret())
    return key, AccessKeyRecord(username, hash_secret(key.secret_key))


def add_user(ledger: Ledger, user: UserRecord) -> None:
    if ledger.user(user.name) is not None:
        raise ConflictError(f"a user named {user.name!r} exists already")
    ledger.put_user(user)
