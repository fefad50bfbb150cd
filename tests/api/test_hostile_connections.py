"""Clients that send too much, too slowly or nonsense: each is ended in bounded time, for bounded
memory, while others are served."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from api.openstack.app import create_public_app

from .appserver import serving_app
from .memory_blockstorage import MemoryBlockStorage
from .memory_identity import MemoryIdentity

PATIENCE_SECONDS = 60.0
"""For what takes a moment on an idle machine."""

GET = b"GET /v2.0/tenants HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /v2.0/tokens HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    """The public API, which still answers an innocent client at the end."""
    with serving_app(create_public_app(MemoryBlockStorage(), MemoryIdentity())) as port:
        yield port
        assert answers(port)


def answers(port: int) -> bool:
    """Whether a client that has a question gets its answer."""
    answer = httpx.get(f"http://127.0.0.1:{port}/v2.0/tenants", timeout=PATIENCE_SECONDS)
    return answer.status_code == 401  # it has no token


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    client.settimeout(PATIENCE_SECONDS)
    return client


def until_closed(client: socket.socket) -> bytes:
    """All that comes before the server hangs up; TimeoutError when it does not."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return received


def send_endlessly(client: socket.socket, piece: bytes, limit: int) -> int:
    """Send until the server hangs up; how much it took. AssertionError beyond the limit."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < limit:
            sent += client.send(piece)
        raise AssertionError(f"the server took {sent} bytes")
    return sent


SOCKET_BYTES = 32 << 20
"""More than kernels hold between two sockets."""


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (POST + b"content-length: 4000000000\r\n\r\n", b"x" * 65536),
        (POST + b"transfer-encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 32768 + b"\r\n"),
        (POST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
        (POST + b"transfer-encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ", b"y" * 65536),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n" * 10_000),
        (b"GET /", b"z" * 65536),
    ],
    ids=["length", "chunks", "tiny chunks", "chunk extension", "header", "header lines", "path"],
)
def test_too_much_is_refused_before_it_is_read(port: int, head: bytes, piece: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with connect(port) as client:
        client.sendall(head)
        send_endlessly(client, piece, SOCKET_BYTES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 << 10, f"{grown} KiB"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: -1\r\n\r\n",
        b"content-length: +5\r\n\r\nhello",
        b"content-length: 1e3\r\n\r\n",
        b"content-length: 0x10\r\n\r\n",
        b"content-length: 5, 6\r\n\r\nhello",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"content-length: " + b"9" * 30 + b"\r\n\r\n",
        b"content-length: 5\r\ntransfer-encoding: gzip\r\n\r\nhello",
        b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n",
        b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\nx\r\n",
        b"transfer-encoding: chunked\r\n\r\n2\r\nxyz\r\n",
        b"bad header\r\n\r\n",
        b"a\x00b: c\r\n\r\n",
        b": empty\r\n\r\n",
    ],
)
def test_a_bad_request_is_refused_and_ended(port: int, head: bytes) -> None:
    with connect(port) as client:
        client.sendall(POST + head)
        client.shutdown(socket.SHUT_WR)
        answer = until_closed(client)
    assert not answer.startswith(b"HTTP/1.1 2"), answer
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 501"), answer


def trickle(client: socket.socket, data: bytes) -> bool:
    """Send a byte; False when the server has hung up."""
    try:
        client.send(data)
        client.setblocking(False)
        return client.recv(65536) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        client.settimeout(PATIENCE_SECONDS)


def test_slow_headers_are_ended_and_hold_up_nobody(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little comes at a time, and however often."""
    monkeypatch.setattr("api.connections.IDLE_SECONDS", 0.5)
    with serving_app(create_public_app(MemoryBlockStorage(), MemoryIdentity())) as quick:
        slow = [connect(quick) for _ in range(50)]
        deadline = time.monotonic() + PATIENCE_SECONDS
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\nx: ")
        while slow:
            assert time.monotonic() < deadline, f"{len(slow)} are still connected"
            assert answers(quick)
            for client in slow[:]:
                if not trickle(client, b"y"):
                    client.close()
                    slow.remove(client)


def test_slow_bodies_are_ended_by_name(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.intake.BODY_TIMEOUT_SECONDS", 0.2)
    with connect(port) as client:
        client.sendall(POST + b"content-length: 100\r\n\r\n{")
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 400")  # the documents know no 408
    assert b"the body did not arrive within 0.2 seconds" in answer


def test_pipelined_requests_are_answered_in_turn(port: int) -> None:
    count = 500
    with connect(port) as client:
        client.sendall(GET * count)
        answer = b""
        while answer.count(b"HTTP/1.1 401") < count:
            data = client.recv(65536)
            assert data, f"closed after {answer.count(b'HTTP/1.1 401')}"
            answer += data


def test_http_2_is_not_spoken(port: int) -> None:
    """Neither to who asks for it, who is answered in HTTP/1.1 and may go on, nor to who begins with
    it, though it be with whole frames."""
    ask = GET[:-2] + (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    )
    with connect(port) as client:
        client.sendall(ask + GET[:-2] + b"connection: close\r\n\r\n")
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 401")
    assert answer.count(b"HTTP/1.1 ") == 2
    settings, ping = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0" + b"ping" * 2
    with connect(port) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + ping * 1000)
        answer = until_closed(client)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert b"ping" not in answer


def test_idle_connections_make_room_for_a_request(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many more idle connections than there may be: a client with a question comes in."""
    monkeypatch.setattr("api.connections.MAX_CONNECTIONS", 20)
    idle = [connect(port) for _ in range(100)]
    try:
        for _ in range(5):
            assert answers(port)
        gone = 0
        for client in idle:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                gone += client.recv(1) == b""
        assert gone >= 80
    finally:
        for client in idle:
            client.close()


def test_a_connection_beyond_the_busy_ones_gets_503(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.connections.MAX_CONNECTIONS", 3)
    busy = [connect(port) for _ in range(3)]
    try:
        for client in busy:
            client.sendall(POST + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")
        with connect(port) as late:
            assert until_closed(late).startswith(b"HTTP/1.1 503")
    finally:
        for client in busy:
            client.close()
