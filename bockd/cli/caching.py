"""`bock volume set-cache` and `discard-cache`: how a volume of a pool in Ceph is cached."""

from __future__ import annotations

import click

from bockd.cli.arguments import reference
from bockd.cli.asking import confirm
from bockd.cli.completion import complete_volume
from bockd.cli.output import json_option, report
from bockd.cli.storage import connect
from bockd.cli.volume import what_became
from bockd.model import CacheMode


@click.command("set-cache")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option(
    "--write-back",
    "mode",
    flag_value=CacheMode.WRITE_BACK.value,
    help="Answer writes when the gateway's local disk has them.",
)
@click.option(
    "--write-through",
    "mode",
    flag_value=CacheMode.WRITE_THROUGH.value,
    help="Answer writes when the cluster has them, and cache reads; what volumes begin with.",
)
@click.option(
    "--none",
    "mode",
    flag_value=CacheMode.NONE.value,
    help="The same, and cache nothing.",
)
@json_option
def set_cache(volume: str, mode: str | None, as_json: bool) -> None:
    """Choose how a volume of a pool in Ceph is cached where it is open.

    With --write-back its newest writes are on one machine until they are written back: no other
    gateway can open the volume before, and if that machine's disk is lost, so are they. Refused
    while a client is connected; counts from the next one on.

    \b
    bock volume set-cache scratch --write-back
    """
    if mode is None:
        raise click.UsageError("say --write-back, --write-through or --none")
    client = connect()
    found = client.find_volume(volume)
    changed = client.set_cache(found.id, CacheMode(mode))
    report(changed, f"the cache of volume {changed.id} ({changed.name}) is {mode}", as_json=as_json)


@click.command("discard-cache")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def discard_cache(volume: str, yes: bool, as_json: bool) -> None:
    """Give up writes of a volume that were answered and are not in the cluster.

    For a gateway, or a disk of one, that does not come back: until then no other one opens the
    volume. It goes back to the last flush of its client that the cluster has, and perhaps some of
    what came after, as after a power cut. Power the gateway's machine off first, if that may
    be: one that hangs and goes on may answer its clients some more, which is lost, too. The
    gateway that has those writes gives them up only if it cannot read its log of them. Of one with
    a damaged place it writes back what lies before that, up to the last flush there, gives up the
    rest, puts the log aside, and says how much of the log that was; if this was done more than
    once, what the earlier attempts had written back is not counted. Else it writes all back
    instead, or says what is in the way. Asks first when run at a terminal.
    """
    client = connect()
    found = client.find_volume(volume)
    before = None if found.cache is None else found.cache.discarded_at
    at = "" if found.cache is None or found.cache.dirty_at is None else found.cache.dirty_at
    confirm(
        f"Give up the writes of volume {found.id} ({found.name}) that only gateway {at} has? If "
        "its machine may still run, power it off first: one that hangs and goes on may answer its "
        "clients some more, which is lost, too.",
        yes=yes,
    )
    changed = client.discard_cache(found.id)
    said = "has what is in the cluster"
    if changed.cache is not None:
        if changed.cache.discarded_at == before:
            said = "was written back; nothing was given up"
        else:
            said += what_became(changed.cache)
    report(changed, f"volume {changed.id} ({changed.name}) {said}", as_json=as_json)
