"""A daemon on a throw-away Ceph cluster: `make run-ceph`, to try how that is.

The cluster (a monitor and an OSD) and all that is in it are in a temporary directory, and gone at
the end: Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from bockd.config.load import API_LISTEN_VARIABLE, CONFIG_VARIABLE, DATA_VARIABLE
from bockd.config.load import NBD_LISTEN_VARIABLE as NBD_VARIABLE
from bockd.config.rbd import RbdSettings

from .cluster import Cluster, bound, missing

END_SECONDS = 20.0
"""For the daemon: twice what it takes if the cluster hangs."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run a cluster, and `bockd serve` with the arguments on it, until a signal comes. Return the
    daemon's exit status."""
    if lacking := missing():
        print(f"run-ceph: {lacking}", file=sys.stderr)
        return 1
    for number in ENDING:
        signal.signal(number, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="bockd-ceph-"))
    cluster = Cluster(directory / "cluster")
    try:
        print(f"Ceph begins, in {directory}", flush=True)
        cluster.start()
        config = directory / "bockd.toml"
        settings = replace(cluster.namespace("bockd"), gateway="gw1")
        config.write_text(configuration(settings, directory / "data"))
        print(f"In another terminal: export {CONFIG_VARIABLE}={config}", flush=True)
        print(f"and for Ceph's commands: export CEPH_CONF={cluster.conf_file}", flush=True)
        return _serve(config, arguments)
    except KeyboardInterrupt:
        return 130
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def configuration(settings: RbdSettings, data_dir: Path) -> str:
    """Write the configuration of a gateway."""
    named = {
        "conf_file": settings.conf_file,
        "user": settings.user,
        "keyring_file": settings.keyring_file,
        "pool": settings.pool,
        "namespace": settings.namespace,
        "gateway": settings.gateway,
    }
    lines = [f"{name} = {json.dumps(str(value))}" for name, value in named.items()]
    return "\n".join(
        [f"data_dir = {json.dumps(str(data_dir))}", "[pool]", 'driver = "rbd"', "[rbd]", *lines, ""]
    )


def _serve(config: Path, arguments: Sequence[str]) -> int:
    """Run the daemon; pass the first signal on, and kill it at the second."""
    environ = {name: value for name, value in os.environ.items() if name != DATA_VARIABLE}
    environ.setdefault(NBD_VARIABLE, "127.0.0.1:0")
    environ.setdefault(API_LISTEN_VARIABLE, "127.0.0.1:0")
    program = Path(sys.executable).with_name("bockd")
    daemon = subprocess.Popen(
        bound([program, "serve", *arguments]),
        env={**environ, CONFIG_VARIABLE: str(config)},
        # A terminal's Ctrl-C is for all of its session: the daemon gets its own from here.
        start_new_session=True,
    )
    try:
        return daemon.wait()
    except KeyboardInterrupt:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            return daemon.wait(END_SECONDS)
        return 1
    finally:
        daemon.kill()
        daemon.wait()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
