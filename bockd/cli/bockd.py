"""`bockd`: the daemon itself, and work on a pool that needs no daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import bockd
from bockd import failpoints
from bockd.cli.backup import backup
from bockd.cli.client import ControlClient
from bockd.cli.clustercheck import check_in_cluster
from bockd.cli.config import config, config_option, load_all
from bockd.cli.failure import Program
from bockd.cli.incluster import is_in_cluster
from bockd.cli.output import json_option, print_json, report, say
from bockd.cli.scrub import scrub
from bockd.cli.unit import render_unit
from bockd.config.load import DEFAULT, load
from bockd.errors import CoOpenersError, InUseError, InvalidRequestError, UnavailableError
from bockd.model import PoolDriver
from bockd.pool.reports import CheckReport

UNIT = "bockd.service"


@click.group("bockd", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bockd.__version__, prog_name="bockd")
def main() -> None:
    """Serve copy-on-write volumes over NBD.

    \b
    BOCKD_CONFIG          the configuration file (see `bockd config --help`)
    BOCKD_DATA            where the pool and the sockets are
    BOCKD_NBD_LISTEN      HOST:PORT for NBD over TCP, or none (127.0.0.1:10809)
    BOCKD_API_LISTEN      HOST:PORT for the API over TCP, or none (127.0.0.1:8776)
    BOCKD_METRICS_LISTEN  HOST:PORT for Prometheus, or none (none)
    BOCKD_POOL_DRIVER     local, or rbd for a pool in a Ceph cluster (docs/ceph.md)
    BOCKD_RBD_GATEWAY     the name of this daemon among those of that pool
    """


@main.command()
@config_option
@click.option(
    "--mount",
    type=click.Path(path_type=Path),
    help="Show volumes and snapshots as files in this directory (FUSE).",
)
@click.option(
    "--print-unit", is_flag=True, help=f"Only print the systemd unit {UNIT}, which does that."
)
def serve(config_file: Path | None, mount: Path | None, print_unit: bool) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    if print_unit:
        if config_file is not None or mount is not None:
            raise click.UsageError("--print-unit goes without --config and --mount")
        click.echo(render_unit("bockd.cli", UNIT, "bockd"), nl=False)
        return
    loaded = load_all(config_file)
    failpoints.arm(os.environ)
    from bockd.daemon.kinds import backend_kind
    from bockd.daemon.lifecycle import run

    is_default = loaded.source("data_dir") == DEFAULT
    run(backend_kind(loaded.settings), loaded.settings, mount, is_default=is_default)


@main.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@config_option
@json_option
def init(directory: Path | None, config_file: Path | None, as_json: bool) -> None:
    """Make a new, empty pool in DIRECTORY, which must be empty or not exist.

    Without it, in the directory that the daemon would use. `bockd serve` makes a pool by itself
    where there is no directory yet. It does not in an empty one that was named, because that may be
    where a file system has not been mounted.

    \b
    bockd init /srv/bockd
    BOCKD_DATA=/srv/bockd bockd serve
    """
    from bockd.drivers.local.newpool import make_pool

    loaded = load(config_file)
    if directory is None and loaded.settings.pool.driver is PoolDriver.RBD:
        raise InvalidRequestError(
            "the pool is to be in a Ceph cluster (pool.driver): 'bockd serve' makes it there, in a "
            "namespace that is empty; 'rbd namespace create' makes that"
        )
    path = (directory or loaded.settings.data_dir).absolute()
    make_pool(path)
    served = path == loaded.settings.data_dir
    report(
        {"data_dir": str(path)},
        f"made a pool in {path}",
        f"Next: {'' if served else f'BOCKD_DATA={path} '}bockd serve",
        as_json=as_json,
    )


@main.command()
@click.argument("pool", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--repair", is_flag=True, help="Mend what can be mended; the daemon must be stopped.")
@config_option
@json_option
def check(pool: Path | None, repair: bool, config_file: Path | None, as_json: bool) -> None:
    """Walk everything in POOL and prove that it fits together.

    POOL is a data directory; without it, the one that the daemon would use. While a daemon serves
    the pool, it does the walk. What nbdkit has open is walked as far as it can be. Exit status 0:
    clean, 1: problems.

    \b
    bockd check
    bockd check /var/lib/bockd --json
    """
    settings = load(config_file).settings
    path = (pool or settings.data_dir).absolute()
    if is_in_cluster(path, settings):
        report = check_in_cluster(path, settings, repair=repair)
    else:
        report = check_anywhere(path, repair=repair)
    if as_json:
        print_json(report)
    else:
        print_report(path, report)
    sys.exit(0 if report.clean else 1)


@main.command("nbdkit-plugin")
def nbdkit_plugin() -> None:
    """Print where the nbdkit plugin is.

    \b
    nbdkit -U - python "$(bockd nbdkit-plugin)" pool=/var/lib/bockd volume=disk1 \\
        --run 'nbdinfo "$uri"'
    """
    import nbd_plugin

    say(str(Path(nbd_plugin.__path__[0]) / "bock.py"))


def check_anywhere(path: Path, *, repair: bool) -> CheckReport:
    """Check the pool here, or let the daemon that has it check it. Raises InUseError, which says
    which process has the pool: a daemon, or another check."""
    from bockd.cli.checking import check_pool

    try:
        return check_pool(path, repair=repair)
    except CoOpenersError:
        raise
    except InUseError as error:
        if repair:
            raise InUseError(f"{error}: stop it before --repair, or check without it") from error
        try:
            with ControlClient(path / "api.sock") as client:
                return client.check()
        except UnavailableError as silence:
            raise InUseError(f"{error}, and it cannot be asked: {silence}") from silence


def print_report(path: Path, report: CheckReport) -> None:
    """Print the report for people: problems first."""
    for problem in report.problems:
        say(f"problem: {problem}")
    for repaired in report.repaired:
        say(f"repaired: {repaired}")
    say(
        f"{path}: {'clean' if report.clean else f'{len(report.problems)} problems'}; "
        f"{report.volumes} volumes, {report.snapshots} snapshots, {report.layers} layers, "
        f"{report.leaves} leaves, {report.checksums} checksums, "
        f"{report.stray_blocks} stray blocks, {report.pending_reclaim} waiting for reclaim"
    )


main.add_command(backup)
main.add_command(config)
main.add_command(scrub)
