"""Connections to a cluster that many share."""

from __future__ import annotations

import pytest

from bockd.config.rbd import RbdSettings
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd.connection import CommonConnection  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.settings import index_options  # noqa: E402


def test_a_connection_that_is_used_is_not_ended(rbd_namespace: RbdSettings) -> None:
    """What librbd has under way on a connection that ends waits for ever."""
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    with common.use() as (cluster, _):
        with common.use(), pytest.raises(AssertionError):
            common.close()
        with pytest.raises(AssertionError):
            common.close()
        assert cluster.get_fsid()
    with pytest.raises(ZeroDivisionError), common.use():
        raise ZeroDivisionError
    common.close()
    assert cluster.state == "shutdown"
