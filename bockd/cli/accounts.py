"""`bock tenant` and `bock user`: whom the daemon's own identity service knows.

These are the operator's, over the control API: they need the daemon's own user.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bockd.accountcontrol import NewPassword, NewQuota, TenantInfo, UserInfo
from bockd.cli.accountclient import AccountClient, connect
from bockd.cli.asking import confirm
from bockd.cli.iolimits import limit_fields
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import json_option, print_json, print_record, print_table, report
from bockd.errors import InvalidRequestError

F = TypeVar("F", bound=Callable[..., Any])

UNLIMITED = "unlimited"

MAX_DIGITS = 16


def read_limit(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read the value of a limit option: a number of things, or "unlimited", which is -1 in the
    API."""
    if value is None or value == UNLIMITED:
        return None if value is None else -1
    if not (value.isascii() and value.isdigit() and len(value) < MAX_DIGITS):
        raise click.BadParameter(f"{value!r} is neither a number nor {UNLIMITED!r}", ctx, param)
    return int(value)


def limit_option(name: str, text: str) -> Callable[[F], F]:
    """Make an option for one number of a quota."""
    return click.option(name, callback=read_limit, metavar="NUMBER|unlimited", help=text)


def shown_limit(number: int) -> str:
    """Format a limit for people."""
    return UNLIMITED if number < 0 else str(number)


# -- tenants -----------------------------------------------------------------------------------


@click.group(cls=LazyGroup)
def tenant() -> None:
    """Make, change and delete tenants, to whom volumes belong.

    A TENANT goes by its name or its id. These commands need the daemon's own user.
    """


@tenant.command()
@click.argument("name")
@limit_option("--volumes", "The most that it may have; otherwise the default.")
@limit_option("--gigabytes", "The same of the sizes of its volumes, in GiB.")
@limit_option("--snapshots", "The same of snapshots.")
@json_option
def create(
    name: str, volumes: int | None, gigabytes: int | None, snapshots: int | None, as_json: bool
) -> None:
    """Make a tenant. Nobody is in it until `bock user create` or `bock user grant`.

    \b
    bock tenant create acme
    bock tenant create small --volumes 10 --gigabytes 100
    bock user create ann --tenant acme
    """
    made = connect().create_tenant(name, NewQuota(volumes, gigabytes, snapshots))
    report(made, f"created tenant {made.name} ({made.id})", as_json=as_json)


@tenant.command("list")
@json_option
def list_tenants(as_json: bool) -> None:
    """List the tenants; of a Keystone's projects, those that have or had something here."""
    found = connect().list_tenants()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "ID=", "VOLUMES>", "GIGABYTES>", "SNAPSHOTS>"),
        [
            (one.name, one.id, str(one.volumes), str(one.gigabytes), str(one.snapshots))
            for one in found
        ],
    )


@tenant.command("show")
@click.argument("tenant")
@json_option
def show_tenant(tenant: str, as_json: bool) -> None:
    """Show one tenant, what it has, and its quota."""
    found = connect().show_tenant(tenant)
    if as_json:
        print_json(found)
        return
    print_record(tenant_fields(found))


def tenant_fields(found: TenantInfo) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for a tenant."""
    return [
        ("id", found.id),
        ("name", found.name),
        ("volumes", f"{found.volumes} of {shown_limit(found.max_volumes)}"),
        ("gigabytes", f"{found.gigabytes} of {shown_limit(found.max_gigabytes)}"),
        ("snapshots", f"{found.snapshots} of {shown_limit(found.max_snapshots)}"),
        ("quota from", found.quota_from),
        *limit_fields(found.limits),
    ]


@tenant.command()
@click.argument("tenant")
@limit_option("--volumes", "The most that it may have.")
@limit_option("--gigabytes", "The same of the sizes of its volumes, in GiB.")
@limit_option("--snapshots", "The same of snapshots.")
@click.option("--default", "to_default", is_flag=True, help="No quota of its own any more.")
@json_option
def quota(
    tenant: str,
    volumes: int | None,
    gigabytes: int | None,
    snapshots: int | None,
    to_default: bool,
    as_json: bool,
) -> None:
    """Change a tenant's quota. What it has already stays, even if it is more.

    \b
    bock tenant quota acme --volumes 5000 --gigabytes unlimited
    bock tenant quota acme --default
    """
    wanted = NewQuota(volumes, gigabytes, snapshots)
    if to_default == (wanted != NewQuota()):
        raise click.UsageError("give --volumes, --gigabytes or --snapshots, or else --default")
    found = connect().set_quota(tenant, None if to_default else wanted)
    if as_json:
        print_json(found)
        return
    print_record(tenant_fields(found))


@tenant.command("delete")
@click.argument("tenant")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_tenant(tenant: str, yes: bool, as_json: bool) -> None:
    """Delete a tenant. Refused while it has volumes, snapshots or servers.

    Its users stay; those who were in no other tenant cannot log in until they are in one.
    """
    client = connect()
    found = client.show_tenant(tenant)
    confirm(f"Delete tenant {found.name} ({found.id})?", yes=yes)
    client.delete_tenant(found.id)
    report({"deleted": found}, f"deleted tenant {found.name} ({found.id})", as_json=as_json)


tenant.add_lazily("limit", "bockd.cli.limiting:limit_tenant")


# -- users -------------------------------------------------------------------------------------


@click.group(cls=LazyGroup)
def user() -> None:
    """Make, change and delete users, who act for tenants.

    These commands need the daemon's own user.
    """


password_option = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)


def read_password(from_stdin: bool) -> str | None:
    """Read the first line of standard input. Return None when it is not asked for: the daemon makes
    a password then."""
    if not from_stdin:
        return None
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise InvalidRequestError("there is no password on standard input")
    return line


@user.command("create")
@click.argument("name")
@click.option("--tenant", "tenants", multiple=True, required=True, help="Whom to act for.")
@password_option
@json_option
def create_user(name: str, tenants: tuple[str, ...], password_stdin: bool, as_json: bool) -> None:
    """Make a user, and print the password; it is shown here only.

    \b
    bock user create ann --tenant acme
    """
    made = connect().create_user(name, tenants, read_password(password_stdin))
    show_secret(made, as_json=as_json)


def show_secret(made: NewPassword, *, as_json: bool) -> None:
    """Print a new password. It is shown this one time only."""
    if as_json:
        print_json(made)
        return
    print_record([("username", made.username), ("password", made.password)])


@user.command("list")
@json_option
def list_users(as_json: bool) -> None:
    """List the users."""
    found = connect().list_users()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "TENANTS", "ACCESS KEYS>"),
        [(one.name, ", ".join(one.tenants), str(len(one.access_keys))) for one in found],
    )


@user.command("show")
@click.argument("user")
@json_option
def show_user(user: str, as_json: bool) -> None:
    """Show one user. Passwords are not kept, and cannot be shown."""
    show_one(connect().show_user(user), as_json=as_json)


def show_one(found: UserInfo, *, as_json: bool) -> None:
    """Print a user as it is now."""
    if as_json:
        print_json(found)
        return
    print_record(
        [
            ("id", found.id),
            ("name", found.name),
            ("tenants", ", ".join(found.tenants) or "none"),
            ("access keys", ", ".join(found.access_keys) or "none"),
        ]
    )


@user.command()
@click.argument("user")
@click.argument("tenant")
@json_option
def grant(user: str, tenant: str, as_json: bool) -> None:
    """Let USER act for TENANT."""
    show_one(connect().grant(user, tenant), as_json=as_json)


@user.command()
@click.argument("user")
@click.argument("tenant")
@json_option
def revoke(user: str, tenant: str, as_json: bool) -> None:
    """Let USER no longer act for TENANT, not even with tokens that were given out before."""
    show_one(connect().revoke(user, tenant), as_json=as_json)


@user.command()
@click.argument("user")
@password_option
@json_option
def password(user: str, password_stdin: bool, as_json: bool) -> None:
    """Give a user another password, and print it. The old one and all tokens are invalid."""
    made = connect().set_password(user, read_password(password_stdin))
    show_secret(made, as_json=as_json)


@user.command("access-key")
@click.argument("user")
@json_option
def access_key(user: str, as_json: bool) -> None:
    """Give a user a new access key, and print it. Other access keys and all tokens are invalid."""
    made = connect().replace_access_keys(user)
    if as_json:
        print_json(made)
        return
    print_record(
        [
            ("username", made.username),
            ("access key", made.access_key),
            ("secret key", made.secret_key),
        ]
    )


@user.command("delete")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_user(user: str, yes: bool, as_json: bool) -> None:
    """Delete a user. Access keys and tokens are invalid from now on; the tenants stay."""
    client: AccountClient = connect()
    found = client.show_user(user)
    confirm(f"Delete user {found.name}?", yes=yes)
    client.delete_user(found.name)
    report({"deleted": found}, f"deleted user {found.name}", as_json=as_json)
