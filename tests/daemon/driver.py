"""Which kind of pool the tests' daemons serve: what BOCKD_TEST_DRIVER says, `local` or `rbd`.

With `rbd` each data directory has a namespace of its own in the cluster that all tests of a process
share, and keeps it for as long as the process lives. A test that not every kind of pool can pass
has the marker `needs`, which names one of `NEEDS`, and is left out where the features of the kind
of pool say so; docs/ceph.md lists them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bockd.config.rbd import RbdSettings
from bockd.drivers.local.pool import FEATURES as OF_LOCAL_POOLS
from bockd.pool.features import Features

if TYPE_CHECKING:
    from tests.drivers.rbd.cluster import Cluster

VARIABLE = "BOCKD_TEST_DRIVER"
DRIVER = os.environ.get(VARIABLE, "local")
IS_RBD = DRIVER == "rbd"

NEEDS: Mapping[str, Callable[[Features], bool]] = {
    "shares": lambda features: features.shares_blocks,
    "one daemon": lambda features: not features.several_gateways,
    "no caches": lambda features: not features.caches,
    "cluster": lambda features: not features.in_directory,
    "files": lambda features: features.in_directory,
}
"""What tests may need, as the features of a kind of pool tell it: which blocks several nodes show;
that there is no other gateway; that volumes have no caches; a pool that is in no directory, or one
that is files in the data directory."""

_clusters: list[Cluster] = []
_settings: dict[Path, RbdSettings] = {}


def features() -> Features:
    """Return those of the kind of pool that the daemons serve."""
    if not IS_RBD:
        return OF_LOCAL_POOLS
    from bockd.drivers.rbd.pool import FEATURES  # where Ceph's modules are

    return FEATURES


def use_cluster(cluster: Cluster) -> None:
    """Have namespaces made in a cluster, which runs."""
    _clusters[:] = [cluster]


def rbd_settings(data_dir: Path) -> RbdSettings:
    """Return the settings of [rbd] for a data directory."""
    if data_dir not in _settings:
        _settings[data_dir] = _clusters[0].namespace()
    return _settings[data_dir]


def configured(data_dir: Path, config: Path) -> Path:
    """Return the configuration file of a daemon: the one given, with the kind of pool in it unless
    it names one."""
    given = config.read_text() if IS_RBD and config.exists() else ""
    if not IS_RBD or "driver" in tomllib.loads(given).get("pool", {}):
        return config
    settings = rbd_settings(data_dir)
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
