"""`bock server`: add, list, show, remove the servers that volumes are attached to."""

from __future__ import annotations

import os

import click

from bockd.cli.arguments import server_name
from bockd.cli.client import connect
from bockd.cli.failure import judging_arguments
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import format_time, json_option, print_json, print_record, print_table, say
from bockd.model import Server, ServerKind
from bockd.validation import check_server_record


@click.group(cls=LazyGroup)
def server() -> None:
    """Register the servers that volumes are attached to.

    A SERVER is named by the id that the block storage API knows it by. One that nobody has
    registered is a plain server.
    """


@server.command()
@click.argument("name", type=server_name)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in ServerKind]),
    required=True,
    help="host: connects by itself, with bock; vm: a QEMU that gets a device; "
    "plain: an export for whoever holds its URI.",
)
@click.option("--qmp", metavar="SOCKET", help="The QMP socket of a vm.")
@click.option("--tenant", metavar="TENANT", help="Only this tenant has it; all have it otherwise.")
@json_option
def add(name: str, kind: str, qmp: str | None, tenant: str | None, as_json: bool) -> None:
    """Register the server NAME.

    \b
    bock server add web1 --kind host
    bock server add vm7 --kind vm --qmp /run/vm7/qmp.sock --tenant demo
    """
    path = None if qmp is None else os.path.abspath(qmp)
    with judging_arguments():
        check_server_record(Server(name, ServerKind(kind), path))
    added = connect().add_server(name, ServerKind(kind), path, tenant)
    if as_json:
        print_json(added)
        return
    say(f"server {added.name} is a {added.kind}")


@server.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the registered servers."""
    servers = connect().list_servers()
    if as_json:
        print_json(servers)
        return
    print_table(
        ("NAME", "KIND=", "TENANT", "ADDED="),
        [
            (found.name, found.kind, found.tenant or "all", format_time(found.added_at))
            for found in servers
        ],
    )


@server.command()
@click.argument("server", type=server_name)
@json_option
def show(server: str, as_json: bool) -> None:
    """Show one registered server."""
    found = connect().show_server(server)
    if as_json:
        print_json(found)
        return
    print_record(server_fields(found))


def server_fields(found: Server) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for a server."""
    qmp = [] if found.qmp_socket is None else [("QMP socket", found.qmp_socket)]
    return [
        ("name", found.name),
        ("kind", found.kind),
        *qmp,
        ("tenant", found.tenant or "all"),
        ("added", format_time(found.added_at)),
        *([("from", "the configuration")] if found.configured else []),
    ]


@server.command()
@click.argument("server", type=server_name)
@json_option
def remove(server: str, as_json: bool) -> None:
    """Forget a registered server. Refused while a volume is attached to it."""
    client = connect()
    found = client.show_server(server)
    client.remove_server(server)
    if as_json:
        print_json({"removed": found})
        return
    say(f"removed server {found.name}")
