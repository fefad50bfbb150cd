"""`bock volume migrate`: a volume moves to the pool of another daemon."""

from __future__ import annotations

import click

from bockd.cli.arguments import reference
from bockd.cli.asking import confirm
from bockd.cli.completion import complete_volume
from bockd.cli.convert import byte_bar, ending_signals_interrupt
from bockd.cli.elsewhere import Elsewhere
from bockd.cli.migration import Migration
from bockd.cli.output import json_option, report, say
from bockd.cli.records import Volume
from bockd.cli.sizes import format_size
from bockd.cli.storage import connect
from bockd.cli.volume import where_to_connect
from bockd.errors import BockdError


@click.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option(
    "--to",
    "pool",
    metavar="POOL",
    required=True,
    help="The data directory of a daemon on this machine, or a file with the OS_ variables of one "
    "elsewhere, as 'bock credentials --shell' prints them.",
)
@click.option("--live", is_flag=True, help="Copy while clients use the volume.")
@click.option("--no-verify", is_flag=True, help="Do not compare the copy with the original.")
@click.option("--delete-source", is_flag=True, help="Delete the volume here in the end.")
@click.option("--cancel", is_flag=True, help="Undo an unfinished migration.")
@click.option("--yes", is_flag=True, help="Do not ask before the source is deleted.")
@json_option
def migrate(
    volume: str,
    pool: str,
    live: bool,
    no_verify: bool,
    delete_source: bool,
    cancel: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move a volume to the pool of another daemon, of the same kind or another.

    Name, description, metadata, size and contents are the same there; snapshots stay here. Nobody
    may use the volume: it is held until the end, and stays here, held, unless --delete-source. An
    interrupted migration goes on when the same command is run again.

    With --live the volume is used until all but the latest changes are copied. Then the command
    says which clients are to end, waits for that, and copies the rest: only so long nobody can use
    the volume. Clients connect to the other pool afterwards.

    \b
    bock volume migrate web --to /var/lib/bockd-ceph
    bock volume migrate web --to /var/lib/bockd-ceph --live
    bock volume migrate web --to storage2.env --delete-source
    bock volume migrate web --to storage2.env --cancel
    """
    if cancel and (delete_source or no_verify or live):
        raise click.UsageError("--cancel goes with no other option but --to")
    with ending_signals_interrupt():
        try:
            here, there = connect(), Elsewhere(pool)
            click.get_current_context().call_on_close(there.client.close)
            move = Migration(here, there, volume, byte_bar, _tell_waiting)
            if cancel:
                move.cancel()
            else:
                if delete_source:
                    confirm(f"Delete volume {volume} here when it has moved?", yes=yes)
                moved = move.run(live=live, verify=not no_verify)
                if delete_source:
                    move.delete_source(moved)
        except KeyboardInterrupt as error:
            raise BockdError(
                f"interrupted; the same command goes on with the migration of volume {volume}, and "
                "--cancel undoes it"
            ) from error
    if cancel:
        report(
            {"cancelled": move.source},
            f"volume {move.source.id} ({move.source.name}) stays here",
            as_json=as_json,
        )
        return
    _tell(move.source, moved, pool, deleted=delete_source, as_json=as_json)


def _tell_waiting(text: str) -> None:
    say(f"bock: {text}", err=True)


def _tell(source: Volume, moved: Volume, pool: str, *, deleted: bool, as_json: bool) -> None:
    left = (
        "the volume here is deleted"
        if deleted
        else f"the volume here is held; 'bock volume delete {source.id}' deletes it"
    )
    report(
        moved,
        f"migrated volume {source.id} ({source.name}) to volume {moved.id} at {pool}, "
        f"{format_size(moved.size_bytes)}",
        *where_to_connect(moved),
        left,
        as_json=as_json,
    )
