"""`bock credentials`, `bock limits` and `bock adopt`: about the tenant itself."""

from __future__ import annotations

import shlex

import click

from bockd.cli.accountclient import connect as connect_accounts
from bockd.cli.client import ControlClient
from bockd.cli.lazy import LazyGroup
from bockd.cli.login import read_credentials
from bockd.cli.output import json_option, print_json, print_record, print_table, report
from bockd.cli.storage import connect
from bockd.config import Settings, load_settings
from bockd.errors import InvalidRequestError, UnavailableError
from bockd.model import NodeKind, TlsMode

ANY_HOST = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing listens there
"""Where a daemon that listens everywhere is reached from this machine."""


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.option("--shell", "as_shell", is_flag=True, help="Print lines that set OS_AUTH_URL etc.")
@json_option
@click.pass_context
def credentials(ctx: click.Context, as_shell: bool, as_json: bool) -> None:
    """Show the credentials that the daemon's first start made, and where to use them.

    They are those of the tenant demo, kept where only the user who runs the daemon can read them.
    With them OpenStack's clients, and bock on another machine, work on the same volumes.

    \b
    eval "$(bock credentials --shell)"
    bock credentials rotate
    """
    if ctx.invoked_subcommand is not None:
        if as_shell or as_json:
            raise click.UsageError(f"options go behind {ctx.invoked_subcommand!r}")
        return
    settings = load_settings()
    stored = read_credentials(settings.data_dir)
    url = api_url(settings)
    if as_shell:
        print_shell(stored, url)
        return
    endpoints = (
        {}
        if url is None
        else {"identity": f"{url}/v2.0", "volume": f"{url}/v1.1/{stored['tenant_id']}"}
    )
    if as_json:
        print_json({**stored, "endpoints": endpoints})
        return
    print_record(
        [
            *((key.replace("_", " "), value) for key, value in stored.items()),
            *((f"{kind} endpoint", address) for kind, address in endpoints.items()),
            *([] if endpoints else [("endpoints", "none: the daemon's API is on its socket only")]),
        ]
    )


@credentials.command()
@json_option
def rotate(as_json: bool) -> None:
    """Make a new password and access key, and write the credentials file anew.

    The old ones are invalid from now on, and so are all tokens of that user: programs that have
    them must get the new ones. A file that is lost is made again.
    """
    path = connect_accounts().rotate_credentials()
    report({"path": path}, f"wrote new credentials to {path}", as_json=as_json)


def print_shell(stored: dict[str, str], url: str | None) -> None:
    """Print lines for the shell's `eval`."""
    if url is None:
        raise InvalidRequestError(
            "the daemon's API is on its socket only, so there is no OS_AUTH_URL: let it listen "
            "with BOCKD_API_LISTEN"
        )
    variables = {
        "OS_AUTH_URL": f"{url}/v2.0",
        "OS_USERNAME": stored["username"],
        "OS_PASSWORD": stored["password"],
        "OS_TENANT_NAME": stored["tenant"],
        "OS_IDENTITY_API_VERSION": "2.0",
    }
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def api_url(settings: Settings) -> str | None:
    """Return the URL of the daemon's API over TCP: the configured public URL, else the running
    daemon's address, else the configured one. None when it does not listen on TCP."""
    if settings.catalog.public_url is not None:
        return settings.catalog.public_url
    try:
        with ControlClient(settings.api_socket) as control:
            info = control.info()
            listens, tls = info.api_listen, info.api_tls
    except UnavailableError:
        listens = None if settings.api.listen is None else str(settings.api.listen)
        tls = settings.api.tls is not TlsMode.OFF
    if listens is None:
        return None
    host, _, port = listens.rpartition(":")
    scheme = "https" if tls else "http"
    return f"{scheme}://{ANY_HOST.get(host, host)}:{port}"


LIMITS = (
    ("volumes", "totalVolumesUsed", "maxTotalVolumes"),
    ("gigabytes", "totalGigabytesUsed", "maxTotalVolumeGigabytes"),
    ("snapshots", "totalSnapshotsUsed", "maxTotalSnapshots"),
)


@click.command()
@json_option
def limits(as_json: bool) -> None:
    """Show the tenant's quota, and how much of it is used.

    Each volume counts in gigabytes with its size, rounded up to whole GiB.
    """
    found = connect().limits()
    if as_json:
        print_json(found)
        return
    print_table(
        ("", "USED>", "OF>"),
        [
            (what, str(found[used]), "unlimited" if found[most] < 0 else str(found[most]))
            for what, used, most in LIMITS
        ],
    )


@click.command()
@click.argument("kind", type=click.Choice([kind.value for kind in NodeKind]))
@click.argument("refs", metavar="NAME_OR_ID...", nargs=-1, required=True)
@json_option
def adopt(kind: str, refs: tuple[str, ...], as_json: bool) -> None:
    """Take over volumes or snapshots of the pool that belong to no tenant.

    Earlier versions of bock made such volumes; `bock info` names them. This needs the daemon's own
    user, who may use its control socket.

    \b
    bock adopt volume web db
    bock adopt snapshot before-upgrade
    """
    tenant = connect().tenant_id
    with ControlClient(load_settings().api_socket) as control:
        for ref in refs:
            control.adopt(NodeKind(kind), ref, tenant)
    report(
        {"adopted": refs, "tenant": tenant},
        *(f"adopted {kind} {ref}" for ref in refs),
        as_json=as_json,
    )
