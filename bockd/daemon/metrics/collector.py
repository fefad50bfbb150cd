"""All metrics of the daemon (`bockd.metrics.Watched`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from bockd.daemon.backend import Backend
from bockd.daemon.metrics.exports import ExportMetrics
from bockd.daemon.metrics.health import Health
from bockd.daemon.metrics.pool import (
    build_info,
    pool_metrics,
    refused_volumes,
    room_metrics,
)
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.pace import Pace


class Metrics:
    """Collects when it is asked; nothing is done for it in between."""

    def __init__(
        self,
        server: NbdServer,
        backend: Backend,
        health: Health,
        waiting: Callable[[], tuple[str, ...]],
        max_exports: int,
        further: Callable[[], Iterable[Metric]],
    ) -> None:
        """`further` collects what others count."""
        self._backend = backend
        self._health = health
        self._waiting = waiting
        self._further = further
        self._exports = ExportMetrics(server, backend.pool, max_exports)
        self._process = ProcessCollector(registry=None)

    async def trouble(self) -> str | None:
        """See Watched."""
        return await self._health.trouble()

    async def families(self) -> list[Metric]:
        """See Watched."""
        pace = Pace()
        trouble = await self._health.trouble()
        ready = GaugeMetricFamily(
            "bockd_ready",
            "1 if clients can be served now, as /readyz says, else 0.",
            int(not trouble),
        )
        return [
            build_info(self._backend.pool.features.driver),
            ready,
            *await self._exports.families(pace),
            *room_metrics(self._health.room),
            *await pool_metrics(self._backend, self._waiting()),
            *await refused_volumes(self._backend.pool),
            *self._further(),
            *self._process.collect(),
        ]
