"""`bockd check` of a pool in a Ceph cluster: here, or by the daemon that is this gateway."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bockd.cli.client import ControlClient
from bockd.config import Settings
from bockd.daemon.datadir import REPLICA, DataDirectory
from bockd.errors import InUseError, InvalidRequestError, UnavailableError
from bockd.model import PoolDriver
from bockd.pool.reports import CheckReport
from bockd.pool.unsupported import no_repair
from bockd.runtime.steps import Background, run_inline


def check_in_cluster(path: Path, settings: Settings, *, repair: bool) -> CheckReport:
    """Check the pool here, as the gateway of this data directory, or let the daemon do it that is
    this gateway now. Raises NotSupportedError: it is to be repaired; BockdError."""
    if repair:
        raise no_repair(PoolDriver.RBD)
    try:
        directory = DataDirectory(path)
    except InUseError as error:
        return _ask(path, error)
    try:
        return _check(path, settings)
    finally:
        directory.release()


def _ask(path: Path, in_use: InUseError) -> CheckReport:
    try:
        with ControlClient(path / "api.sock") as client:
            return client.check()
    except UnavailableError as silence:
        raise InUseError(f"{in_use}, and it cannot be asked: {silence}") from silence


def _check(path: Path, settings: Settings) -> CheckReport:
    if path != settings.data_dir or settings.pool.driver is not PoolDriver.RBD:
        raise InvalidRequestError(
            f"{path} is the data directory of a gateway whose pool is in a Ceph cluster: give its "
            "configuration (--config), or start it"
        )
    from bockd.blockstorage.check import with_records
    from bockd.drivers.rbd.pool import RbdPool
    from bockd.drivers.writeback.directory import has_log

    # Nothing is opened, so other gateways get their answers at once, in Ceph's thread.
    pool = RbdPool.open(settings.rbd, path / REPLICA, Background().spawn, _call, make=False)
    if (logs := settings.write_back.directory) is not None:
        pool.has_log = partial(has_log, logs)
    try:
        return with_records(run_inline(pool.check()), pool.index)
    finally:
        pool.release()


def _call(function: Callable[[], object]) -> None:
    function()
