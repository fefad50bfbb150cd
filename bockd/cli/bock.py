"""`bock`: the client of a running daemon."""

from __future__ import annotations

from dataclasses import asdict

import click

import bockd
from bockd.cli.client import ControlClient
from bockd.cli.failure import Program
from bockd.cli.output import json_option, print_json, print_record
from bockd.config import load_settings
from bockd.control import DaemonInfo


@click.group("bock", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bockd.__version__, prog_name="bock")
def main() -> None:
    """Manage a tenant's volumes and snapshots on a running bockd.

    The daemon on this machine, and credentials for it, are found in its data directory:
    $BOCKD_DATA, or data_dir in the configuration file ($BOCKD_CONFIG or the usual one), or
    /var/lib/bockd for root, or ~/.local/share/bockd. For a daemon elsewhere set OS_AUTH_URL,
    OS_USERNAME, OS_PASSWORD and OS_TENANT_NAME.

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
    """Show which daemon runs on this machine, where it listens, and what belongs to no tenant."""
    with ControlClient(load_settings().api_socket) as control:
        found, unowned = control.info(), control.unowned()
    if as_json:
        print_json(
            {
                **asdict(found),
                "unowned_volumes": unowned.volumes,
                "unowned_snapshots": unowned.snapshots,
            }
        )
        return
    orphans = [
        (f"{kind}s of no tenant", ", ".join(names) + " (see bock adopt --help)")
        for kind, names in (("volume", unowned.volumes), ("snapshot", unowned.snapshots))
        if names
    ]
    print_record(
        [
            ("version", found.version),
            ("data directory", found.data_dir),
            ("NBD socket", found.nbd_socket),
            ("NBD over TCP", found.nbd_listen or "none"),
            ("API over TCP", found.api_listen or "none"),
            ("files", found.mount or "none"),
            ("fast lane", found.fast_lane),
            ("new data", found.new_data),
            ("pool", pool_of(found)),
            ("volumes", str(found.volumes)),
            ("snapshots", str(found.snapshots)),
            *(("waiting", waiting) for waiting in found.waiting),
            *orphans,
        ]
    )


def pool_of(found: DaemonInfo) -> str:
    """Say what kind of pool a daemon serves, and where that is."""
    if found.cluster is None:
        return found.driver
    where = found.cluster
    return (
        f"{found.driver}: {where.pool}/{where.namespace} in the Ceph cluster {where.id}, "
        f"as gateway {where.gateway}"
    )


COMMANDS = {
    "volume": "bockd.cli.volume:volume",
    "snapshot": "bockd.cli.snapshot:snapshot",
    "attachment": "bockd.cli.attachment:attachment",
    "server": "bockd.cli.server:server",
    "connect": "bockd.cli.connect:connect",
    "disconnect": "bockd.cli.connect:disconnect",
    "connections": "bockd.cli.connect:connections",
    "tenant": "bockd.cli.accounts:tenant",
    "user": "bockd.cli.accounts:user",
    "limits": "bockd.cli.tenant:limits",
    "credentials": "bockd.cli.tenant:credentials",
    "image": "bockd.cli.images:image",
    "trash": "bockd.cli.trash:trash",
    "profile": "bockd.cli.profiling:profile",
    "pool": "bockd.cli.pool:pool",
    "du": "bockd.cli.usage:du",
    "gateway": "bockd.cli.gateway:gateway",
    "stat": "bockd.cli.stat:stat",
    "trace": "bockd.cli.trace:trace",
    "watch": "bockd.cli.stat:stat",
    "dashboard": "bockd.cli.dashboard:dashboard",
    "adopt": "bockd.cli.tenant:adopt",
    "completion": "bockd.cli.completion:completion",
}

for _name, _place in COMMANDS.items():
    main.add_lazily(_name, _place)
