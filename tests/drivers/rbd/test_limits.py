"""What has a limit ends at it, whenever an OSD hangs; limits.py plays more of it."""

from __future__ import annotations

from bockd.config.rbd import RbdSettings
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.limits import play, report

need_modules()

HANGS = 8


def test_operations_end_whenever_the_osd_hangs(ceph: Cluster, rbd_namespace: RbdSettings) -> None:
    operations = play(ceph, rbd_namespace, HANGS, seed=1)
    print(report(operations))
    assert operations.ended["given up"]
    assert operations.ended["done"]
