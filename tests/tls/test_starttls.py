"""The beginning of TLS on a connection: who may begin it, and what can go wrong in it."""

from __future__ import annotations

import random
import ssl

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.model import ClientCertificates, TlsMode
from bockd.nbd.server.limits import ServerLimits
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_trio
from tests.tls.conftest import Pki
from tests.tls.served import STARTTLS, client_context, serving_tls

POLICY = 0x80000002
TLS_REQD = 0x80000005


def client_hello(pki: Pki) -> bytes:
    """Return the first bytes of a client."""
    out = ssl.MemoryBIO()
    client = client_context(pki.client).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@in_trio
async def test_mode_off_refuses_starttls_and_goes_on(pki: Pki, exports: FixedExports) -> None:
    async with serving_tls(exports, pki, mode=TlsMode.OFF) as served:
        client = await served.connect()
        await client.send(STARTTLS)
        assert (await client.option_reply()).kind == POLICY
        await client.send(wire.go("disk"))
        assert (await client.option_reply()).kind == 3
        await trio.aclose_forcefully(client.stream)


@in_trio
async def test_mode_on_serves_with_and_without_tls(pki: Pki, exports: FixedExports) -> None:
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
    hello = client_hello(pki)
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
    hello = client_hello(pki)
    async with serving_tls(exports, pki, limits=ServerLimits(handshake_seconds=0.5)) as served:
        for sent in (0, 100, len(hello)):
            stream = await served.begin()
            await stream.send_all(hello[:sent])
            await Client(stream).closes()


@in_trio
async def test_noise_instead_of_tls_is_closed(pki: Pki, exports: FixedExports) -> None:
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
async def test_tls_1_2_and_1_3_are_served(
    pki: Pki, exports: FixedExports, version: ssl.TLSVersion
) -> None:
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
