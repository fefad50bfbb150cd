"""Who watches which volume: heat maps are kept as long as somebody asks for them.

Implements bockd.dashboardcontrol.HeatControl.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from bockd.dashboardcontrol import HeatMap
from bockd.model import NodeKind, VolumeId
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.heat import Heat
from bockd.nbd.server.nbd_server import NbdServer
from bockd.pool.pool import Pool

WATCH_SECONDS = 15.0
"""From the last question to the end: pages ask once a second, and a machine may be busy."""

MAX_WATCHED = 16
"""Volumes. One more replaces the one that was asked for longest ago; each has 48 KiB of figures."""


@dataclass(slots=True)
class _Watched:
    heat: Heat
    until: float


class HeatWatch:
    """The volumes that are watched."""

    def __init__(
        self, pool: Pool, server: NbdServer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._server = server
        self._clock = clock
        self._watched: dict[VolumeId, _Watched] = {}
        """The one that was asked for longest ago first."""
        self._begun = trio.Event()

    async def heat(self, volume: VolumeId) -> HeatMap:
        with self._pool.nodes() as nodes:
            size = nodes.volume(volume).size_bytes
        watched = self._watched.pop(volume, None)
        if watched is None or watched.heat.size_bytes != size:
            watched = _Watched(Heat(size), 0.0)
        watched.until = self._clock() + WATCH_SECONDS
        self._watched[volume] = watched
        while len(self._watched) > MAX_WATCHED:
            self._end(next(iter(self._watched)))
        # Again each time: it may have been opened since.
        self._server.watch(ExportKey(NodeKind.VOLUME, volume), watched.heat)
        self._begun.set()
        return watched.heat.report()

    async def run(self) -> None:
        """End what nobody asks for any more, until cancelled."""
        while True:
            await self._begun.wait()
            self._begun = trio.Event()
            while self._watched:
                await trio.sleep(WATCH_SECONDS)
                now = self._clock()
                for volume in [one for one, kept in self._watched.items() if kept.until <= now]:
                    self._end(volume)

    def _end(self, volume: VolumeId) -> None:
        del self._watched[volume]
        self._server.watch(ExportKey(NodeKind.VOLUME, volume), None)
