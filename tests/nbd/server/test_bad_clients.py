"""Clients that err, stall or vanish: each has a defined answer, and others never notice."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.nbd.protocol.handshake import MAX_SKIPPED_OPTION_BYTES
from bockd.nbd.server.limits import ServerLimits
from bockd.runtime.steps import Signal
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_jumping_time, in_trio, serving

MIB = 1 << 20
EINVAL, ENOSPC = 22, 28
LIMITS = ServerLimits(handshake_seconds=10, fence_seconds=3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        wire.FIXED_NEWSTYLE_NO_ZEROES,
        wire.FIXED_NEWSTYLE_NO_ZEROES + b"IHAVE",
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk")[:-1],
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(77, bytes(100_000))[:-1],
    ],
    ids=["silence", "half flags", "no option", "half header", "half data", "half skipped"],
)
@in_jumping_time
async def test_silence_in_the_handshake_is_closed(
    path: Path, exports: FixedExports, data: bytes
) -> None:
    async with serving(exports, path, LIMITS), await Client.connect(path) as client:
        start = trio.current_time()
        await client.send(data)
        assert await client.closes() == b""
        assert trio.current_time() - start >= LIMITS.handshake_seconds - 1


@in_jumping_time
async def test_a_handshake_that_never_ends_is_closed(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path, LIMITS), await Client.connect(path) as client:
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES)
        for _ in range(4):
            await trio.sleep(2)
            await client.send(wire.option(77))
            assert (await client.option_reply()).kind == 0x80000001
        assert await client.closes() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 4,
        wire.FIXED_NEWSTYLE_NO_ZEROES + bytes(16),
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(1, b"nowhere"),
        wire.FIXED_NEWSTYLE_NO_ZEROES
        + b"IHAVEOPT"
        + struct.pack(">II", 3, MAX_SKIPPED_OPTION_BYTES + 1),
    ],
    ids=["flags", "magic", "export", "length"],
)
@in_trio
async def test_a_broken_handshake_is_closed(path: Path, exports: FixedExports, data: bytes) -> None:
    async with serving(exports, path), await Client.connect(path) as client:
        await client.send(data)
        assert await client.closes() == b""


@in_trio
async def test_bad_magic_closes_behind_the_answers_before_it(
    path: Path, exports: FixedExports
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.request(3, 1) + wire.request(3, 2) + bytes(28))
        assert len(await client.closes()) == 32
        assert exports.open_holds == 0


@in_trio
async def test_bad_requests_leave_the_connection_usable(path: Path, exports: FixedExports) -> None:
    size = 200 * MIB
    async with serving(exports, path), await Client.go(path) as client:
        assert await client.command(99) == EINVAL
        assert await client.command(0, 0, 512, flags=0x8000) == EINVAL
        assert await client.command(0, size, 1) == EINVAL
        assert await client.command(0, (1 << 64) - 1, 100) == EINVAL
        assert await client.command(0, 0, 64 * MIB + 1) == EINVAL
        assert await client.write(0, bytes(10), flags=0x40) == EINVAL
        assert await client.write(size - 1, bytes(2)) == ENOSPC
        assert await client.write(size - 1, bytes(MIB)) == ENOSPC
        assert await client.write(size, b"") == 0
        assert await client.command(7, 0, 4096) == EINVAL
        assert await client.write(0, b"still here") == 0
        assert await client.read_data(0, 10) == b"still here"


@in_trio
async def test_an_oversized_payload_is_consumed(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        assert await client.write(0, bytes(64 * MIB + 1)) == EINVAL
        assert await client.write(0, bytes(64 * MIB)) == 0


@in_trio
async def test_an_absurd_payload_closes(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.request(1, 1, 0, 128 * MIB + 1))
        assert await client.closes() == b""


FOR_A_DAY = 100_000
"""Seconds: longer than a laptop sleeps, or a copy stays suspended."""


@pytest.mark.parametrize(
    ("data", "sent", "error"),
    [
        (wire.request(3), 1, 0),
        (wire.request(3), 27, 0),
        (wire.write(1, 0, bytes(4096)), 28 + 2000, 0),
        (wire.write(1, 0, bytes(2 * MIB)), 28 + MIB + 5, 0),
        (wire.write(1, 1 << 40, bytes(2 * MIB)), 28 + MIB + 5, ENOSPC),
    ],
    ids=["one byte", "half header", "half payload", "half large payload", "half refused payload"],
)
@in_jumping_time
async def test_a_request_that_stops_half_way_goes_on_when_the_client_does(
    path: Path, exports: FixedExports, data: bytes, sent: int, error: int
) -> None:
    async with serving(exports, path, LIMITS) as server, await Client.go(path) as client:
        await client.send(data[:sent])
        await trio.sleep(FOR_A_DAY)
        assert server.connections(exports.key("disk")) == 1
        await client.send(data[sent:])
        assert await client.simple() == (1, error)


@in_jumping_time
async def test_an_idle_connection_stays(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path, LIMITS), await Client.go(path) as client:
        await trio.sleep(100_000)
        assert await client.write(0, b"still here") == 0


@pytest.mark.parametrize("length", [4096, 200_000, 8 * MIB])
@in_jumping_time
async def test_a_client_that_takes_no_replies_gets_them_when_it_does(
    path: Path, exports: FixedExports, length: int
) -> None:
    async with serving(exports, path, LIMITS) as server, await Client.go(path) as client:
        asked = 64 * MIB // length
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, wire.request(0, 1, 0, length) * asked)
            await trio.sleep(FOR_A_DAY)
            assert server.connections(exports.key("disk")) == 1
            for _ in range(asked):
                assert await client.simple() == (1, 0)
                assert await client.read(length) == bytes(length)


@pytest.mark.parametrize("length", [4096, 200_000, 8 * MIB])
@in_jumping_time
async def test_a_client_that_takes_no_replies_is_disconnected_at_once(
    path: Path, exports: FixedExports, length: int
) -> None:
    async with serving(exports, path, LIMITS) as server, await Client.go(path) as client:
        with trio.move_on_after(1):
            while True:
                await client.send(wire.request(0, 1, 0, length))
        await trio.sleep(FOR_A_DAY)
        begun = trio.current_time()
        await server.disconnect(exports.key("disk"))
        assert trio.current_time() == begun
        assert server.connections(exports.key("disk")) == 0
        assert exports.open_holds == 0


@in_jumping_time
async def test_others_never_notice(path: Path, exports: FixedExports) -> None:
    limits = replace(LIMITS, shared_memory_bytes=4 * MIB)
    async with serving(exports, path, limits) as server, trio.open_nursery() as nursery:
        everybody_is_in = trio.Event()

        async def stall(data: bytes, more: bytes) -> None:
            async with await Client.go(path) as client:
                await everybody_is_in.wait()
                with trio.move_on_after(1):
                    await client.send(data)
                    while more:
                        await client.send(more)
                await trio.sleep_forever()

        nursery.start_soon(stall, b"", wire.request(0, 1, 0, 8 * MIB))
        nursery.start_soon(stall, b"", wire.request(0, 1, 0, 4096))
        nursery.start_soon(stall, wire.request(1, 1, 0, 60 * MIB) + bytes(3 * MIB), b"")
        await trio.testing.wait_all_tasks_blocked(0.01)
        everybody_is_in.set()
        await trio.sleep(1.5)
        assert server.connections(exports.key("disk")) == 3
        async with await Client.go(path, "other") as client:
            start = trio.current_time()
            data = bytes(range(256)) * 4096
            assert await client.write(0, data) == 0
            assert await client.read_data(0, MIB) == data
            assert trio.current_time() - start < 1
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_client_that_leaves_half_way_leaves_nothing(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path) as server:
        for data in (wire.write(1, 0, b"x" * 4096)[:-1], wire.request(0, 1, 0, 64 * MIB)):
            async with await Client.go(path) as client:
                await client.send(data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.connections(exports.key("disk")) == 0
            assert exports.open_holds == 0
        assert device.calls == []


@in_trio
async def test_connections_are_limited(path: Path, exports: FixedExports) -> None:
    limits = ServerLimits(max_connections=2)
    async with serving(exports, path, limits):
        async with await Client.go(path), await Client.go(path):
            refused = await trio.open_unix_socket(str(path))
            assert await refused.receive_some() == b""
            await refused.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with await Client.go(path):
            pass


@in_trio
async def test_requests_in_flight_are_limited_and_none_is_lost(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    device.immediate = False
    async with (
        serving(exports, path, ServerLimits(max_in_flight=4)),
        await Client.go(path) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(
            client.send, b"".join(wire.write(n, n * 512, bytes([n]) * 512) for n in range(200))
        )
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.calls == []
        gate.fire()
        assert sorted([await client.simple() for _ in range(200)]) == [(n, 0) for n in range(200)]
