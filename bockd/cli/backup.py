"""`bockd backup`: a copy of a pool, with or without a daemon that serves it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bockd.cli.client import ControlClient
from bockd.cli.convert import drawn
from bockd.cli.incluster import is_in_cluster
from bockd.cli.output import json_option, print_json, say
from bockd.cli.sizes import format_size
from bockd.control import FrozenPool
from bockd.errors import DamagedError, InUseError, PoolFormatError, UnavailableError
from bockd.model import PoolDriver
from bockd.pool.reports import BackupRecord
from bockd.pool.unsupported import no_backup

if TYPE_CHECKING:
    from bockd.drivers.local.access import StoreAccess
    from bockd.drivers.local.backup import BackupReport, Show


@click.command()
@click.argument("pool", type=click.Path(path_type=Path, file_okay=False))
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@json_option
def backup(pool: Path, target: Path, as_json: bool) -> None:
    """Copy POOL to TARGET, while it is served or not.

    Each volume is in it as at one moment after the command began, with every write answered before.
    TARGET is a new directory, or an earlier backup of the same pool: then only what changed is
    read and written. It is a pool itself: serve it, or a copy of it, to restore. Until the
    command has succeeded it is none, and after an interruption the next one goes on.

    \b
    bockd backup /var/lib/bockd /mnt/backup/bockd
    """
    with _progress(quiet=as_json) as show:
        report = back_up(pool.absolute(), target.absolute(), show)
    if as_json:
        print_json(report)
        return
    for name in report.left_out:
        say(
            f"warning: {name}, in the trash, had failed, and what it held is not in the backup: "
            "'bock trash restore' and 'bock volume reopen' make it whole for the next one"
        )
    say(
        f"{target}: complete and clean; {report.copied_files} of {report.files} layer files had "
        f"changed, {format_size(report.written_bytes)} written, {report.shared_files} files shared"
    )


def back_up(path: Path, target: Path, show: Show) -> BackupReport:
    """Make the backup and check it. Raises what Backup raises, DamagedError if it is not clean."""
    from bockd.drivers.local.coopeners import without_co_openers
    from bockd.drivers.local.format.layout import Layout
    from bockd.drivers.local.registry import Registry
    from bockd.runtime.steps import Background, run_inline

    if is_in_cluster(path):
        raise no_backup(PoolDriver.RBD)
    if not Layout(path).index_data.exists():
        raise PoolFormatError(f"there is no pool in {path}")
    try:
        pool = Registry.open(path, Background().spawn)
    except InUseError as error:
        return _online(path, target, show, error)
    try:
        with without_co_openers(pool.store, needed=True):
            run_inline(pool.recover_volumes())
            return _make(pool.store, target, None, show, lambda: None, time.time())
    finally:
        pool.release()


def _online(path: Path, target: Path, show: Show, in_use: InUseError) -> BackupReport:
    from bockd.drivers.local.format.layout import Layout
    from bockd.drivers.local.format.locks import FileLock
    from bockd.drivers.local.registry import Registry
    from bockd.runtime.steps import Background

    lock = FileLock.acquire(
        Layout(path).backup_lock, shared=False, held_message=f"{path} is being backed up"
    )
    try:
        with ControlClient(path / "api.sock") as client:
            began_at = time.time()
            frozen = client.begin_backup()
            pool = Registry.join(path, Background().spawn)
            try:
                return _make(
                    pool.store,
                    target,
                    frozen,
                    show,
                    lambda: client.end_backup(frozen.id),
                    began_at,
                )
            finally:
                pool.release()
    except UnavailableError as silence:
        raise InUseError(f"{in_use}, and it cannot be asked: {silence}") from silence
    finally:
        lock.release()


def _make(
    store: StoreAccess,
    target: Path,
    frozen: FrozenPool | None,
    show: Show,
    was_kept: Callable[[], None],
    began_at: float,
) -> BackupReport:
    from bockd.cli.checking import check_pool
    from bockd.drivers.local.backup import Backup
    from bockd.drivers.local.backuplog import note_backup

    made = Backup(store, target, show)
    # JSON is Unicode, and names of files need not be.
    record = BackupRecord(os.fsencode(target).decode(errors="backslashreplace"), began_at)
    pool = store.layout.root

    def note_unfinished() -> None:
        note_backup(pool, record)

    try:
        if frozen is None:
            made.begin(None, on_unfinished=note_unfinished)
        else:
            made.begin(frozen.snapshots, frozen.left_out, note_unfinished)
        made.copy()
        was_kept()
        report = made.complete()
    finally:
        made.end()
    checked = check_pool(target, repair=False)
    if not checked.clean:
        raise DamagedError(
            f"the backup {target} has {len(checked.problems)} problems, the first: "
            f"{checked.problems[0]}; 'bockd check' shows whether the pool has them too"
        )
    whole = replace(
        record,
        finished_at=time.time(),
        written_bytes=report.written_bytes,
        left_out=report.left_out,
    )
    note_backup(pool, whole)
    return report


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """A bar on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with drawn(Progress(*columns, console=Console(stderr=True))) as progress:
        task = progress.add_task("backup", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=max(total, 1))
