"""`bock volume`: create, list, show, extend, delete, reopen. Images are in `transfer`."""

from __future__ import annotations

import click

from bockd.cli.client import connect
from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.output import (
    confirm,
    format_time,
    json_option,
    print_json,
    print_record,
    print_table,
)
from bockd.cli.sizes import format_size, size_option
from bockd.control import VolumeInfo
from bockd.model import NodeKind


@click.group()
def volume() -> None:
    """Create, list, grow, import, export and delete volumes.

    A VOLUME is named by its name or its id.
    """


@volume.command()
@click.argument("name")
@click.option(
    "--size", type=size_option, metavar="SIZE", help="Like 10GiB, 512M or 1TiB: 1 MiB to 16 TiB."
)
@click.option(
    "--from-snapshot",
    metavar="SNAPSHOT",
    shell_complete=complete_snapshot,
    help="Begin with what this snapshot holds; --size may then be larger or absent.",
)
@json_option
def create(name: str, size: int | None, from_snapshot: str | None, as_json: bool) -> None:
    """Create the volume NAME, blank or as a clone of a snapshot.

    It takes no space until it is written.

    \b
    bock volume create web --size 10GiB
    bock volume create web-test --from-snapshot before-upgrade
    """
    if size is None and from_snapshot is None:
        raise click.UsageError("say --size, or --from-snapshot to clone one")
    created = connect().create_volume(name, size, from_snapshot)
    if as_json:
        print_json(created)
        return
    click.echo(f"created volume {created.id} ({created.name}), {format_size(created.size_bytes)}")
    click.echo(f"connect to it at {created.uri}")


@volume.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all volumes."""
    volumes = connect().list_volumes()
    if as_json:
        print_json(volumes)
        return
    print_table(
        ("ID>", "NAME", "SIZE>", "STATUS", "CLIENTS>", "CREATED"),
        [
            (
                str(found.id),
                found.name,
                format_size(found.size_bytes),
                found.status,
                str(found.connections),
                format_time(found.created_at),
            )
            for found in volumes
        ],
    )


@volume.command()
@click.argument("volume", shell_complete=complete_volume)
@json_option
def show(volume: str, as_json: bool) -> None:
    """Show one volume, with the space it takes.

    Exclusive space returns when the volume is deleted; shared space is also used by snapshots or
    other volumes.
    """
    client = connect()
    found = client.show_volume(volume)
    space = client.space(NodeKind.VOLUME, str(found.id))
    if as_json:
        print_json({"volume": found, "space": space})
        return
    print_record(
        [
            *volume_fields(found),
            ("exclusive", format_size(space.exclusive_bytes)),
            ("shared", format_size(space.shared_bytes)),
        ]
    )


def volume_fields(found: VolumeInfo) -> list[tuple[str, str]]:
    """What people see of a volume."""
    origin = [] if found.from_snapshot is None else [("from snapshot", str(found.from_snapshot))]
    trouble = [] if found.error is None else [("error", found.error)]
    return [
        ("id", str(found.id)),
        ("name", found.name),
        ("size", f"{format_size(found.size_bytes)} ({found.size_bytes} bytes)"),
        ("status", found.status),
        *trouble,
        ("clients", str(found.connections)),
        ("created", format_time(found.created_at)),
        *origin,
        ("uri", found.uri),
    ]


@volume.command()
@click.argument("volume", shell_complete=complete_volume)
@click.option(
    "--size",
    type=size_option,
    metavar="SIZE",
    required=True,
    help="The new size, larger than the old one.",
)
@json_option
def extend(volume: str, size: int, as_json: bool) -> None:
    """Grow a volume to a new size; what is added reads as zeros.

    Connected clients see the new size when they connect again.

    \b
    bock volume extend web --size 20GiB
    """
    grown = connect().extend_volume(volume, size)
    if as_json:
        print_json(grown)
        return
    click.echo(f"volume {grown.id} ({grown.name}) now has {format_size(grown.size_bytes)}")


@volume.command()
@click.argument("volume", shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(volume: str, yes: bool, as_json: bool) -> None:
    """Delete a volume; its snapshots stay.

    Asks first when run at a terminal. Refused while a client is connected.
    """
    client = connect()
    found = client.show_volume(volume)
    confirm(
        f"Delete volume {found.id} ({found.name}, {format_size(found.size_bytes)}) and its data?",
        yes=yes,
    )
    client.delete_volume(str(found.id))
    if as_json:
        print_json({"deleted": found})
        return
    click.echo(f"deleted volume {found.id} ({found.name})")


@volume.command()
@click.argument("volume", shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def reopen(volume: str, yes: bool, as_json: bool) -> None:
    """Use a volume in status error again.

    After a disk error nobody can know which of the writes since the last successful flush are on
    disk, so the volume refuses everything until you have decided. `bock volume show` says what
    happened. Check what is on the volume afterwards, or revert it to a snapshot. Asks first when
    run at a terminal.
    """
    client = connect()
    found = client.show_volume(volume)
    confirm(
        f"Use volume {found.id} ({found.name}) again, although its latest writes may be lost?",
        yes=yes,
    )
    reopened = client.reopen_volume(str(found.id))
    if as_json:
        print_json(reopened)
        return
    click.echo(f"volume {reopened.id} ({reopened.name}) is {reopened.status}")
