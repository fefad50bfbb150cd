"""`bock pool`: the room that the pool has, and who has how much of it."""

from __future__ import annotations

import click

from bockd.cli.client import connect
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import format_time, json_option, print_json, print_record, print_table, say
from bockd.cli.sizes import format_size
from bockd.control import PoolInfo
from bockd.pool.reports import BackupRecord


@click.group(cls=LazyGroup)
def pool() -> None:
    """Show what the pool on this machine takes."""


@pool.command()
@json_option
def show(as_json: bool) -> None:
    """Show the pool's size, what is used and free, and what is promised.

    The size is that of the file system that the pool is on. Volumes take only what was written to
    them, so more can be promised than there is. Data that several volumes, snapshots and images
    share counts once: for volumes, else for snapshots, else for images, else for the trash. What
    stands at snapshots returns when all of them are deleted, and what stands at the trash when that
    is emptied.
    """
    found = connect().pool()
    if as_json:
        print_json(found)
        return
    print_record(pool_fields(found))


@pool.command()
@json_option
def backups(as_json: bool) -> None:
    """List the backups that `bockd backup` has made, the latest first.

    It is the last one into each directory that counts. One that is not finished goes on, or was
    interrupted: then there is no backup in its directory until the command was given again.
    """
    found = connect().list_backups()
    if as_json:
        print_json(found)
        return
    if not found:
        say("no backup of this pool is known; 'bockd backup' makes one")
        return
    titles = ("DIRECTORY", "AS OF", "FINISHED", "WRITTEN", "LEFT OUT")
    print_table(titles, map(_backup_row, found))


def _backup_row(made: BackupRecord) -> tuple[str, ...]:
    return (
        made.directory,
        format_time(made.began_at),
        "no" if made.finished_at is None else format_time(made.finished_at),
        format_size(made.written_bytes),
        ", ".join(made.left_out) or "nothing",
    )


def pool_fields(found: PoolInfo) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for the pool."""
    volumes, snapshots, images, trash = (
        ("unknown, the pool is damaged: run 'bockd check'" if part is None else format_size(part))
        for part in (
            found.volumes_bytes,
            found.snapshots_bytes,
            found.images_bytes,
            found.trash_bytes,
        )
    )
    files = [] if found.files_free is None else [("files free", str(found.files_free))]
    return [
        ("directory", found.directory),
        ("size", format_size(found.size_bytes)),
        ("used by the pool", part_of(found.used_bytes, found.size_bytes)),
        ("used by others", part_of(found.others_bytes, found.size_bytes)),
        ("free", part_of(found.free_bytes, found.size_bytes)),
        *files,
        ("promised", f"{promised(found)} to {counted(found.volumes, 'volume')}"),
        ("data of volumes", volumes),
        ("only in snapshots", f"{snapshots} ({counted(found.snapshots, 'snapshot')})"),
        ("only in images", f"{images} ({counted(found.images, 'image')})"),
        *(
            [("only in the trash", f"{trash} ({trashed(found)})")]
            if found.trash_volumes or found.trash_snapshots
            else []
        ),
        ("warns at", ", ".join(f"{one} %" for one in found.warn_percent) or "never"),
    ]


def part_of(part: int, whole: int) -> str:
    """Format a part of a whole, both in bytes, as in "10 GiB (25 %)"."""
    return f"{format_size(part)} ({100 * part / max(1, whole):.0f} %)"


def promised(found: PoolInfo) -> str:
    """Format the sum of the volumes' sizes, with a note when it is more than the pool can ever
    hold."""
    text = format_size(found.promised_bytes)
    has = found.used_bytes + found.free_bytes
    if found.promised_bytes <= has:
        return text
    return f"{text} ({found.promised_bytes / max(1, has):.1f} times what there is)"


def trashed(found: PoolInfo) -> str:
    """Format what is in the trash."""
    volumes = counted(found.trash_volumes, "volume")
    return f"{volumes}, {counted(found.trash_snapshots, 'snapshot')}"


def counted(number: int, what: str) -> str:
    """Format a number of things, as in "1 volume" and "2 volumes"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
