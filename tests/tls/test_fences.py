"""Fences of connections through TLS: what has arrived counts, whatever record it is in."""

from __future__ import annotations

import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.nbd.server.limits import ServerLimits
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio
from tests.tls.conftest import Pki
from tests.tls.served import LONGER_THAN_THE_TEST, sealed, serving_tls

MIB = 1 << 20


@in_trio
async def test_a_new_connection_sees_what_older_ones_had_sent(
    pki: Pki, exports: FixedExports
) -> None:
    limits = ServerLimits(fence_seconds=LONGER_THAN_THE_TEST)
    async with serving_tls(exports, pki, limits=limits) as served, await served.go() as old:
        for n in range(10):
            await old.send(wire.write(n, 0, bytes([n]) * 60_000) * 5)
            async with await served.go() as new:
                assert await new.write(0, b"new") == 0
                assert await new.read_data(0, 4) == b"new" + bytes([n])
            for _ in range(5):
                assert await old.simple() == (n, 0)


@in_trio
async def test_a_fence_does_not_wait_for_what_has_not_been_sent(
    pki: Pki, exports: FixedExports
) -> None:
    """Neither for the rest of a request, nor of a payload, nor of a record."""
    limits = ServerLimits(fence_seconds=LONGER_THAN_THE_TEST)
    async with serving_tls(exports, pki, limits=limits) as served:
        request = wire.write(1, 0, b"o" * (2 * MIB))
        for sent in (10, 28, 5000, MIB + 5000):
            async with await served.go() as old:
                await old.send(request[:sent])
                async with await served.go() as new:
                    assert await new.write(0, b"new") == 0
                await old.send(request[sent:])
                assert await old.simple() == (1, 0)
        async with await served.go() as old:
            stream = old.stream
            assert isinstance(stream, trio.SSLStream)
            record = await sealed(stream, wire.write(2, 0, b"last"))
            await stream.transport_stream.send_all(record[:-1])
            async with await served.go() as new:
                assert await new.write(0, b"new") == 0
                await stream.transport_stream.send_all(record[-1:])
                assert await old.simple() == (2, 0)
                assert await new.read_data(0, 4) == b"last"


@in_trio
async def test_a_fence_passes_when_all_that_has_arrived_is_read(
    pki: Pki, exports: FixedExports
) -> None:
    """How much that is cannot be known before: records wait in the socket, and hold less than they
    are long."""
    limits = ServerLimits(fence_seconds=LONGER_THAN_THE_TEST)
    size, count = MIB // 4, 64
    async with (
        serving_tls(exports, pki, limits=limits) as served,
        await served.go() as old,
        trio.open_nursery() as nursery,
    ):
        # The server waits for its replies to be taken, and reads nothing meanwhile.
        await old.send(b"".join([wire.request(0, n, 0, size) for n in range(count)]))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await old.send(wire.write(99, 0, b"half")[:-1])
        entered = trio.Event()

        async def enter() -> None:
            async with await served.go() as new:
                assert await new.write(0, b"new") == 0
                entered.set()

        nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not entered.is_set()
        for _ in range(count):
            _, error = await old.simple()
            assert (error, len(await old.read(size))) == (0, size)
        await entered.wait()


@in_trio
async def test_a_fence_passes_a_connection_that_never_stops(
    pki: Pki, exports: FixedExports
) -> None:
    limits = ServerLimits(fence_seconds=LONGER_THAN_THE_TEST)

    async def send_for_ever(client: Client) -> None:
        while True:
            await client.send(wire.write(1, 0, bytes(4096)) * 64)

    async def take_for_ever(client: Client) -> None:
        while True:
            await client.simple()

    async with (
        serving_tls(exports, pki, limits=limits) as served,
        await served.go() as old,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_for_ever, old)
        nursery.start_soon(take_for_ever, old)
        for _ in range(3):
            async with await served.go() as new:
                assert await new.write(8192, b"new") == 0
        nursery.cancel_scope.cancel()


@in_trio
async def test_those_that_hung_up_are_dropped_with_half_a_request(
    pki: Pki, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving_tls(exports, pki) as served, await served.go() as old:
        await old.send(wire.write(1, 0, bytes(4096))[:-1])
        await trio.aclose_forcefully(old.stream)
        async with await served.go():
            assert served.server.connections(exports.key("disk")) == 1
            assert device.calls == []


@in_trio
async def test_winding_up_answers_what_was_sent(pki: Pki, exports: FixedExports) -> None:
    async with serving_tls(exports, pki) as served, await served.go() as client:
        await client.send(wire.write(1, 0, b"o" * 4096) * 50)
        await served.server.drain_and_close(exports.key("disk"), "disk", LONGER_THAN_THE_TEST)
        for _ in range(50):
            assert await client.simple() == (1, 0)
        assert await client.closes() == b""
