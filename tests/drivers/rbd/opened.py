"""The objects of a namespace of a real cluster, for tests that skip where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.objects import Objects


@contextmanager
def opened(settings: RbdSettings, **options: str) -> Iterator[Objects]:
    """Open them over a connection of their own; `options` are Ceph's, beside those of the
    driver."""
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.radosobjects import RadosObjects
    from bockd.drivers.rbd.settings import index_options

    cluster = connect(settings, {**index_options(settings), **options})
    try:
        with open_pool(cluster, settings) as ioctx:
            yield RadosObjects(ioctx)
    finally:
        cluster.shutdown()
