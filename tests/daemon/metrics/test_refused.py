"""A volume that is refused is counted, whether anybody uses it or not."""

from __future__ import annotations

from prometheus_client.core import Metric

from bockd.daemon.metrics.pool import refused_volumes
from bockd.drivers.memory.pool import MemoryPool
from bockd.errors import DamagedError
from bockd.model import MIB, VolumeId
from bockd.pool.nodes import Nodes
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import run_inline
from tests.nbd.server.serving import in_trio


def value(families: list[Metric]) -> float:
    (family,) = families
    (sample,) = family.samples
    assert sample.name == "bockd_pool_volumes_refused"
    return sample.value


def fail(pool: MemoryPool, volume: VolumeId) -> None:
    """As a driver records it."""
    pool.index.update(lambda txn: Nodes(txn).fail_volume(volume, "a sync failed"))


@in_trio
async def test_failed_volumes_that_nobody_uses_are_counted() -> None:
    pool = MemoryPool()
    volumes = [run_inline(pool.create_volume(f"v{number}", MIB)).id for number in range(100)]
    assert value(await refused_volumes(pool)) == 0
    for volume in volumes[::40]:
        fail(pool, volume)
    assert value(await refused_volumes(pool)) == 3
    run_inline(pool.reopen_volume(volumes[40]))
    assert value(await refused_volumes(pool)) == 2


@in_trio
async def test_nothing_is_said_where_the_records_cannot_be_read() -> None:
    class Damaged(MemoryPool):
        def trouble(self, record: VolumeRecord) -> str | None:
            raise DamagedError("it cannot be read")

    pool = Damaged()
    run_inline(pool.create_volume("v", MIB))
    assert await refused_volumes(pool) == []
