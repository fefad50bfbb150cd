"""`bock attachment`: which volume is at which server."""

from __future__ import annotations

import click

from bockd.cli.arguments import reference, server_name
from bockd.cli.completion import complete_volume
from bockd.cli.lazy import LazyGroup
from bockd.cli.obstacles import explained
from bockd.cli.output import json_option, print_json, print_record, print_table, report
from bockd.cli.records import Attached, Volume, WayIn
from bockd.cli.storage import StorageClient, connect
from bockd.errors import NotFoundError

TITLE_WIDTH = 10


@click.group(cls=LazyGroup)
def attachment() -> None:
    """Attach volumes to servers and detach them.

    A SERVER is the id by which your cloud knows a machine: up to 255 letters, digits, ".", "_" and
    "-". A volume is attached to one server at a time.
    """


@attachment.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument("server", type=server_name)
@click.option("--device", help="Like /dev/vdf; by default the next free one.")
@json_option
def create(volume: str, server: str, device: str | None, as_json: bool) -> None:
    """Attach VOLUME to SERVER.

    Prints the URIs that the server's NBD clients connect to. They are secrets: who knows one can
    read and write the volume until it is detached.

    \b
    bock attachment create web web1
    """
    client = connect()
    found = client.find_volume(volume)
    with explained(client, found):
        made = client.attach(server, found.id, device)
    report(
        made,
        f"attached volume {made.volume} to {made.server} as {made.device}",
        *(f"{title:<{TITLE_WIDTH}}{uri}" for title, uri in ways(made)),
        as_json=as_json,
    )


@attachment.command("list")
@click.argument("server", type=server_name, required=False)
@json_option
def list_(server: str | None, as_json: bool) -> None:
    """List attachments, all or those of one server."""
    found = [
        (volume, volume.attachment)
        for volume in connect().list_volumes()
        if volume.attachment is not None and server in (None, volume.attachment.server)
    ]
    if as_json:
        print_json([way_unasked(volume, at) for volume, at in found])
        return
    print_table(
        ("VOLUME>", "NAME", "SERVER", "DEVICE="),
        [(str(at.volume), volume.name, at.server, at.device) for volume, at in found],
    )


@attachment.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@json_option
def show(volume: str, as_json: bool) -> None:
    """Show where VOLUME is attached, and how its server reaches it."""
    client = connect()
    found, attached = find(client, volume)
    at = client.way_in(attached)
    if as_json:
        print_json(at)
        return
    kind = [] if at.kind is None else [("kind", at.kind)]
    clients = [] if at.connections is None else [("clients", str(at.connections))]
    trouble = [] if found.last_error is None else [("last error", found.last_error)]
    print_record(
        [
            ("volume", str(found.id)),
            ("name", found.name),
            ("server", at.server),
            *kind,
            ("device", at.device),
            ("status", found.status),
            *trouble,
            *clients,
            *ways(at),
        ]
    )


@attachment.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("--force", is_flag=True, help="Cut the server off at once: it is gone, or hangs.")
@json_option
def delete(volume: str, force: bool, as_json: bool) -> None:
    """Detach VOLUME from its server.

    Unmount it there first. What the server has sent is carried out and made durable; nothing that
    it sends later reaches the volume.
    """
    client = connect()
    found, at = find(client, volume)
    client.detach(at, force=force)
    report(
        {"deleted": at},
        f"detached volume {found.id} ({found.name}) from {at.server}",
        as_json=as_json,
    )


def way_unasked(volume: Volume, at: Attached) -> WayIn:
    """Return what is known of an attachment without a request for each one: no URIs."""
    return WayIn(at.volume, at.server, at.device, None, None, None, volume.connections)


def ways(at: WayIn) -> list[tuple[str, str]]:
    """Return the URIs of an attachment that are known, each with its title."""
    found = [*[("uri", uri) for uri in at.uris or (at.uri,)], ("unix uri", at.unix_uri)]
    return [(title, uri) for title, uri in found if uri is not None]


def find(client: StorageClient, ref: str) -> tuple[Volume, Attached]:
    """Return a volume and where it is attached. Raises NotFoundError when it is not attached."""
    found = client.find_volume(ref)
    if found.attachment is None:
        raise NotFoundError(f"volume {found.id} ({found.name}) is not attached to a server")
    return found, found.attachment
