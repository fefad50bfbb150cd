"""Metrics of what clients do: of all exports together, and of some of them one by one.

A series for each export that was ever used would be a burden for Prometheus with thousands of
volumes. So at most `limit` exports have series of their own: those with clients first, and then
those that had them at the last scrape. The counters of all others go on, and are in the sums. The
sums never fall: they have what was counted of exports that are closed or deleted, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from bockd.blockstorage.records import Ledger
from bockd.daemon.metrics.histograms import COARSE, FINE, cumulative
from bockd.daemon.metrics.limits import GateCounts, Gated, each_gate, gate_sums
from bockd.errors import BockdError
from bockd.model import NodeKind, SnapshotId, VolumeId, export_name
from bockd.nbd.server.durations import Operation
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.nbd.server.registry import ExportState
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.pool import Pool
from bockd.runtime.pace import Pace
from bockd.throttle.gates import Gate

NAMES = {one: one.name.lower() for one in Operation}
"""Of operations, as the label `operation` has them."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """An export that has series of its own."""

    name: str
    kind: NodeKind
    id: int
    tenant: str
    clients: int
    failed: bool
    state: ExportState


class ExportMetrics:
    """For the owner thread."""

    def __init__(self, server: NbdServer, pool: Pool, limit: int) -> None:
        self._server = server
        self._pool = pool
        self._limit = limit
        self._chosen: dict[ExportKey, ExportState] = {}

    async def families(self, pace: Pace) -> list[Metric]:
        """Collect what was counted until now."""
        exports = self._server.exports()
        total, in_flight, counts = ExportStatistics(), 0, GateCounts()
        total.merge(self._server.forgotten)
        for key, state in exports:
            total.merge(state.statistics)
            in_flight += requests_in_flight(state)
            counts.add(self._gate(key))
            await pace.step()
        self._choose(exports)
        shown = []
        for key, state in self._chosen.items():
            found = self._look(key, state)
            if found is not None:
                shown.append(found)
            await pace.step()
        return [
            *sums(total),
            *server_metrics(self._server, in_flight),
            GaugeMetricFamily(
                "bockd_exports_used",
                "Volumes and snapshots that are open and were used by clients or through files.",
                len(exports),
            ),
            GaugeMetricFamily(
                "bockd_exports_shown",
                "Of them, those that have series of their own (metrics.exports limits them).",
                len(shown),
            ),
            *await each(shown, pace),
            *await self._gated(shown, counts, pace),
        ]

    def _gate(self, key: ExportKey) -> Gate | None:
        """None: a snapshot, or nobody has asked for its limits yet."""
        is_volume = key.kind is NodeKind.VOLUME
        return self._server.gates.find(VolumeId(key.id)) if is_volume else None

    async def _gated(self, shown: list[_Shown], counts: GateCounts, pace: Pace) -> list[Metric]:
        found = [
            Gated(one.name, one.tenant, gate)
            for one in shown
            if (gate := self._gate(ExportKey(one.kind, one.id))) is not None
        ]
        return [*gate_sums(self._server.gates, counts), *await each_gate(found, pace)]

    def _choose(self, exports: list[tuple[ExportKey, ExportState]]) -> None:
        states = dict(exports)
        kept = [key for key in self._chosen if key in states]
        others = [key for key in states if key not in self._chosen]
        ranked = sorted([*kept, *others], key=lambda key: not states[key].members)
        self._chosen = {key: states[key] for key in ranked[: self._limit]}

    def _look(self, key: ExportKey, state: ExportState) -> _Shown | None:
        """None: it was deleted, or its record cannot be read."""
        failed = False
        try:
            with self._pool.nodes() as nodes:
                ledger = Ledger(nodes.txn)
                if key.kind is NodeKind.VOLUME:
                    volume = nodes.volume(VolumeId(key.id))
                    name, owned = volume.name, ledger.owned_volume(volume.id)
                    failed = self._pool.failure(volume) is not None
                    tenant = "" if owned is None else owned.tenant
                else:
                    snapshot = nodes.snapshot(SnapshotId(key.id))
                    name, its = snapshot.name, ledger.owned_snapshot(snapshot.id)
                    tenant = "" if its is None else its.tenant
        except BockdError:
            return None
        clients = self._pool.users(key.kind, key.id)
        return _Shown(export_name(key.kind, name), key.kind, key.id, tenant, clients, failed, state)


def requests_in_flight(state: ExportState) -> int:
    """Count the requests of an export that wait in the background."""
    return sum(member.in_flight() for member in state.members)


def sums(total: ExportStatistics) -> list[Metric]:
    """Return what all exports have counted together."""
    operations = CounterMetricFamily(
        "bockd_operations", "Requests for volumes and snapshots.", labels=["operation"]
    )
    seconds = HistogramMetricFamily(
        "bockd_operation_seconds",
        "How long they took, from the moment a request was parsed until its reply was made.",
        labels=["operation"],
    )
    for operation, count in zip(Operation, total.by_operation(), strict=True):
        name = NAMES[operation]
        operations.add_metric([name], count)
        seconds.add_metric(
            [name],
            cumulative(total.durations, operation, FINE),
            total.durations.seconds(operation),
        )
    moved = CounterMetricFamily(
        "bockd_operation_bytes", "Bytes that were read and written.", labels=["operation"]
    )
    moved.add_metric(["read"], total.read_bytes)
    moved.add_metric(["write"], total.written_bytes)
    errors = CounterMetricFamily(
        "bockd_operation_errors", "Requests that were refused or have failed.", total.errors
    )
    return [operations, moved, errors, seconds]


def server_metrics(server: NbdServer, in_flight: int) -> list[Metric]:
    """Return what the clients of the NBD server take."""
    load = server.load()
    return [
        GaugeMetricFamily("bockd_nbd_clients", "NBD clients that are connected.", load.clients),
        GaugeMetricFamily(
            "bockd_nbd_clients_max", "The most that may be connected.", load.max_clients
        ),
        GaugeMetricFamily(
            "bockd_nbd_clients_negotiating",
            "Of the clients, those that have not chosen an export yet.",
            load.negotiating,
        ),
        CounterMetricFamily(
            "bockd_nbd_clients_refused",
            "Clients that were refused because there were too many.",
            load.refused,
        ),
        GaugeMetricFamily(
            "bockd_requests_in_flight",
            "Requests that wait for a disk, a thread or a cluster now: the depth of the queue.",
            in_flight,
        ),
        GaugeMetricFamily(
            "bockd_nbd_payload_bytes",
            "Memory that large requests and replies that wait take now.",
            load.payload_bytes,
        ),
        GaugeMetricFamily(
            "bockd_nbd_payload_bytes_max",
            "What of it clients share; beyond that they wait.",
            load.max_payload_bytes,
        ),
    ]


async def each(shown: list[_Shown], pace: Pace) -> list[Metric]:
    """Return what single exports have counted since they were opened."""
    info = GaugeMetricFamily(
        "bockd_export_info",
        "Whose an export is, and what: 1.",
        labels=["export", "kind", "id", "tenant"],
    )
    clients = GaugeMetricFamily(
        "bockd_export_clients",
        "NBD clients of an export, and open files of the file view.",
        labels=["export"],
    )
    in_flight = GaugeMetricFamily(
        "bockd_export_requests_in_flight",
        "Requests of an export that wait in the background now.",
        labels=["export"],
    )
    failed = GaugeMetricFamily(
        "bockd_export_failed",
        "1 if a sync has failed and the volume is refused until it is reopened, else 0.",
        labels=["export"],
    )
    errors = CounterMetricFamily(
        "bockd_export_errors", "Requests that were refused or have failed.", labels=["export"]
    )
    moved = CounterMetricFamily(
        "bockd_export_bytes",
        "Bytes that were read of an export and written to it.",
        labels=["export", "operation"],
    )
    seconds = HistogramMetricFamily(
        "bockd_export_operation_seconds",
        "How long the requests of an export took. Only of operations that there were.",
        labels=["export", "operation"],
    )
    for one in shown:
        name, counted = one.name, one.state.statistics
        info.add_metric([name, one.kind, str(one.id), one.tenant], 1)
        clients.add_metric([name], one.clients)
        in_flight.add_metric([name], requests_in_flight(one.state))
        failed.add_metric([name], int(one.failed))
        errors.add_metric([name], counted.errors)
        moved.add_metric([name, "read"], counted.read_bytes)
        moved.add_metric([name, "write"], counted.written_bytes)
        for operation, count in zip(Operation, counted.by_operation(), strict=True):
            if count:
                buckets = cumulative(counted.durations, operation, COARSE)
                taken = counted.durations.seconds(operation)
                seconds.add_metric([name, NAMES[operation]], buckets, taken)
            await pace.step()
    return [info, clients, in_flight, failed, errors, moved, seconds]
