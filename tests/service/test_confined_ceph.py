"""A gateway to a pool in Ceph, confined as the daemon's unit says, without systemd."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from bockd.config.rbd import RbdSettings
from tests.daemon.process import serving
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.running import configuration
from tests.service.confined import NOBODY, launcher

MIB = 1 << 20


def test_a_gateway_works_within_the_units_walls(
    unit: Path, state: Path, tmp_path: Path, ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    # What stands in /etc on a real machine; of it only the state directory is seen here.
    conf, keyring, config = (state / name for name in ("ceph.conf", "keyring", "bockd.toml"))
    assert rbd_namespace.keyring_file is not None
    shutil.copyfile(rbd_namespace.keyring_file, keyring)
    conf.write_text(re.sub(r"(?m)^(log_file|keyring) = .*\n", "", ceph.conf_file.read_text()))
    data = state / "gateway"
    settings = replace(rbd_namespace, conf_file=conf, keyring_file=keyring)
    config.write_text(configuration(settings, data))
    for path in (conf, keyring, config):
        shutil.chown(path, NOBODY, NOBODY)
    # libffi asks for it, for a callback of ctypes, and goes on with two views of a file in memory.
    walls = launcher(unit, state, asks_for_code=True)
    with serving(data, config=config, log=tmp_path / "log", launcher=walls) as confined:
        confined.bock("volume", "create", "disk1", "--size", "16M")
        with confined.connected("disk1") as client:
            client.pwrite(b"old" * 4096, 0)
            client.flush()
            confined.bock("snapshot", "create", "disk1", "frozen")
            client.pwrite(b"new" * 4096, 0)
            client.trim(MIB, MIB)
            client.block_status(MIB, 0, lambda *_: 0)
        confined.bock("volume", "create", "disk2", "--from-snapshot", "frozen")
        confined.bock("volume", "extend", "disk1", "--size", "32M")
        confined.kill()
        confined.start()
        for name, content in (("disk1", b"new"), ("disk2", b"old")):
            with confined.connected(name) as client:
                assert client.pread(3, 0) == content
        confined.check()
