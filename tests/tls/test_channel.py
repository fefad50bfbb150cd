"""NBD through TLS, byte by byte: what TLS must not change, and what only TLS can do wrong."""

from __future__ import annotations

import random
import ssl
import subprocess

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.model import ClientCertificates, TlsMode
from bockd.nbd.server.limits import ServerLimits
from bockd.runtime.steps import Signal
from tests.daemon.process import program
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_trio
from tests.tls.conftest import Pki
from tests.tls.served import STARTTLS, client_context, serving_tls

MIB = 1 << 20

POLICY = 0x80000002
TLS_REQD = 0x80000005

LONGER_THAN_THE_TEST = 1000.0
"""Seconds: what ought to happen by itself hangs the test if it waits for a limit."""


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(200 * MIB)


@pytest.fixture
def exports(device: MemoryDevice) -> FixedExports:
    return FixedExports({"disk": device, "other": MemoryDevice(MIB)})


# -- what TLS must not change ------------------------------------------------------------------


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


# -- fences --------------------------------------------------------------------------------------


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
            record = await _sealed(stream, wire.write(2, 0, b"last"))
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


# -- the beginning of TLS --------------------------------------------------------------------------


@in_trio
async def test_off_refuses_politely(pki: Pki, exports: FixedExports) -> None:
    async with serving_tls(exports, pki, mode=TlsMode.OFF) as served:
        client = await served.connect()
        await client.send(STARTTLS)
        assert (await client.option_reply()).kind == POLICY
        await client.send(wire.go("disk"))
        assert (await client.option_reply()).kind == 3
        await trio.aclose_forcefully(client.stream)


@in_trio
async def test_on_serves_both(pki: Pki, exports: FixedExports) -> None:
    async with serving_tls(exports, pki, mode=TlsMode.ON) as served:
        plain = await served.connect()
        await plain.send(wire.go("disk"))
        assert (await plain.option_reply()).kind == 3
        assert (await plain.option_reply()).kind == 1
        async with plain, await served.go() as secure:
            assert await plain.write(0, b"both") == 0
            assert await secure.read_data(0, 4) == b"both"


@in_trio
async def test_require_opens_nothing_without_it(pki: Pki, exports: FixedExports) -> None:
    async with serving_tls(exports, pki) as served:
        client = await served.connect()
        for option in (wire.go("disk"), wire.option(3), wire.option(6, wire.info_data("disk"))):
            await client.send(option)
            assert (await client.option_reply()).kind == TLS_REQD
        await client.send(wire.option(1, b"disk"))
        assert await client.closes() == b""
    assert exports.open_holds == 0


@in_trio
async def test_plain_text_behind_starttls_is_not_taken(
    pki: Pki, exports: FixedExports, device: MemoryDevice
) -> None:
    """Sent by somebody on the way with the option, or between the answer and the client's hello:
    it neither becomes an option of the secured client nor lets the client in."""
    injected = wire.go("disk") + wire.write(1, 0, b"evil")
    async with serving_tls(exports, pki) as served:
        client = await served.connect()
        await client.send(STARTTLS + injected)
        assert await client.closes() == b""
        stream = await served.begin()
        await stream.send_all(injected)
        assert b"NBD" not in await Client(stream).closes()
        stream = await served.begin()
        await stream.send_all(injected)
        secure = trio.SSLStream(stream, client_context(pki.client), server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await secure.do_handshake()
        await trio.aclose_forcefully(secure)
        assert (exports.open_holds, device.calls) == (0, [])
        async with await served.go() as client:
            assert await client.read_data(0, 4) == bytes(4)


@in_trio
async def test_clients_that_stop_in_the_handshake_hold_up_nobody(
    pki: Pki, exports: FixedExports
) -> None:
    hello = _client_hello(pki)
    async with serving_tls(exports, pki) as served:
        halves = []
        for sent in range(0, len(hello), len(hello) // 30):
            stream = await served.begin()
            await stream.send_all(hello[:sent])
            halves.append(stream)
        async with await served.go() as client:
            assert await client.write(0, b"data") == 0
        for stream in halves[::2]:
            await trio.aclose_forcefully(stream)
        async with await served.go() as client:
            assert await client.read_data(0, 4) == b"data"
        for stream in halves[1::2]:
            await trio.aclose_forcefully(stream)


@in_trio
async def test_a_client_that_is_silent_in_the_handshake_is_closed(
    pki: Pki, exports: FixedExports
) -> None:
    hello = _client_hello(pki)
    async with serving_tls(exports, pki, limits=ServerLimits(handshake_seconds=0.5)) as served:
        for sent in (0, 100, len(hello)):
            stream = await served.begin()
            await stream.send_all(hello[:sent])
            await Client(stream).closes()


@in_trio
async def test_noise_instead_of_tls(pki: Pki, exports: FixedExports) -> None:
    noise = random.Random(5)
    async with serving_tls(exports, pki) as served:
        for length in (1, 5, 100, 70_000):
            stream = await served.begin()
            try:
                await stream.send_all(noise.randbytes(length))
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            await Client(stream).closes()
        async with await served.go() as client:
            assert await client.write(0, b"data") == 0


@pytest.mark.parametrize(
    ("asked", "shown", "admitted"),
    [
        (ClientCertificates.NONE, "nobody", True),
        (ClientCertificates.NONE, "stranger", True),
        (ClientCertificates.OPTIONAL, "nobody", True),
        (ClientCertificates.OPTIONAL, "client", True),
        (ClientCertificates.OPTIONAL, "stranger", False),
        (ClientCertificates.OPTIONAL, "expired", False),
        (ClientCertificates.REQUIRED, "client", True),
        (ClientCertificates.REQUIRED, "nobody", False),
        (ClientCertificates.REQUIRED, "stranger", False),
        (ClientCertificates.REQUIRED, "expired", False),
    ],
)
@in_trio
async def test_who_is_let_in(
    pki: Pki, exports: FixedExports, asked: ClientCertificates, shown: str, admitted: bool
) -> None:
    async with serving_tls(exports, pki, clients=asked) as served:
        # With TLS 1.3 a client learns that it was refused when it reads.
        client = await served.secure(getattr(pki, shown))
        try:
            await client.send(wire.go("disk"))
            assert (await client.option_reply()).kind == 3
            assert admitted
        except (Closed, trio.BrokenResourceError):
            assert not admitted
        await trio.aclose_forcefully(client.stream)
    assert exports.open_holds == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@in_trio
async def test_versions(pki: Pki, exports: FixedExports, version: ssl.TLSVersion) -> None:
    context = client_context(pki.client)
    context.minimum_version = context.maximum_version = version
    async with serving_tls(exports, pki, clients=ClientCertificates.REQUIRED) as served:
        stream = trio.SSLStream(await served.begin(), context, server_hostname="localhost")
        await stream.do_handshake()
        client = Client(stream)
        await client.send(wire.go("disk"))
        assert (await client.option_reply()).kind == 3
        assert (await client.option_reply()).kind == 1
        assert await client.write(0, b"x" * 100_000) == 0
        assert await client.read_data(0, 100_000) == b"x" * 100_000
        await trio.aclose_forcefully(stream)


@in_trio
async def test_old_versions_are_refused(pki: Pki, exports: FixedExports) -> None:
    context = client_context(pki.client)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving_tls(exports, pki) as served:
        stream = trio.SSLStream(await served.begin(), context, server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError) as refused:
            await stream.do_handshake()
        assert "PROTOCOL_VERSION" in repr(refused.value.__cause__)
        await trio.aclose_forcefully(stream)


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
            record = bytearray(await _sealed(stream, wire.write(1, 0, b"evil")))
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
async def test_it_says_goodbye(pki: Pki, exports: FixedExports) -> None:
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


# -- TLS's own bytes -----------------------------------------------------------------------------


def _client_hello(pki: Pki) -> bytes:
    """The first bytes of a client."""
    out = ssl.MemoryBIO()
    client = client_context(pki.client).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


async def _sealed(stream: trio.SSLStream[trio.SocketStream], content: bytes) -> bytes:
    """A record with that content, which the stream has made and not sent."""
    ours, theirs = trio.testing.memory_stream_pair()
    transport, stream.transport_stream = stream.transport_stream, ours  # type: ignore[assignment]
    try:
        await stream.send_all(content)
    finally:
        stream.transport_stream = transport
    return bytes(await theirs.receive_some())
