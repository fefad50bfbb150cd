"""`bock snapshot`: create, list, show, delete, revert."""

from __future__ import annotations

import time

import click

from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.output import (
    confirm,
    format_time,
    json_option,
    print_json,
    print_record,
    print_table,
)
from bockd.cli.sizes import format_size
from bockd.control import SnapshotInfo
from bockd.errors import ConflictError
from bockd.model import NodeKind

MAX_NAME_TRIES = 100
"""Snapshots that one second may give the same default name before we stop counting up."""


@click.group()
def snapshot() -> None:
    """Take, list, export, revert to and delete snapshots.

    A SNAPSHOT is named by its name or its id. It is exported read-only over NBD.
    """


@snapshot.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("name", required=False)
@json_option
def create(volume: str, name: str | None, as_json: bool) -> None:
    """Freeze what VOLUME holds now as the snapshot NAME.

    Takes no time and no space, and the volume may be in use. Without NAME it is called after
    the volume and the time.

    \b
    bock snapshot create web before-upgrade
    """
    client = connect()
    taken = (
        client.create_snapshot(volume, name) if name is not None else create_unnamed(client, volume)
    )
    if as_json:
        print_json(taken)
        return
    click.echo(f"created snapshot {taken.id} ({taken.name}) of volume {taken.volume}")


def create_unnamed(client: ControlClient, volume: str) -> SnapshotInfo:
    """A snapshot called VOLUME-DATE-TIME, with a number behind it when that is taken."""
    origin = client.show_volume(volume)
    name = time.strftime(f"{origin.name.replace('%', '%%')}-%Y%m%d-%H%M%S")
    for attempt in range(1, MAX_NAME_TRIES):
        try:
            return client.create_snapshot(
                str(origin.id), name if attempt == 1 else f"{name}-{attempt}"
            )
        except ConflictError:
            continue
    raise ConflictError(f"all names like {name} are taken: give the snapshot a name")


@snapshot.command("list")
@click.option("--volume", shell_complete=complete_volume, help="Only those of this volume.")
@json_option
def list_(volume: str | None, as_json: bool) -> None:
    """List snapshots, all or those of one volume."""
    client = connect()
    snapshots = client.list_snapshots(volume)
    if as_json:
        print_json(snapshots)
        return
    names = {found.id: found.name for found in client.list_volumes()}
    print_table(
        ("ID>", "NAME", "SIZE>", "VOLUME", "CLIENTS>", "CREATED"),
        [
            (
                str(found.id),
                found.name,
                format_size(found.size_bytes),
                names.get(found.volume, f"{found.volume} (deleted)"),
                str(found.connections),
                format_time(found.created_at),
            )
            for found in snapshots
        ],
    )


@snapshot.command()
@click.argument("snapshot", shell_complete=complete_snapshot)
@json_option
def show(snapshot: str, as_json: bool) -> None:
    """Show one snapshot, with the space it takes."""
    client = connect()
    found = client.show_snapshot(snapshot)
    space = client.space(NodeKind.SNAPSHOT, str(found.id))
    if as_json:
        print_json({"snapshot": found, "space": space})
        return
    print_record(
        [
            ("id", str(found.id)),
            ("name", found.name),
            ("size", f"{format_size(found.size_bytes)} ({found.size_bytes} bytes)"),
            ("volume", str(found.volume)),
            ("clients", str(found.connections)),
            ("created", format_time(found.created_at)),
            ("uri", found.uri),
            ("exclusive", format_size(space.exclusive_bytes)),
            ("shared", format_size(space.shared_bytes)),
        ]
    )


@snapshot.command()
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(snapshot: str, yes: bool, as_json: bool) -> None:
    """Delete a snapshot; volumes made from it stay.

    Asks first when run at a terminal. Refused while a client reads it.
    """
    client = connect()
    found = client.show_snapshot(snapshot)
    confirm(f"Delete snapshot {found.id} ({found.name}) of volume {found.volume}?", yes=yes)
    client.delete_snapshot(str(found.id))
    if as_json:
        print_json({"deleted": found})
        return
    click.echo(f"deleted snapshot {found.id} ({found.name})")


@snapshot.command()
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revert(snapshot: str, yes: bool, as_json: bool) -> None:
    """Make the snapshot's volume hold again exactly what SNAPSHOT holds.

    What was written to the volume since is lost; snapshot it first to keep it. Asks first when
    run at a terminal. Refused while a client is connected to the volume.
    """
    client = connect()
    found = client.show_snapshot(snapshot)
    confirm(
        f"Lose what was written to volume {found.volume} since snapshot {found.id} ({found.name})?",
        yes=yes,
    )
    reverted = client.revert_volume(str(found.id))
    if as_json:
        print_json(reverted)
        return
    click.echo(
        f"volume {reverted.id} ({reverted.name}) holds what snapshot {found.id} "
        f"({found.name}) holds"
    )
