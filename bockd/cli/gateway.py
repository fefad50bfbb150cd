"""`bock gateway`: the daemons that serve one pool together."""

from __future__ import annotations

import click

from bockd.cli.client import connect
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import format_time, json_option, print_json, print_table


@click.group(cls=LazyGroup)
def gateway() -> None:
    """Show the daemons that serve a pool in a Ceph cluster together."""


@gateway.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the gateways of the pool. A pool in a directory has none: one daemon serves it.

    One that has died is listed until another one has noticed.
    """
    found = connect().list_gateways()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "NBD=", "API=", "SINCE="),
        [
            (
                one.name,
                one.addresses.nbd or "none",
                one.addresses.api or "none",
                format_time(one.since),
            )
            for one in found
        ],
    )
