"""Snapshots of a volume that a migration makes for itself, and removes.

They consume no quota, which tells them from those of users, whatever their names. Their names are
random: what one is called that was deleted, none is called again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from functools import partial

from bockd.cli.records import Snapshot
from bockd.cli.storage import StorageClient
from bockd.cli.waiting import when_released


def snapshots_of_migrations(client: StorageClient, volume: int) -> list[Snapshot]:
    """List those of a volume, by id, that nobody is deleting, as one is of which a clone is made.
    Raises BockdError."""
    found = client.list_snapshots()
    return [
        one
        for one in found
        if one.volume == volume and not one.consumes_quota and one.status != "deleting"
    ]


def found_by_name(client: StorageClient, volume: int, name: str) -> Snapshot | None:
    """Return the one of a volume that has a name. Raises BockdError."""
    found = (one for one in snapshots_of_migrations(client, volume) if one.name == name)
    return next(found, None)


def delete_leftovers(client: StorageClient, volume: int, keep: Collection[str] = ()) -> int:
    """Delete those of a volume, but for some names. Return how many. Raises BockdError."""
    gone = [one for one in snapshots_of_migrations(client, volume) if one.name not in keep]
    for one in gone:
        when_released(partial(client.delete_snapshot, one.id))
    return len(gone)


def take_for_migration(client: StorageClient, volume: int, name: str | None = None) -> Snapshot:
    """Take a snapshot of a volume, in use or not. Return the one that is there if the name is
    given and taken. Raises BockdError."""
    title = f"migration-{name or secrets.token_hex(4)}"
    if name is not None and (there := found_by_name(client, volume, title)) is not None:
        return there
    # Refused for the moment in which the volume is being attached or detached.
    return when_released(lambda: client.create_snapshot(volume, title, consumes_quota=False))
