"""`bock connect`, `disconnect`, `connections`: volumes as block devices of this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import asdict

import click

from bockd.cli.arguments import reference, server_name
from bockd.cli.completion import complete_volume
from bockd.cli.connecting import Connector, Wanted
from bockd.cli.failure import tell
from bockd.cli.output import format_time, json_option, print_json, print_table, report, say
from bockd.cli.storage import connect as connect_to_storage
from bockd.cli.unit import render_unit
from bockd.errors import BockdError, UnavailableError
from bockd.host.devices import find_device, is_dead
from bockd.host.devices import sector_bytes as sector_bytes_of
from bockd.host.partitions import scan
from bockd.host.records import Connection, Records
from bockd.tls.trust import Trust

UNIT = "bock-connect@.service"


@click.command()
@click.argument("volume", type=reference, required=False, shell_complete=complete_volume)
@click.option("--device", help="Like /dev/nbd0; by default the first free one.")
@click.option("--loop", is_flag=True, help="A loop device on the daemon's file view, without NBD.")
@click.option(
    "--sector-size",
    type=click.Choice(["512", "4096"]),
    help="Logical sectors of the device. 4096 is for a partition table that was made on such a "
    "device; everything else uses 512.",
)
@click.option(
    "--server",
    type=server_name,
    metavar="NAME",
    help="What the API calls this machine; by default its host name.",
)
@click.option(
    "--restore", is_flag=True, help="Bring back what a reboot, or the daemon's restart, has ended."
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Let the devices that are connected, or VOLUME's, have the size of their volumes.",
)
@click.option("--print-unit", is_flag=True, help=f"Print the systemd unit {UNIT}, which does that.")
@json_option
def connect(
    volume: str | None,
    device: str | None,
    loop: bool,
    sector_size: str | None,
    server: str | None,
    restore: bool,
    refresh: bool,
    print_unit: bool,
    as_json: bool,
) -> None:
    """Attach VOLUME to this machine and make it a block device; prints the device.

    Needs root, and nbd-client with the kernel's module nbd. Without the module, --loop gives a loop
    device, if the daemon runs on this machine with --mount. Undo it with bock disconnect.

    \b
    DEVICE=$(bock connect web)
    mount $DEVICE /mnt
    """
    if device is not None and loop:
        raise click.UsageError("--device names an NBD device; leave it out with --loop")
    if (volume is not None and not refresh) + restore + refresh + print_unit != 1:
        raise click.UsageError("give one of VOLUME, --restore, --refresh and --print-unit")
    if print_unit:
        click.echo(render_unit("bockd.host", UNIT, "bock"), nl=False)
        return
    connector = Connector(
        connect_to_storage(), Records.of_environment(os.environ), Trust.of_environment(os.environ)
    )
    if restore:
        done, failed = each(connector.restore(), as_json)
        for one in done:
            find_partitions(one)
        told = [f"volume {one.volume} ({one.name}) is {one.device}" for one in done]
        report([record(one, find_device(one)) for one in done], *told, as_json=as_json)
        if failed:
            raise UnavailableError(f"{failed} of {failed + len(done)} volumes are not connected")
        return
    if refresh:
        done, failed = each(connector.refresh(volume), as_json)
        told = [f"{one.device} has the size of volume {one.volume} ({one.name})" for one in done]
        report([record(one, find_device(one)) for one in done], *told, as_json=as_json)
        if failed:
            raise UnavailableError(f"{failed} devices do not have the size of their volumes")
        return
    assert volume is not None
    sector_bytes = None if sector_size is None else int(sector_size)
    wanted = Wanted(server or socket.gethostname(), device, loop, sector_bytes)
    made = connector.connect(volume, wanted)
    find_partitions(made)
    report(record(made, find_device(made)), made.device, as_json=as_json)


def each(
    outcomes: Iterable[Connection | BockdError], as_json: bool
) -> tuple[list[Connection], int]:
    """Report each failure at once. Return what succeeded, and how many failed."""
    done: list[Connection] = []
    failed = 0
    for outcome in outcomes:
        if isinstance(outcome, BockdError):
            failed += 1
            tell("bock", outcome.code, str(outcome), as_json=as_json)
        else:
            done.append(outcome)
    return done, failed


def find_partitions(made: Connection) -> None:
    """Make the partitions of a new device known, and say it if they are hidden by its sectors."""
    table = scan(made.device)
    if table not in (None, sector_bytes_of(made)):
        say(
            f"bock: the partition table of {made.device} was made for sectors of {table} bytes, "
            f"so the kernel does not see it: 'bock disconnect {made.volume}', then "
            f"'bock connect --sector-size {table} {made.volume}'",
            err=True,
        )


@click.command()
@click.argument("ref", metavar="VOLUME|DEVICE", type=reference, shell_complete=complete_volume)
@click.option(
    "--force", is_flag=True, help="Take it down as it is: what is not written yet is lost."
)
@json_option
def disconnect(ref: str, force: bool, as_json: bool) -> None:
    """Take a volume's block device away from this machine and detach the volume.

    Refused while the device is in use, which names what uses it.

    \b
    bock disconnect web
    bock disconnect /dev/nbd0
    """
    connector = Connector(connect_to_storage(), Records.of_environment(os.environ))
    ended = connector.disconnect(ref, force=force)
    report(
        {"disconnected": record(ended, find_device(ended))},
        f"disconnected volume {ended.volume} ({ended.name})"
        + (f", which was {ended.device}" if ended.device else ""),
        as_json=as_json,
    )


@click.command()
@json_option
def connections(as_json: bool) -> None:
    """List the volumes that bock connect has made devices of this machine.

    STATE is "connected"; "dead" for a loop device whose daemon was restarted; or "gone". What is
    dead or gone comes back with bock connect --restore.
    """
    found = Records.of_environment(os.environ).list()
    shown = [(one, find_device(one)) for one in found]
    if as_json:
        print_json([record(one, device) for one, device in shown])
        return
    print_table(
        ("VOLUME>", "NAME", "DEVICE=", "SERVER", "STATE=", "SINCE=", "DAEMON"),
        [
            (
                str(one.volume),
                one.name,
                device or one.device,
                one.server,
                state(one, device),
                format_time(one.connected_at),
                one.daemon,
            )
            for one, device in shown
        ],
    )


def record(one: Connection, device: str | None) -> dict[str, object]:
    """Convert a connection to what JSON output has everywhere. `device` is the device that it has
    now."""
    return {**asdict(one), "state": state(one, device)}


def state(one: Connection, device: str | None) -> str:
    """Return the state of a connection whose device is `device` now: connected, dead or gone. Only
    the daemon knows whether an NBD device is dead, and no daemon is asked here."""
    if device is None:
        return "gone"
    return "dead" if is_dead(one, device) else "connected"
