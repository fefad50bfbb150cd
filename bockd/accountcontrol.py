"""What the operator of a daemon may ask of its accounts: tenants, with their quotas and limits, and
users, with their secrets. See bockd.control for what holds for all methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from bockd.model import NO_IO_LIMITS, IoLimits


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """A tenant, what it has and how much it may have; -1 is no limit."""

    id: str
    name: str
    volumes: int
    gigabytes: int
    snapshots: int
    max_volumes: int
    max_gigabytes: int
    max_snapshots: int
    quota_from: str
    """configuration (which prevails), tenant (its own), or default."""
    limits: IoLimits = NO_IO_LIMITS
    """What the I/O of all its volumes together is held to."""
    own_limits: bool = False
    """As a volume's."""


@dataclass(frozen=True, slots=True)
class UserInfo:
    """A user, without any secret."""

    id: str
    name: str
    tenants: tuple[str, ...]
    """By name."""
    access_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewQuota:
    """What a tenant may have from now on; None leaves a number as it is, -1 is no limit."""

    volumes: int | None = None
    gigabytes: int | None = None
    snapshots: int | None = None


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A user's new password, which is shown here once."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewAccessKey:
    """A user's new access key, whose secret is shown here once."""

    username: str
    access_key: str
    secret_key: str = field(repr=False)


class AccountControl(Protocol):
    """Tenants, users and their secrets, in bockd's own identity service; those of a Keystone are
    made there. A tenant is named by its id or its name."""

    async def list_tenants(self) -> list[TenantInfo]:
        """List all tenants by name. Of Keystone's tenants, only those that have or had something
        here."""
        ...

    async def show_tenant(self, ref: str) -> TenantInfo: ...

    async def create_tenant(self, name: str, quota: NewQuota) -> TenantInfo:
        """Create a tenant. Raises InvalidRequestError, ConflictError when the name is taken."""
        ...

    async def set_quota(self, ref: str, quota: NewQuota | None) -> TenantInfo:
        """Give a tenant a quota of its own; None takes it away. Raises ConflictError when the
        configuration has one for it, which would prevail."""
        ...

    async def limit_tenant(self, ref: str, limits: IoLimits | None) -> TenantInfo:
        """Hold the I/O of all volumes of a tenant together to limits, at once; None restores the
        default. Raises InvalidRequestError."""
        ...

    async def delete_tenant(self, ref: str) -> None:
        """Forget a tenant. Raises InUseError while it has volumes, snapshots or servers."""
        ...

    async def list_users(self) -> list[UserInfo]:
        """List all users by name."""
        ...

    async def show_user(self, name: str) -> UserInfo: ...

    async def create_user(
        self, name: str, tenants: tuple[str, ...], password: str | None
    ) -> NewPassword:
        """Create a user in these tenants. With None, the password is random. Raises
        InvalidRequestError, ConflictError when the name is taken, NotFoundError (a tenant)."""
        ...

    async def delete_user(self, name: str) -> None:
        """Forget a user. Tokens of the user are invalid at once."""
        ...

    async def grant(self, name: str, tenant: str) -> UserInfo:
        """Add a user to a tenant."""
        ...

    async def revoke(self, name: str, tenant: str) -> UserInfo:
        """Take a user out of a tenant. Raises NotFoundError when it is not in it."""
        ...

    async def set_password(self, name: str, password: str | None) -> NewPassword:
        """Set another password; with None, a random one. The old one and all tokens become
        invalid."""
        ...

    async def replace_access_keys(self, name: str) -> NewAccessKey:
        """Replace all access keys by a new one. The old ones and all tokens become invalid."""
        ...

    async def rotate_credentials(self) -> str:
        """Replace the secrets of the user of the credentials file, and write the file again. The
        old secrets and all tokens become invalid. Returns the path of the file."""
        ...
