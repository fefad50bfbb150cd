"""Whether the pool that a command is about lies in a Ceph cluster."""

from __future__ import annotations

from pathlib import Path

from bockd.config import Settings
from bockd.daemon.datadir import is_of_gateway
from bockd.model import PoolDriver


def is_in_cluster(path: Path, settings: Settings | None = None) -> bool:
    """Return whether the pool of a data directory lies in a Ceph cluster: the configuration, if it
    is for this directory, or what a daemon has left there says so."""
    if settings is not None and path == settings.data_dir:
        return settings.pool.driver is PoolDriver.RBD
    return is_of_gateway(path)
