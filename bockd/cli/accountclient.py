"""The client side of the control API's accounts (`bockd.accountcontrol.AccountControl`)."""

from __future__ import annotations

from dataclasses import asdict

import click

from bockd.accountcontrol import NewAccessKey, NewPassword, NewQuota, TenantInfo, UserInfo
from bockd.cli.client import ControlClient, decode, segment
from bockd.cli.finding import suggesting
from bockd.config import load_settings
from bockd.model import IoLimits


class AccountClient(ControlClient):
    """See `ControlClient` for what holds for all methods."""

    def list_tenants(self) -> list[TenantInfo]:
        """List all tenants by name."""
        return self.get("/tenants", list[TenantInfo])

    def show_tenant(self, ref: str) -> TenantInfo:
        """Return one tenant by id or name."""
        with suggesting(ref, lambda: (one.name for one in self.list_tenants())):
            return self.get(f"/tenants/{segment(ref)}", TenantInfo)

    def create_tenant(self, name: str, quota: NewQuota) -> TenantInfo:
        """Create a tenant."""
        body = {"name": name, "quota": asdict(quota)}
        return decode(self.request("POST", "/tenants", body), TenantInfo)

    def set_quota(self, ref: str, quota: NewQuota | None) -> TenantInfo:
        """Change a tenant's quota; None restores the default."""
        body = {"quota": None if quota is None else asdict(quota)}
        return decode(self.request("PUT", f"/tenants/{segment(ref)}/quota", body), TenantInfo)

    def limit_tenant(self, ref: str, limits: IoLimits | None) -> TenantInfo:
        """Limit the I/O of all volumes of a tenant together; None restores the default."""
        body = {"limits": None if limits is None else asdict(limits)}
        return decode(self.request("PUT", f"/tenants/{segment(ref)}/limits", body), TenantInfo)

    def delete_tenant(self, ref: str) -> None:
        """Delete a tenant. Raises InUseError while it has volumes, snapshots or servers."""
        self.request("DELETE", f"/tenants/{segment(ref)}")

    def list_users(self) -> list[UserInfo]:
        """List all users by name."""
        return self.get("/users", list[UserInfo])

    def show_user(self, name: str) -> UserInfo:
        """Return one user by name."""
        with suggesting(name, lambda: (one.name for one in self.list_users())):
            return self.get(f"/users/{segment(name)}", UserInfo)

    def create_user(self, name: str, tenants: tuple[str, ...], password: str | None) -> NewPassword:
        """Create a user in these tenants. With a password of None the daemon makes one."""
        body = {"name": name, "tenants": list(tenants), "password": password}
        return decode(self.request("POST", "/users", body), NewPassword)

    def delete_user(self, name: str) -> None:
        """Delete a user."""
        self.request("DELETE", f"/users/{segment(name)}")

    def grant(self, name: str, tenant: str) -> UserInfo:
        """Let a user act for a tenant."""
        path = f"/users/{segment(name)}/tenants/{segment(tenant)}"
        return decode(self.request("PUT", path), UserInfo)

    def revoke(self, name: str, tenant: str) -> UserInfo:
        """Let a user no longer act for a tenant."""
        path = f"/users/{segment(name)}/tenants/{segment(tenant)}"
        return decode(self.request("DELETE", path), UserInfo)

    def set_password(self, name: str, password: str | None) -> NewPassword:
        """Set another password for a user. With a password of None the daemon makes one."""
        body = {"password": password}
        return decode(self.request("POST", f"/users/{segment(name)}/password", body), NewPassword)

    def replace_access_keys(self, name: str) -> NewAccessKey:
        """Replace all access keys of a user with a new one."""
        return decode(self.request("POST", f"/users/{segment(name)}/access-key"), NewAccessKey)

    def rotate_credentials(self) -> str:
        """Have the daemon put new secrets into the credentials file. Return the file's path."""
        return decode(self.request("POST", "/credentials/rotate"), dict[str, str])["path"]


def connect() -> AccountClient:
    """Return a client of the daemon that the environment points to. It is closed when the command
    ends."""
    client = AccountClient(load_settings().api_socket)
    click.get_current_context().call_on_close(client.close)
    return client
