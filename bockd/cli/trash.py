"""`bock trash`: what was deleted and is kept for some time; list, restore, delete for good."""

from __future__ import annotations

from dataclasses import replace

import click

from bockd.cli.arguments import reference
from bockd.cli.asking import confirm
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import format_time, json_option, print_json, print_table, report
from bockd.cli.sizes import format_size
from bockd.cli.storage import connect
from bockd.cli.trashclient import (
    Trashed,
    delete_for_good,
    empty_trash,
    find_trashed,
    list_trash,
    restore,
    space_of,
)


@click.group(cls=LazyGroup)
def trash() -> None:
    """Restore what was deleted, or delete it for good.

    Volumes and snapshots that are deleted are kept for as long as the daemon's configuration says
    (keep_hours in [trash]); without that they are gone at once. A volume or snapshot is named by
    its id, or by the name that it had.
    """


@trash.command("list")
@click.option("--space", is_flag=True, help="Measure what each frees when it is deleted for good.")
@json_option
def list_(space: bool, as_json: bool) -> None:
    """List what is in the trash.

    With --space, FREES is what deleting this one alone gives back: what others show too stays.
    """
    client = connect()
    found = list_trash(client)
    if space:
        found = [replace(one, space=space_of(client, one.id)) for one in found]
    if as_json:
        print_json(found)
        return
    titles = ["ID>", "KIND=", "NAME", "SIZE>", "DELETED=", "KEPT UNTIL="]
    rows = [
        [
            str(one.id),
            one.kind,
            one.name,
            format_size(one.size_bytes),
            format_time(one.deleted_at),
            format_time(one.expires_at),
            *([] if one.space is None else [format_size(one.space.exclusive_bytes)]),
        ]
        for one in found
    ]
    print_table([*titles, *(["FREES>"] if space else [])], rows)


@trash.command("restore")
@click.argument("deleted", type=reference)
@json_option
def restore_(deleted: str, as_json: bool) -> None:
    """Bring back the volume or snapshot DELETED, with its id, its name and its data.

    If another one has its name by now, both have. Refused beyond the quota, unless what is in the
    trash counts there.

    \b
    bock trash restore web
    """
    client = connect()
    found = find_trashed(client, deleted)
    restore(client, found.id)
    report({"restored": found}, f"restored {called(found)}", as_json=as_json)


@trash.command()
@click.argument("deleted", type=reference)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(deleted: str, yes: bool, as_json: bool) -> None:
    """Delete the volume or snapshot DELETED, which is in the trash, for good.

    Asks first when run at a terminal. Its space returns in the background.
    """
    client = connect()
    found = find_trashed(client, deleted)
    confirm(f"Delete {called(found)} and its data for good?", yes=yes)
    delete_for_good(client, found.id)
    report({"deleted": found}, f"deleted {called(found)} for good", as_json=as_json)


@trash.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def empty(yes: bool, as_json: bool) -> None:
    """Delete all that is in the trash for good.

    Asks first when run at a terminal. The space returns in the background.
    """
    client = connect()
    number = len(list_trash(client))
    if number:
        confirm(f"Delete {number} in the trash and their data for good?", yes=yes)
        number = empty_trash(client)
    report({"deleted": number}, f"deleted {number} for good", as_json=as_json)


def called(found: Trashed) -> str:
    """Say which one it is, as in "volume 5 (web)"."""
    return f"{found.kind} {found.id} ({found.name})"


def fate(found: Trashed | None) -> list[str]:
    """Return the line that says how something that was just deleted comes back, if it does."""
    if found is None:
        return []
    return [
        f"it is in the trash until {format_time(found.expires_at)}: 'bock trash restore "
        f"{found.id}' brings it back"
    ]
