"""Which kind of pool the tests' daemons serve: what BOCKD_TEST_DRIVER says, `local` or `rbd`.

With `rbd` each data directory has a namespace of its own in the cluster that all tests of a process
share, and keeps it for as long as the process lives. Tests that only a local pool can pass have the
marker `local_pool`, with a reason; docs/ceph.md lists them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bockd.config.rbd import RbdSettings

if TYPE_CHECKING:
    from tests.drivers.rbd.cluster import Cluster

VARIABLE = "BOCKD_TEST_DRIVER"
DRIVER = os.environ.get(VARIABLE, "local")
IS_RBD = DRIVER == "rbd"

_clusters: list[Cluster] = []
_settings: dict[Path, RbdSettings] = {}


def use_cluster(cluster: Cluster) -> None:
    """Have namespaces made in a cluster, which runs."""
    _clusters[:] = [cluster]


def rbd_settings(data_dir: Path) -> RbdSettings:
    """Return the settings of [rbd] for a data directory."""
    if data_dir not in _settings:
        _settings[data_dir] = _clusters[0].namespace()
    return _settings[data_dir]


def configured(data_dir: Path, config: Path) -> Path:
    """Return the configuration file of a daemon: the one given, with the kind of pool in it."""
    if not IS_RBD:
        return config
    settings = rbd_settings(data_dir)
    given = config.read_text() if config.exists() else ""
    written = _clusters[0].directory / f"{settings.namespace}.toml"
    written.write_text(given + "\n" + as_toml(settings))
    return written


def as_toml(settings: RbdSettings) -> str:
    """Write the settings as a part of a configuration file."""
    return (
        f'[pool]\ndriver = "rbd"\n\n[rbd]\nconf_file = "{settings.conf_file}"\n'
        f'user = "{settings.user}"\nkeyring_file = "{settings.keyring_file}"\n'
        f'pool = "{settings.pool}"\nnamespace = "{settings.namespace}"\n'
        f'gateway = "{settings.gateway}"\n'
    )
