"""`bock`: the client of a running daemon."""

from __future__ import annotations

import click

import bockd
from bockd.cli.client import connect
from bockd.cli.completion import completion
from bockd.cli.failure import Program
from bockd.cli.output import json_option, print_json, print_record
from bockd.cli.server import server
from bockd.cli.snapshot import snapshot
from bockd.cli.stat import stat
from bockd.cli.transfer import export_snapshot, export_volume, import_image
from bockd.cli.volume import volume


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bockd.__version__, prog_name="bock")
def main() -> None:
    """Work with the volumes and snapshots of a running bockd.

    The daemon is found through its data directory: $BOCKD_DATA, or /var/lib/bockd for root,
    or ~/.local/share/bockd.

    \b
    bock volume create web --size 10GiB
    bock volume import debian-12.qcow2 --name web
    bock snapshot create web before-upgrade
    bock volume create web-test --from-snapshot before-upgrade
    bock stat
    """


@main.command()
@json_option
def info(as_json: bool) -> None:
    """Show which daemon answers and where it listens."""
    found = connect().info()
    if as_json:
        print_json(found)
        return
    print_record(
        [
            ("version", found.version),
            ("data directory", found.data_dir),
            ("NBD socket", found.nbd_socket),
            ("NBD over TCP", found.nbd_listen or "none"),
            ("volumes", str(found.volumes)),
            ("snapshots", str(found.snapshots)),
        ]
    )


volume.add_command(import_image)
volume.add_command(export_volume)
snapshot.add_command(export_snapshot)
main.add_command(volume)
main.add_command(snapshot)
main.add_command(server)
main.add_command(stat)
main.add_command(completion)
