"""Metrics of limits of I/O and of device profiles: which hold, and what waits for them.

What is of single volumes is made for those alone that are limited, or were, or have a profile; the
caller says of which at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bockd.model import IoLimits
from bockd.runtime.pace import Pace
from bockd.throttle.gates import Gate, Gates
from bockd.throttle.held import Held

OPERATIONS = {
    "iops": "all",
    "read_iops": "read",
    "write_iops": "write",
    "bps": "all",
    "read_bps": "read",
    "write_bps": "write",
}
"""What the label `operation` says of each limit."""


class Gated(NamedTuple):
    """A volume that has series of its own."""

    export: str
    tenant: str
    gate: Gate


class GateCounts:
    """How many of the volumes in use are held to anything."""

    def __init__(self) -> None:
        self.limited = 0
        self.profiled = 0

    def add(self, gate: Gate | None) -> None:
        """Count a volume. None: it has no gate."""
        if gate is not None:
            self.limited += is_limited(gate)
            self.profiled += gate.device is not None


def is_limited(gate: Gate) -> bool:
    """Return whether a volume's requests may have to wait for limits, its tenant's or its own."""
    return gate.throttle.limited or (gate.tenant is not None and gate.tenant.limited)


def gate_sums(gates: Gates, counts: GateCounts) -> list[Metric]:
    """Return what holds, and has waited, at all gates together."""
    requests, seconds, waiting = (
        CounterMetricFamily(
            "bockd_held_requests",
            "Requests that had to wait for limits, of their volume or of its tenant.",
            labels=["limits"],
        ),
        CounterMetricFamily(
            "bockd_held_seconds",
            "How long they have waited together, those that still wait as well.",
            labels=["limits"],
        ),
        GaugeMetricFamily(
            "bockd_requests_held", "Requests that wait for limits now.", labels=["limits"]
        ),
    )
    for limits, held in (("volume", gates.held), ("tenant", gates.held_by_tenants)):
        requests.add_metric([limits], held.requests)
        seconds.add_metric([limits], held.seconds(gates.clock()))
        waiting.add_metric([limits], held.waiting)
    return [
        GaugeMetricFamily(
            "bockd_exports_limited",
            "Of the volumes in use, those with limits, their own or their tenant's.",
            counts.limited,
        ),
        GaugeMetricFamily(
            "bockd_exports_profiled",
            "Of the volumes in use, those that have a device profile.",
            counts.profiled,
        ),
        requests,
        seconds,
        waiting,
    ]


async def each_gate(shown: Iterable[Gated], pace: Pace) -> list[Metric]:
    """Return what holds single volumes and their tenants, and what has waited for it."""
    of_volumes, of_tenants = Allowed("export", "a volume"), Allowed("tenant", "a tenant")
    profiles = GaugeMetricFamily(
        "bockd_export_profile_info",
        "What device a volume is made to look like: 1. Only of volumes with a profile.",
        labels=["export", "profile"],
    )
    requests = CounterMetricFamily(
        "bockd_export_held_requests",
        "Requests of a volume that had to wait for limits, its own or its tenant's.",
        labels=["export", "limits"],
    )
    seconds = CounterMetricFamily(
        "bockd_export_held_seconds",
        "How long they have waited together, those that still wait as well.",
        labels=["export", "limits"],
    )
    tenants = dict[str, IoLimits]()
    for export, tenant, gate in shown:
        of_volumes.add(export, gate.throttle.limits)
        if gate.tenant is not None:
            tenants[tenant] = gate.tenant.limits
        if gate.device is not None:
            profiles.add_metric([export, gate.device.profile.name], 1)
        for limits, held in held_of(gate):
            requests.add_metric([export, limits], held.requests)
            seconds.add_metric([export, limits], held.seconds(gate.clock()))
        await pace.step()
    for tenant, allowed in tenants.items():
        of_tenants.add(tenant, allowed)
    return [*of_volumes.families, *of_tenants.families, profiles, requests, seconds]


def held_of(gate: Gate) -> list[tuple[str, Held]]:
    """Return what counts the requests of a volume that wait; nothing if none ever had to."""
    if not (is_limited(gate) or gate.held.requests or gate.held_by_tenant.requests):
        return []
    return [("volume", gate.held), ("tenant", gate.held_by_tenant)]


class Allowed:
    """What limits allow in a second."""

    def __init__(self, label: str, whose: str) -> None:
        name = f"bockd_{label}_limit"
        only = "Only of limits that there are."
        self._operations = GaugeMetricFamily(
            f"{name}_operations_per_second",
            f"Operations that the limits of {whose} allow in a second. {only}",
            labels=[label, "operation"],
        )
        self._bytes = GaugeMetricFamily(
            f"{name}_bytes_per_second",
            f"Bytes that the limits of {whose} allow in a second. {only}",
            labels=[label, "operation"],
        )

    @property
    def families(self) -> list[Metric]:
        """Both."""
        return [self._operations, self._bytes]

    def add(self, owner: str, limits: IoLimits) -> None:
        """Enter the limits of a volume or a tenant."""
        for name, rate in limits.rates().items():
            family = self._bytes if name.endswith("bps") else self._operations
            family.add_metric([owner, OPERATIONS[name]], rate.per_second)
