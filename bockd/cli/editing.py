"""`bock volume rename` and `set`, and the same of `bock snapshot`: what things are called.

The name in the pool, under which clients are connected, stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from bockd.cli.arguments import new_name, reference
from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.output import json_option, report
from bockd.cli.records import Snapshot, Volume
from bockd.cli.storage import connect
from bockd.errors import ConflictError, NotFoundError
from bockd.model import NodeKind

Item = tuple[str, str]

description_option = click.option(
    "--description", metavar="TEXT", help='What it is for; "" removes the one it has.'
)


def metadata_item(text: str) -> Item:
    """Split KEY=VALUE, of which the value may be empty. Raises click.BadParameter."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


def metadata_key(text: str) -> str:
    """Check the key of an item that is to go, and return it. Raises click.BadParameter."""
    if not text:
        raise click.BadParameter("an empty key refers to nothing")
    return text


@click.command("rename")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument("name", type=new_name)
@json_option
def rename_volume(volume: str, name: str, as_json: bool) -> None:
    """Give VOLUME another name, in use or not.

    Its export, which clients connect to, keeps the name that it has.

    \b
    bock volume rename web shop
    """
    client = connect()
    found = client.find_volume(volume)
    refuse_taken(NodeKind.VOLUME, name, found, client.list_volumes(name))
    renamed = client.edit_volume(found.id, name=name)
    report(renamed, *renamed_lines(NodeKind.VOLUME, found, renamed), as_json=as_json)


@click.command("rename")
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@click.argument("name", type=new_name)
@json_option
def rename_snapshot(snapshot: str, name: str, as_json: bool) -> None:
    """Give SNAPSHOT another name.

    Its export, which clients connect to, keeps the name that it has.

    \b
    bock snapshot rename before-upgrade before-12.5
    """
    client = connect()
    found = client.find_snapshot(snapshot)
    refuse_taken(NodeKind.SNAPSHOT, name, found, client.list_snapshots(name))
    renamed = client.edit_snapshot(found.id, name=name)
    report(renamed, *renamed_lines(NodeKind.SNAPSHOT, found, renamed), as_json=as_json)


def refuse_taken(
    kind: NodeKind, name: str, found: Volume | Snapshot, named: Sequence[Volume | Snapshot]
) -> None:
    """Raise ConflictError if another one of the kind, of those `named` so, has the name: the API
    allows it, but then the name would be ambiguous."""
    for other in named:
        if other.id != found.id:
            raise ConflictError(
                f"a {kind} named {name!r} exists already ({other.id}); choose another name"
            )


def renamed_lines(
    kind: NodeKind, before: Volume | Snapshot, after: Volume | Snapshot
) -> Sequence[str]:
    """Return what is said of a volume or snapshot that has another name now."""
    line = f"{kind} {after.id} ({before.name}) is called {after.name} now"
    return (
        [line] if after.uri is None else [line, f"clients connect to it at {after.uri} as before"]
    )


@click.command("set")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@description_option
@click.option(
    "--metadata",
    "items",
    type=metadata_item,
    multiple=True,
    metavar="KEY=VALUE",
    help="An item to set; others stay. May be given more than once.",
)
@click.option(
    "--no-metadata",
    "gone",
    type=metadata_key,
    multiple=True,
    metavar="KEY",
    help="An item to remove. May be given more than once.",
)
@json_option
def set_volume(
    volume: str,
    description: str | None,
    items: Sequence[Item],
    gone: Sequence[str],
    as_json: bool,
) -> None:
    """Set the description and the metadata of VOLUME.

    Metadata are items of text that clients of the API see; bockd does nothing by them. Each option
    is a request of its own.

    \b
    bock volume set web --description "the shop" --metadata owner=ann
    bock volume set web --no-metadata owner
    """
    if description is None and not items and not gone:
        raise click.UsageError("say --description, --metadata or --no-metadata")
    if both := {key for key, _ in items}.intersection(gone):
        raise click.UsageError(f"set or remove {min(both)!r}, not both")
    client = connect()
    found = client.find_volume(volume)
    for key in gone:
        if key not in found.metadata:
            raise NotFoundError(
                f"volume {found.id} ({found.name}) has no metadata {key!r}; nothing was changed"
            )
    if items:
        client.set_metadata(found.id, dict(items))
    for key in dict.fromkeys(gone):
        client.remove_metadata(found.id, key)
    if description is not None:
        client.edit_volume(found.id, description=description)
    changed = client.show_volume(found.id)
    report(changed, f"changed volume {changed.id} ({changed.name})", as_json=as_json)


@click.command("set")
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@description_option
@json_option
def set_snapshot(snapshot: str, description: str | None, as_json: bool) -> None:
    """Set the description of SNAPSHOT.

    \b
    bock snapshot set before-upgrade --description "Debian 12.4, all services stopped"
    """
    if description is None:
        raise click.UsageError("say --description")
    client = connect()
    changed = client.edit_snapshot(client.find_snapshot(snapshot).id, description=description)
    report(changed, f"changed snapshot {changed.id} ({changed.name})", as_json=as_json)
