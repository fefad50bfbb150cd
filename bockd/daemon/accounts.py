"""The control interface's accounts over the pool's index (bockd.accountcontrol.AccountControl)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bockd.accountcontrol import NewAccessKey, NewPassword, NewQuota, TenantInfo, UserInfo
from bockd.blockstorage.contract import UNLIMITED, Quota
from bockd.blockstorage.records import TenantRecord
from bockd.blockstorage.running import OperationRunner, StorageContext
from bockd.errors import ConflictError, InvalidRequestError
from bockd.identity import credentialsfile
from bockd.identity.accounts import Accounts, User
from bockd.identity.secrethash import MAX_SECRET_CHARACTERS, new_secret
from bockd.model import IoLimits
from bockd.runtime.pace import Pace
from bockd.runtime.steps import call_blocking
from bockd.validation import check_io_limits

T = TypeVar("T")

MAX_QUOTA = 1 << 53
"""What JSON carries exactly everywhere."""


class PoolAccounts:
    """Implements bockd.accountcontrol.AccountControl; see there for what each method promises."""

    def __init__(
        self,
        context: StorageContext,
        runner: OperationRunner,
        data_dir: Path,
        on_limits: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_limits` is called when the limits of a tenant's I/O have changed."""
        self._on_limits = on_limits
        self._context = context
        self._runner = runner
        self._index = context.pool.index
        self._accounts = Accounts(self._index)
        self._data_dir = data_dir

    async def _run(self, call: Callable[[], T]) -> T:
        """Everything here hashes or commits."""
        return await self._runner.run(call_blocking(call))

    # -- tenants -----------------------------------------------------------------------------

    async def list_tenants(self) -> list[TenantInfo]:
        found, pace = [], Pace()
        for record in await self._run(self._accounts.tenants):
            found.append(self._tenant(record))
            await pace.step()
        return found

    async def show_tenant(self, ref: str) -> TenantInfo:
        return self._tenant(await self._run(lambda: self._accounts.tenant(ref)))

    async def create_tenant(self, name: str, quota: NewQuota) -> TenantInfo:
        own = None if quota == NewQuota() else changed(self._context.default_quota, quota)
        made = await self._run(lambda: self._accounts.create_tenant(name, own))
        return await self.show_tenant(made.id)

    async def set_quota(self, ref: str, quota: NewQuota | None) -> TenantInfo:
        def quota_of(record: TenantRecord) -> Quota | None:
            if self._configured(record):
                raise ConflictError(
                    f"the configuration has the quota of tenant {record.tenant.name!r}, under "
                    "[quota.tenants]: change it there, and restart bockd"
                )
            return None if quota is None else changed(self._context.quota_of(record), quota)

        return self._tenant(await self._run(lambda: self._accounts.set_quota(ref, quota_of)))

    async def limit_tenant(self, ref: str, limits: IoLimits | None) -> TenantInfo:
        if limits is not None:
            check_io_limits(limits)
        record = await self._run(lambda: self._accounts.set_limits(ref, limits))
        self._on_limits()
        return self._tenant(record)

    async def delete_tenant(self, ref: str) -> None:
        await self._run(lambda: self._accounts.delete_tenant(ref))

    def _configured(self, record: TenantRecord) -> bool:
        return bool({record.tenant.id, record.tenant.name} & self._context.tenant_quotas.keys())

    def _tenant(self, record: TenantRecord) -> TenantInfo:
        quota = self._context.quota_of(record)
        source = "default" if record.quota is None else "tenant"
        return TenantInfo(
            id=record.tenant.id,
            name=record.tenant.name,
            volumes=record.used.volumes,
            gigabytes=record.used.gigabytes,
            snapshots=record.used.snapshots,
            max_volumes=quota.volumes,
            max_gigabytes=quota.gigabytes,
            max_snapshots=quota.snapshots,
            quota_from="configuration" if self._configured(record) else source,
            limits=self._context.tenant_limits_of(record),
            own_limits=record.limits is not None,
        )

    # -- users -------------------------------------------------------------------------------

    async def list_users(self) -> list[UserInfo]:
        return [seen(user) for user in await self._run(self._accounts.users)]

    async def show_user(self, name: str) -> UserInfo:
        return seen(await self._run(lambda: self._accounts.user(name)))

    async def create_user(
        self, name: str, tenants: tuple[str, ...], password: str | None
    ) -> NewPassword:
        secret = checked_password(password)
        await self._run(lambda: self._accounts.create_user(name, secret, tenants))
        return NewPassword(name, secret)

    async def delete_user(self, name: str) -> None:
        await self._run(lambda: self._accounts.delete_user(name))

    async def grant(self, name: str, tenant: str) -> UserInfo:
        return seen(await self._run(lambda: self._accounts.grant(name, tenant)))

    async def revoke(self, name: str, tenant: str) -> UserInfo:
        return seen(await self._run(lambda: self._accounts.revoke(name, tenant)))

    async def set_password(self, name: str, password: str | None) -> NewPassword:
        secret = checked_password(password)
        await self._run(lambda: self._accounts.set_password(name, secret))
        return NewPassword(name, secret)

    async def replace_access_keys(self, name: str) -> NewAccessKey:
        made = await self._run(lambda: self._accounts.replace_access_keys(name))
        return NewAccessKey(name, made.access_key, made.secret_key)

    async def rotate_credentials(self) -> str:
        await self._run(lambda: credentialsfile.rotate(self._index, self._data_dir))
        return str(self._data_dir / credentialsfile.CREDENTIALS_FILE)


def seen(user: User) -> UserInfo:
    """Return a user in the form of the control interface."""
    return UserInfo(user.id, user.name, user.tenants, user.access_keys)


def changed(quota: Quota, new: NewQuota) -> Quota:
    """Return a quota with some numbers changed; raise InvalidRequestError for bad ones."""
    for what in ("volumes", "gigabytes", "snapshots"):
        number = getattr(new, what)
        if number is not None and not UNLIMITED <= number <= MAX_QUOTA:
            raise InvalidRequestError(f"{what} {number} is out of range: choose 0 or more, or -1")

    def either(number: int | None, old: int) -> int:
        return old if number is None else number

    return Quota(
        volumes=either(new.volumes, quota.volumes),
        gigabytes=either(new.gigabytes, quota.gigabytes),
        snapshots=either(new.snapshots, quota.snapshots),
    )


def checked_password(password: str | None) -> str:
    """Return the password, or a random one; raise InvalidRequestError for one that cannot be."""
    if password is None:
        return new_secret()
    if not 0 < len(password) <= MAX_SECRET_CHARACTERS:
        raise InvalidRequestError(f"a password has 1 to {MAX_SECRET_CHARACTERS} characters")
    return password
