"""NBD through TLS, byte by byte: what TLS must not change, and how a connection ends."""

from __future__ import annotations

import random
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.nbd.server.limits import ServerLimits
from bockd.runtime.steps import Signal
from tests.daemon.process import program
from tests.nbd.protocol import wire
from tests.nbd.server.client import Closed
from tests.nbd.server.serving import FixedExports, in_trio
from tests.nbd.server.sides import Side
from tests.tls.conftest import Pki
from tests.tls.served import LONGER_THAN_THE_TEST, sealed, serving_tls

MIB = 1 << 20


@in_trio
async def test_requests_of_all_sizes(pki: Pki, exports: FixedExports) -> None:
    """Around the sizes of a record, a receive buffer, and a piece; many in one write, and large."""
    sizes = [1, 512, 4096, 16383, 16384, 16385, 65536, 262143, 262144, 262145, MIB, 3 * MIB + 5]
    content = {size: random.Random(size).randbytes(size) for size in sizes}
    async with serving_tls(exports, pki) as served, await served.go() as client:
        for size, data in content.items():
            assert await client.write(7, data) == 0
            assert await client.read_data(7, size) == data
        batch = [wire.write(n, n * 4096, bytes([n]) * 4096) for n in range(200)]
        await client.send(b"".join(batch))
        assert sorted([(await client.simple())[0] for _ in batch]) == list(range(200))
        whole = b"".join([bytes([n]) * 4096 for n in range(200)])
        assert await client.read_data(0, len(whole)) == whole


@in_trio
async def test_requests_in_one_record_with_the_last_option_count(
    pki: Pki, exports: FixedExports
) -> None:
    async with serving_tls(exports, pki) as served:
        early = wire.write(1, 0, b"early")
        async with await served.go(behind=early) as client:
            assert await client.simple() == (1, 0)
            assert await client.read_data(0, 5) == b"early"


@in_trio
async def test_slow_requests_are_answered_out_of_order(
    pki: Pki, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving_tls(exports, pki) as served, await served.go() as client:
        assert await client.write(0, b"x" * MIB) == 0
        gate = device.gate = Signal()
        device.immediate = False
        await client.send(wire.request(0, 1, 0, MIB))
        await trio.testing.wait_all_tasks_blocked(0.01)
        device.immediate, device.gate = True, None
        assert await client.read_data(0, 4096, cookie=2) == b"x" * 4096
        gate.fire()
        assert await client.simple() == (1, 0)
        assert await client.read(MIB) == b"x" * MIB


# -- the end of TLS --------------------------------------------------------------------------------


@in_trio
async def test_a_byte_that_was_changed_on_the_way_ends_the_connection(
    pki: Pki, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving_tls(exports, pki) as served:
        for at in (0, 5, 20, -1):
            client = await served.go()
            stream = client.stream
            assert isinstance(stream, trio.SSLStream)
            record = bytearray(await sealed(stream, wire.write(1, 0, b"evil")))
            record[at] ^= 1
            await stream.transport_stream.send_all(record)
            # A header that was made longer waits for more, which does not come.
            await stream.transport_stream.send_eof()
            with pytest.raises((Closed, trio.BrokenResourceError)):
                await client.simple()
            await trio.aclose_forcefully(stream)
        assert device.calls == []


@in_trio
async def test_requests_before_a_goodbye_and_before_a_cut_are_carried_out(
    pki: Pki, exports: FixedExports
) -> None:
    """Who cuts the connection can drop whole requests at its end, as the network always could, and
    change none."""
    async with serving_tls(exports, pki) as served:
        client = await served.go()
        await client.send(wire.write(1, 0, b"goodbye") + wire.write(2, 0, b"half")[:-1])
        await client.stream.aclose()
        cut = await served.go()
        assert await cut.read_data(0, 7) == b"goodbye"
        await cut.send(wire.write(1, 100, b"cut") + wire.write(2, 100, b"half")[:-1])
        assert isinstance(cut.stream, trio.SSLStream)
        await cut.stream.transport_stream.aclose()
        async with await served.go() as last:
            assert await last.read_data(0, 7) == b"goodbye"
            assert await last.read_data(100, 4) == b"cut\0"


@in_trio
async def test_the_server_ends_tls_with_a_goodbye(pki: Pki, exports: FixedExports) -> None:
    """So that a client can tell the end from a cut."""
    async with serving_tls(exports, pki) as served:
        for client in (await served.go(), await served.secure()):
            in_transmission = served.server.connections(exports.key("disk"))
            await client.send(wire.request(2) if in_transmission else wire.option(2))
            if not in_transmission:
                assert (await client.option_reply()).kind == 1
            assert await client.stream.receive_some() == b""  # a cut would raise
            await trio.aclose_forcefully(client.stream)


@in_trio
async def test_a_client_that_takes_no_replies_can_be_disconnected(
    pki: Pki, exports: FixedExports
) -> None:
    async with serving_tls(exports, pki) as served, await served.go() as client:
        await client.send(wire.request(0, 1, 0, 64 * MIB))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert served.server.connections(exports.key("disk")) == 1
        await served.server.disconnect(exports.key("disk"))
        assert served.server.connections(exports.key("disk")) == 0


@in_trio
async def test_a_client_that_only_asks_for_new_keys_is_closed(
    pki: Pki, exports: FixedExports
) -> None:
    """Each asks for an answer, which nobody takes: they must not pile up. (Python's TLS cannot ask;
    `openssl s_client` can, with a K at the beginning of a line.)"""
    limits = ServerLimits(handshake_seconds=LONGER_THAN_THE_TEST)
    async with serving_tls(exports, pki, limits=limits) as served:
        ours = await served.begin()
        (relay,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = relay.socket.getsockname()[1]
        command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"]
        async with trio.open_nursery() as nursery:
            client = await nursery.start(
                lambda task_status: trio.run_process(
                    command,
                    stdin=subprocess.PIPE,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    task_status=task_status,
                )
            )
            theirs = await relay.accept()
            async with theirs, ours, trio.open_nursery() as both:
                both.start_soon(_forward, ours, theirs)
                both.start_soon(_ask_for_keys, client.stdin)
                # Until the server closes its end.
                await _forward(theirs, ours)
                both.cancel_scope.cancel()
            client.kill()
        await relay.aclose()
        async with await served.go() as innocent:
            assert await innocent.write(0, b"data") == 0


async def _forward(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _ask_for_keys(stdin: trio.abc.SendStream) -> None:
    try:
        while True:
            await stdin.send_all(b"K\n")
            await trio.lowlevel.checkpoint()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@in_trio
async def test_large_writes_to_a_volume_whose_payload_comes_in_parts(
    pki: Pki, tmp_path: Path
) -> None:
    """The compiled lane writes them, and does not receive them."""
    with closing(Side(tmp_path, compiled=True, structured=False, extended=False)) as side:
        exports = FixedExports({"disk": side.volume})
        async with serving_tls(exports, pki) as served, await served.go() as client:
            for size in (65_537, MIB, 2 * MIB + 5):
                data = random.Random(size).randbytes(size)
                request = wire.write(1, 4096, data)
                with trio.fail_after(30):
                    await client.send(request[:70_000])
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await client.send(request[70_000:])
                    assert await client.simple() == (1, 0)
                    assert await client.read_data(4096, size) == data
        side._background.run()
