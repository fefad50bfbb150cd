"""Counters."""

from __future__ import annotations

from pathlib import Path

from bockd.model import NodeKind, VolumeId
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, counted, in_trio, serving

MIB = 1 << 20


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
        (found,) = counted(server)
        assert (found.id, found.kind, found.name) == (1, NodeKind.VOLUME, "disk")
        assert (found.connections, found.reads, found.writes) == (1, 4, 6)
        assert (found.read_bytes, found.written_bytes) == (4 * MIB + 1024, 4 * MIB + 2048)
        assert server.written_bytes(VolumeId(1)) == found.written_bytes
        assert server.written_bytes(VolumeId(2)) == 0
        assert (found.flushes, found.trims, found.errors) == (1, 2, 1)
        assert 0 < found.latency_p50_us <= found.latency_p99_us <= found.latency_p999_us
        server.forget(exports.key("disk"))
        assert len(server.exports()) == 1
        await client.send(b"\0" * 28)
        await client.closes()
        server.forget(exports.key("disk"))
        assert server.exports() == []
