"""Thousands of exports: all are in the sums, few have series, and clients are served meanwhile."""

from __future__ import annotations

import pytest
from prometheus_client.core import Metric

from bockd.daemon.metrics.exports import ExportMetrics
from bockd.drivers.memory.pool import MemoryPool
from bockd.model import MIB, NodeKind
from bockd.nbd.server.durations import Operation
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.pace import Pace
from bockd.runtime.steps import run_inline
from tests.nbd.server.serving import in_trio
from tests.runtime.turns import counting_turns

VOLUMES = 2_000
SHOWN = 5


def used(server: NbdServer, pool: MemoryPool, count: int) -> list[ExportKey]:
    """Volumes of which each was read from as often as its number says."""
    keys = []
    for number in range(1, count + 1):
        record = run_inline(pool.create_volume(f"v{number}", MIB))
        keys.append(ExportKey(NodeKind.VOLUME, record.id))
        counted = server.statistics_of(keys[-1], "any")
        for _ in range(number % 3):
            counted.reads += 1
            counted.durations.add(Operation.READ, 20_000)
    return keys


def value(families: list[Metric], name: str, **labels: str) -> float:
    """Of the only sample that has these labels."""
    (found,) = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


@in_trio
async def test_the_loop_turns_after_each_export(monkeypatch: pytest.MonkeyPatch) -> None:
    server, pool = NbdServer(), MemoryPool()
    used(server, pool, VOLUMES)
    async with counting_turns(monkeypatch) as turns:
        families = await ExportMetrics(server, pool, SHOWN).families(Pace())
        assert turns.count >= VOLUMES
    reads = sum(number % 3 for number in range(1, VOLUMES + 1))
    assert value(families, "bockd_operations_total", operation="read") == reads
    assert value(families, "bockd_operation_seconds_count", operation="read") == reads
    assert value(families, "bockd_exports_used") == VOLUMES
    assert value(families, "bockd_exports_shown") == SHOWN
    assert sum(len(family.samples) for family in families) < 100 + SHOWN * 70


@in_trio
async def test_none_need_be_shown() -> None:
    server, pool = NbdServer(), MemoryPool()
    used(server, pool, 4)
    families = await ExportMetrics(server, pool, 0).families(Pace())
    assert value(families, "bockd_operations_total", operation="read") == 1 + 2 + 0 + 1
    assert not [one for family in families for one in family.samples if "export" in one.labels]


@in_trio
async def test_what_is_forgotten_stays_in_the_sums_and_begins_anew() -> None:
    server, pool = NbdServer(), MemoryPool()
    metrics = ExportMetrics(server, pool, 10)
    _, second = used(server, pool, 2)
    for _ in range(2):
        server.forget(second)
        families = await metrics.families(Pace())
        assert value(families, "bockd_operations_total", operation="read") == 3
        assert value(families, "bockd_operation_seconds_count", operation="read") == 3
        assert value(families, "bockd_exports_used") == 1
    server.statistics_of(second, "any").reads += 1
    families = await metrics.families(Pace())
    assert value(families, "bockd_operations_total", operation="read") == 4
