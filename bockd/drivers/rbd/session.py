"""This gateway's place in a pool: its connections, the shared index, the bus, and its identity."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.bus import BUS, Bus, Release
from bockd.drivers.rbd.claims import RbdClaim
from bockd.drivers.rbd.connection import CommonConnection, connect, open_pool
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.gateways import Gateways
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.radosobjects import INDEX, RadosObjects
from bockd.drivers.rbd.records import Identity, Tenures
from bockd.drivers.rbd.removals import Removals
from bockd.drivers.rbd.settings import index_options, volume_options
from bockd.drivers.rbd.taking import Taker
from bockd.errors import NotFoundError, PoolFormatError

log = logging.getLogger(__name__)

CHANGING, MEASURING = "changing volumes", "measuring images"
"""Kinds of calls (bockd.runtime.steps.blocking_apart): an operation on records and images, whose
calls may take 10 s each while the cluster does not answer, or hang where a volume is taken."""

EMPTY = frozenset({INDEX, BUS, "rbd_directory", "rbd_info", "rbd_children", "rbd_trash"})
"""Objects of a namespace in which there is nothing. The last four stay when all images are gone."""


class Session:
    """A gateway that has joined a pool. Ended by `close`."""

    def __init__(
        self, settings: RbdSettings, replica: Path, release: Release, *, make: bool = True
    ) -> None:
        """Join the pool of a namespace; with `make`, make it if the namespace is empty. `replica`
        is a directory for copies of the index; `release` is what the bus calls. Blocks.

        Raises UnavailableError, DeniedError, NotFoundError; PoolFormatError: there is something in
        the namespace, but no pool, or that of a newer bockd; DamagedError.
        """
        self.settings = settings
        self.who = Identity(settings.gateway_name, secrets.token_hex(8))
        self.clock: Callable[[], float] = time.time
        self.images = CommonConnection(settings, index_options(settings))
        """Where images are made, changed, looked at and removed."""
        self.snapshots = CommonConnection(settings, volume_options(settings))
        """Where snapshots are read: without a limit, as volumes are."""
        self.removals = Removals(settings)
        with ExitStack() as stack:
            self.cluster = connect(settings, index_options(settings))
            stack.callback(self.cluster.shutdown)
            self.ioctx = open_pool(self.cluster, settings)
            stack.callback(self.ioctx.close)
            shared = Log(RadosObjects(self.ioctx))
            if make:
                _make_if_empty(shared, self.ioctx, settings)
            self.index = SharedIndex.open(
                shared, replica, run=self.who.run, clock=lambda: self.clock()
            )
            stack.callback(self.index.close)
            stack.callback(self.images.close)
            stack.callback(self.snapshots.close)
            stack.callback(self.removals.close)
            self.bus = Bus(settings, self.ioctx, self.who, release)
            stack.callback(self.bus.close)
            self.table = Gateways(self.index, self.who, self.bus, lambda: self.clock())
            self._open = stack.pop_all()
        self.tenures = Tenures(self.index)
        self.taker = Taker(
            self.who,
            partial(RbdClaim, settings, self.cluster, keep_off=self.removals.kept_off),
            self.bus,
            self.tenures,
        )

    def close(self) -> None:
        """Leave the pool. Blocks. Nothing may be open or under way."""
        self._open.close()


def _make_if_empty(shared: Log, ioctx: rados.Ioctx, settings: RbdSettings) -> None:
    """Make the index, unless it is there. A namespace that holds something else is refused: its
    index may be lost, and who made a new one would take everything in it for left over."""
    try:
        shared.read(0)
    except NotFoundError:
        where = f"namespace {settings.namespace!r} of the Ceph pool {settings.pool!r}"
        with named(f"looking what is in {where}"):
            found = next((one.key for one in ioctx.list_objects() if one.key not in EMPTY), None)
        if found is not None:
            raise PoolFormatError(
                f"{where} has no index of bockd's, but objects like {found!a}: give bockd a "
                "namespace of its own (rbd.namespace)"
            ) from None
        if shared.create(secrets.token_hex(16)):
            log.info("a new pool was made in %s", where)
