"""`bockd scrub`: done here, or by the daemon that has the pool."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bockd.cli.client import ControlClient
from bockd.cli.config import config_option
from bockd.cli.convert import drawn
from bockd.cli.incluster import is_in_cluster
from bockd.cli.output import json_option, print_json, say
from bockd.cli.sizes import format_size
from bockd.config.load import load
from bockd.errors import InUseError, UnavailableError
from bockd.model import MIB, PoolDriver
from bockd.pool.reports import DamagedBlock, ScrubStatus
from bockd.pool.unsupported import no_scrub

POLL_SECONDS = 0.3
"""Between two looks at a daemon's progress."""

Show = Callable[[ScrubStatus], None]


@click.command()
@click.argument("pool", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--rate",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Read so many MiB a second at most. Default: checksums.rate_mib of the configuration.",
)
@click.option("--restart", is_flag=True, help="Do not go on with a pass that was interrupted.")
@click.option("--status", is_flag=True, help="Only say what is known.")
@config_option
@json_option
def scrub(
    pool: Path | None,
    rate: int | None,
    restart: bool,
    status: bool,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Verify the checksums of what snapshots hold in POOL.

    What has no checksums yet is read and gets them. POOL is a data directory; without it, the one
    that the daemon would use. While a daemon serves the pool, it does the work, and goes on with it
    when this command is interrupted; otherwise the next one goes on there. Exit status 0: no block
    is damaged, 1: some are.

    \b
    bockd scrub
    bockd scrub /var/lib/bockd --rate 100
    bockd scrub --status --json
    """
    settings = load(config_file).settings
    path = (pool or settings.data_dir).absolute()
    if is_in_cluster(path, settings):
        raise no_scrub(PoolDriver.RBD)
    rate = rate or settings.checksums.rate_mib
    with _progress(quiet=as_json or status) as show:
        found = scrub_anywhere(path, rate, restart=restart, only_look=status, show=show)
    if as_json:
        print_json(found)
    else:
        print_status(path, found)
    sys.exit(1 if found.damaged else 0)


def scrub_anywhere(
    path: Path, rate_mib: int, *, restart: bool, only_look: bool, show: Show
) -> ScrubStatus:
    """Scrub the pool here, or let the daemon that has it do so. Return how that ended."""
    from bockd.drivers.local.integrity.scrubbing import scrub_pool

    try:
        return scrub_pool(path, rate_mib * MIB, restart=restart, only_look=only_look, show=show)
    except InUseError as error:
        try:
            with ControlClient(path / "api.sock") as client:
                return _by_daemon(client, rate_mib, restart, only_look, show)
        except UnavailableError as silence:
            raise InUseError(f"{error}, and it cannot be asked: {silence}") from silence


def _by_daemon(
    client: ControlClient, rate_mib: int, restart: bool, only_look: bool, show: Show
) -> ScrubStatus:
    if only_look:
        return client.scrub_status()
    status = client.scrub(rate_mib, restart)
    while status.running:
        show(status)
        time.sleep(POLL_SECONDS)
        status = client.scrub_status()
    return status


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """A bar on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Remaining())
    with drawn(Progress(*columns, console=Console(stderr=True))) as progress:
        task = progress.add_task("scrub", total=None)

        def show(status: ScrubStatus) -> None:
            if status.under_way:
                total = max(status.leaves_total, status.leaves_done, 1)
                progress.update(
                    task, description="verifying", completed=status.leaves_done, total=total
                )
            else:
                text = f"reading for the first time, layers left: {status.unread_layers}"
                progress.update(task, description=text, total=None)

        yield show


def print_status(path: Path, status: ScrubStatus) -> None:
    """Print the result for people: damage first."""
    for block in status.damaged:
        say(describe(block))
    verified = format_size(status.verified_bytes)
    state = "under way" if status.under_way else "done" if status.finished_at else "not begun"
    damaged = len(status.damaged)
    say(
        f"{path}: {f'{damaged} damaged blocks' if damaged else 'no damage'}; {verified} verified "
        f"({state}), {status.unread_layers} layers without checksums"
    )


def describe(block: DamagedBlock) -> str:
    """Describe a damaged block in one line."""
    shown = [f"volume {name}" for name in block.volumes]
    shown += [f"snapshot {name}" for name in block.snapshots]
    return (
        f"damaged: byte {block.offset_bytes} of {', '.join(shown) or 'nothing that is left'} "
        f"(layer {block.layer}{'' if block.readable else ', the disk does not give it'})"
    )
