"""An NBD server with TLS on a TCP port within a test's trio run, and clients that send what they
are told through TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from bockd.config import Address
from bockd.config.sections import TlsSettings
from bockd.model import ClientCertificates, TlsMode
from bockd.nbd.server.exports import ExportTable
from bockd.nbd.server.limits import ServerLimits
from bockd.nbd.server.listener import address_of, listen_tcp
from bockd.nbd.server.nbd_server import NbdServer
from bockd.nbd.server.tls import FrontendTls
from bockd.tls.certificates import Certificates
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.tls.conftest import Pki

STARTTLS = wire.option(5)

LONGER_THAN_THE_TEST = 1000.0
"""Seconds: what ought to happen by itself hangs the test if it waits for a limit."""


def client_context(directory: Path) -> ssl.SSLContext:
    """A client that trusts, and shows, what is in such a directory."""
    context = ssl.create_default_context(cafile=directory / "ca-cert.pem")
    # Tell a goodbye from a cut, which Python does not by itself.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if (directory / "client-cert.pem").exists():
        context.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    return context


@dataclass
class Served:
    """A server and where it is."""

    server: NbdServer
    port: int
    pki: Pki
    opened: list[trio.SocketStream] = field(default_factory=list)
    """Closed at the end."""

    async def connect(self) -> Client:
        """A client without TLS, whose flags are sent."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.opened.append(stream)
        client = Client(stream)
        assert await client.read(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES)
        return client

    async def begin(self) -> trio.SocketStream:
        """A connection on which TLS is to begin now."""
        client = await self.connect()
        await client.send(STARTTLS)
        reply = await client.option_reply()
        assert (reply.option, reply.kind) == (5, 1)
        assert isinstance(client.stream, trio.SocketStream)
        return client.stream

    async def secure(self, directory: Path | None = None) -> Client:
        """A client through TLS."""
        context = client_context(directory or self.pki.client)
        stream = trio.SSLStream(await self.begin(), context, server_hostname="localhost")
        await stream.do_handshake()
        return Client(stream)

    async def go(self, name: str = "disk", *, behind: bytes = b"") -> Client:
        """A client in transmission through TLS; `behind` goes out with the last option."""
        client = await self.secure()
        await client.send(wire.go(name) + behind)
        assert (await client.option_reply()).kind == 3
        assert (await client.option_reply()).kind == 1
        return client


@asynccontextmanager
async def serving_tls(
    table: ExportTable,
    pki: Pki,
    *,
    mode: TlsMode = TlsMode.REQUIRE,
    clients: ClientCertificates = ClientCertificates.OPTIONAL,
    limits: ServerLimits | None = None,
) -> AsyncIterator[Served]:
    """Serve `table` on a free port."""
    settings = TlsSettings(pki.server.certificate, pki.server.key, pki.ours.ca.certificate)
    certificates = Certificates(settings, [clients])
    server = NbdServer(limits)
    listener = listen_tcp(Address("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        frontend = FrontendTls(mode, lambda: certificates.context(clients))
        nursery.start_soon(server.serve, listener, table, frontend)
        served = Served(server, address_of(listener).port, pki)
        try:
            yield served
        finally:
            for stream in served.opened:
                stream.socket.close()
        nursery.cancel_scope.cancel()


async def sealed(stream: trio.SSLStream[trio.SocketStream], content: bytes) -> bytes:
    """Return a record with that content, which the stream has made and not sent."""
    ours, theirs = trio.testing.memory_stream_pair()
    transport, stream.transport_stream = stream.transport_stream, ours  # type: ignore[assignment]
    try:
        await stream.send_all(content)
    finally:
        stream.transport_stream = transport
    return bytes(await theirs.receive_some())
