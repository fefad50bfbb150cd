"""Counters and latencies."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.model import NodeKind, VolumeId
from bockd.nbd.server.statistics import Latencies, bucket_microseconds, bucket_of
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio, serving

MIB = 1 << 20


@pytest.mark.parametrize("nanoseconds", [0, 1, 15, 16, 17, 999, 12_345, 10**6, 10**9, 10**12])
def test_buckets_are_at_most_an_eighth_off(nanoseconds: int) -> None:
    microseconds = bucket_microseconds(bucket_of(nanoseconds))
    assert microseconds == pytest.approx(nanoseconds / 1000, rel=0.125, abs=0.001)


def test_percentiles_are_of_recent_requests() -> None:
    latencies = Latencies()
    assert latencies.percentiles(0.5) == [0.0]
    for _ in range(990):
        latencies.add(10_000, 1)
    latencies.add(1_000_000, 10)
    p50, p99, p999 = latencies.percentiles(0.5, 0.99, 0.999)
    assert p50 == pytest.approx(10, rel=0.13)
    assert p99 == pytest.approx(10, rel=0.13)
    assert p999 == pytest.approx(1000, rel=0.13)
    for _ in range(110):
        latencies.add(50_000, 1000)
    assert latencies.percentiles(0.999)[0] == pytest.approx(50, rel=0.13)


@in_trio
async def test_every_request_is_counted_once(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path) as server, await Client.go(path) as client:
        for immediate in (True, False):
            exports.devices["disk"].immediate = immediate  # type: ignore[attr-defined]
            await client.write(0, bytes(512))
            await client.write(0, bytes(512), flags=1)
            await client.write(0, bytes(2 * MIB))
            await client.read_data(0, 512)
            await client.read_data(0, 2 * MIB)
        await client.command(3)
        await client.command(4, 0, 4096)
        await client.command(6, 0, 4096)
        await client.command(99)
        (found,) = server.statistics()
        assert (found.id, found.kind, found.name) == (1, NodeKind.VOLUME, "disk")
        assert (found.connections, found.reads, found.writes) == (1, 4, 6)
        assert (found.read_bytes, found.written_bytes) == (4 * MIB + 1024, 4 * MIB + 2048)
        assert server.written_bytes(VolumeId(1)) == found.written_bytes
        assert server.written_bytes(VolumeId(2)) == 0
        assert (found.flushes, found.trims, found.errors) == (1, 2, 1)
        assert 0 < found.latency_p50_us <= found.latency_p99_us <= found.latency_p999_us
        server.forget(exports.key("disk"))
        assert len(server.statistics()) == 1
        await client.send(b"\0" * 28)
        await client.closes()
        server.forget(exports.key("disk"))
        assert server.statistics() == []
