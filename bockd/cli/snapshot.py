"""`bock snapshot`: create, list, show, delete, revert."""

from __future__ import annotations

import time
from dataclasses import replace

import click

from bockd.cli.arguments import new_name, reference
from bockd.cli.asking import confirm
from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.lazy import LazyGroup
from bockd.cli.obstacles import explained
from bockd.cli.output import (
    format_count,
    format_time,
    json_option,
    print_json,
    print_record,
    print_table,
    report,
)
from bockd.cli.records import Snapshot, Volume
from bockd.cli.sizes import format_exact_size, format_size
from bockd.cli.storage import StorageClient, connect
from bockd.cli.trash import fate
from bockd.cli.trashclient import kept
from bockd.cli.volume import end_fields, space_fields
from bockd.errors import ConflictError
from bockd.model import NodeKind

MAX_NAME_TRIES = 100
"""Snapshots that one second may give the same default name before we stop counting up."""


@click.group(cls=LazyGroup)
def snapshot() -> None:
    """Take, list, export, revert to and delete snapshots.

    A SNAPSHOT is named by its name or its id. It is exported read-only over NBD.
    """


@snapshot.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument("name", type=new_name, required=False)
@json_option
def create(volume: str, name: str | None, as_json: bool) -> None:
    """Freeze what VOLUME holds now as the snapshot NAME.

    Takes no time and no space, and the volume may be in use. Without NAME it is called after
    the volume and the time.

    \b
    bock snapshot create web before-upgrade
    """
    client = connect()
    origin = client.find_volume(volume)
    taken = (
        create_unnamed(client, origin) if name is None else client.create_snapshot(origin.id, name)
    )
    report(
        taken,
        f"created snapshot {taken.id} ({taken.name}) of volume {taken.volume}",
        as_json=as_json,
    )


def create_unnamed(client: StorageClient, origin: Volume) -> Snapshot:
    """Create a snapshot called VOLUME-DATE-TIME, with a number behind it when that name is
    taken."""
    name = time.strftime(f"{origin.name.replace('%', '%%')}-%Y%m%d-%H%M%S")
    for attempt in range(1, MAX_NAME_TRIES):
        try:
            return client.create_snapshot(origin.id, name if attempt == 1 else f"{name}-{attempt}")
        except ConflictError:
            continue
    raise ConflictError(f"all names like {name} are taken: give the snapshot a name")


@snapshot.command("list")
@click.option(
    "--volume",
    metavar="VOLUME",
    type=reference,
    shell_complete=complete_volume,
    help="Only those of this volume.",
)
@json_option
def list_(volume: str | None, as_json: bool) -> None:
    """List snapshots, all or those of one volume."""
    client = connect()
    origin = None if volume is None else client.find_volume(volume).id
    snapshots = [one for one in client.list_snapshots() if origin in (None, one.volume)]
    if as_json:
        print_json(snapshots)
        return
    names = {found.id: found.name for found in client.list_volumes()}
    print_table(
        ("ID>", "NAME", "SIZE>", "VOLUME", "STATUS=", "CLIENTS>", "CREATED="),
        [
            (
                str(found.id),
                found.name,
                format_size(found.size_bytes),
                names.get(found.volume, f"{found.volume} (deleted)"),
                found.status,
                format_count(found.connections),
                format_time(found.created_at),
            )
            for found in snapshots
        ],
    )


@snapshot.command()
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@json_option
def show(snapshot: str, as_json: bool) -> None:
    """Show one snapshot, with the space it takes."""
    client = connect()
    found = client.find_snapshot(snapshot)
    space = client.space(NodeKind.SNAPSHOT, found.id)
    if as_json:
        print_json(replace(found, space=space))
        return
    print_record(
        [
            ("id", str(found.id)),
            ("name", found.name),
            ("size", format_exact_size(found.size_bytes)),
            ("status", found.status),
            ("volume", str(found.volume)),
            *end_fields(found),
            *space_fields(space),
        ]
    )


@snapshot.command()
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(snapshot: str, yes: bool, as_json: bool) -> None:
    """Delete a snapshot; volumes made from it stay.

    Asks first when run at a terminal. Refused while a client reads it.
    """
    client = connect()
    found = client.find_snapshot(snapshot)
    confirm(f"Delete snapshot {found.id} ({found.name}) of volume {found.volume}?", yes=yes)
    with explained(client, found):
        client.delete_snapshot(found.id)
    trashed = kept(client, found.id)
    report(
        {"deleted": found, "in_trash": trashed},
        f"deleted snapshot {found.id} ({found.name})",
        *fate(trashed),
        as_json=as_json,
    )


@snapshot.command()
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revert(snapshot: str, yes: bool, as_json: bool) -> None:
    """Make the snapshot's volume hold again exactly what SNAPSHOT holds.

    What was written to the volume since is lost; snapshot it first to keep it. Asks first when
    run at a terminal. Refused while a client is connected to the volume, or it is attached to a
    server.
    """
    client = connect()
    found = client.find_snapshot(snapshot)
    confirm(
        f"Lose what was written to volume {found.volume} since snapshot {found.id} ({found.name})?",
        yes=yes,
    )
    with explained(client, client.show_volume(found.volume)):
        reverted = client.revert_volume(found.volume, found.id)
    report(
        reverted,
        f"volume {reverted.id} ({reverted.name}) holds what snapshot {found.id} "
        f"({found.name}) holds",
        as_json=as_json,
    )


snapshot.add_lazily("rename", "bockd.cli.editing:rename_snapshot")
snapshot.add_lazily("set", "bockd.cli.editing:set_snapshot")
snapshot.add_lazily("export", "bockd.cli.export:export_snapshot")
