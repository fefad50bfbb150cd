"""Too much, too slow, and without end: what clients do to a running daemon by the mere amount.

Beside each attack two innocent clients are at work; afterwards nothing has leaked.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest

from bockd.nbd.server.limits import MAX_CONNECTIONS
from tests.hostile.conftest import VOLUME_BYTES, Attacked
from tests.hostile.judge import GREETING
from tests.hostile.live import HANG_SECONDS, connect, enter, received_until
from tests.hostile.sessions import EXTENDED, LIST, MIB, SET_META, STRUCTURED, Target
from tests.nbd.protocol import wire

DROPPED = 10_000
SLOW = 40
"""Clients of one slow kind at a time."""

SLOW_BYTES = 8 * MIB
"""What each of them sends at most; the kernel keeps less of it than that."""

OPTIONS = 20_000
"""A second's work and more, were nobody else served meanwhile."""


@pytest.mark.parametrize("frontend", ["unix", "tcp"])
def test_connections_opened_and_dropped(attacked: Attacked, frontend: str) -> None:
    """Ten thousand, over both frontends together, left at various points."""
    name = attacked.target.name
    openings = [
        b"",
        b"\0\0",
        wire.FIXED_NEWSTYLE_NO_ZEROES,
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go(name)[:-1],
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("nowhere"),
        wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go(name),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    with attacked.under_attack():
        for number in range(DROPPED // 2):
            with connect(attacked.frontends[frontend]) as sock, suppress(BrokenPipeError):
                sock.sendall(openings[number % len(openings)])


@pytest.mark.parametrize("frontend", ["unix", "tcp"])
def test_half_open_handshakes(attacked: Attacked, frontend: str) -> None:
    """More than there may be connections; innocent clients come and go all the same."""
    attacked.daemon.expect_in_log("WARNING .*refused a client")
    with attacked.under_attack(), ExitStack() as held:
        for number in range(MAX_CONNECTIONS + 100):
            sock = held.enter_context(connect(attacked.frontends[frontend]))
            if number % 2:
                with suppress(OSError):  # it has had to make room already
                    sock.sendall(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("nowhere")[:-1])
        for _ in range(50):
            with enter(attacked.unix, "elsewhere") as newcomer:
                newcomer.sendall(wire.request(3, 1))
                received_until(newcomer, 16)


@pytest.mark.parametrize(
    "option",
    [
        wire.option(77),
        wire.option(LIST),
        wire.option(6, wire.info_data("elsewhere", 1, 2, 3)),
        wire.option(STRUCTURED) + wire.option(SET_META, wire.meta_data("x", *["base:"] * 64)),
    ],
    ids=["unknown", "list", "info", "meta contexts"],
)
def test_option_floods(attacked: Attacked, option: bytes) -> None:
    """As many as the server takes, by several clients at once, which take all answers."""
    flood = wire.FIXED_NEWSTYLE_NO_ZEROES + option * (OPTIONS * 16 // len(option)) + wire.option(2)

    def send(sock: socket.socket) -> None:
        sock.sendall(flood)

    with attacked.under_attack(), ThreadPoolExecutor(6) as threads, ExitStack() as held:
        socks = [held.enter_context(connect(attacked.unix)) for _ in range(3)]
        sending = [threads.submit(send, sock) for sock in socks]
        for ended in [threads.submit(_drained, sock) for sock in socks]:
            assert ended.result().startswith(GREETING)
        for sent in sending:
            sent.result()


def _drained(sock: socket.socket) -> bytes:
    """Take everything until the server closes; how it began."""
    start = b""
    while data := sock.recv(1 << 20):
        start = start or data
    return start


@dataclass(frozen=True)
class Slow:
    """A client in transmission that does not go on."""

    sends: bytes
    again: bytes = b""
    """And this, until nobody takes it any more."""


SLOW_CLIENTS = {
    "header then silence": Slow(wire.request(1, 1, 0, 4096)),
    "half a payload": Slow(wire.request(1, 1, 0, 65_536) + bytes(30_000)),
    "half a large payload": Slow(wire.request(1, 1, 0, 2 * MIB) + bytes(MIB + 1)),
    "half a refused payload": Slow(wire.request(1, 1, 1 << 40, 60 * MIB) + bytes(MIB)),
    "half a header": Slow(b"\x25\x60"),
    "reads, and takes nothing": Slow(b"", wire.request(0, 1, 0, 4096) * 64),
    "large reads, and takes nothing": Slow(b"", wire.request(0, 1, 0, VOLUME_BYTES) * 8),
    "writes, and takes no reply": Slow(b"", (wire.request(1, 1, 0, 512) + bytes(512)) * 64),
    "large writes, and takes no reply": Slow(b"", wire.write(1, 0, bytes(65_537))),
    "flushes, and takes no reply": Slow(b"", wire.request(3, 1) * 512),
}


@pytest.mark.parametrize("kind", SLOW_CLIENTS)
def test_slow_clients(attacked: Attacked, kind: str) -> None:
    """Forty of a kind at once, until the server takes nothing more from them."""
    slow, name = SLOW_CLIENTS[kind], attacked.target.name
    frontends = list(attacked.frontends.values())
    with attacked.under_attack(), ExitStack() as held, ThreadPoolExecutor(SLOW) as threads:
        # All come before one is stuck: coming in is a fence, which drops those that are.
        socks = [held.enter_context(enter(frontends[number % 2], name)) for number in range(SLOW)]
        for sent in [threads.submit(_send_until_stuck, sock, slow) for sock in socks]:
            sent.result()


def _send_until_stuck(sock: socket.socket, slow: Slow) -> None:
    sock.settimeout(0.2)  # nobody takes it any more, or is only slow: either will do
    with suppress(TimeoutError, ConnectionError):
        sock.sendall(slow.sends)
        for _ in range(SLOW_BYTES // len(slow.again) if slow.again else 0):
            sock.sendall(slow.again)
    sock.settimeout(HANG_SECONDS)


@pytest.mark.parametrize("length", [4096, 65_536, 300_000], ids=["small", "inline", "large"])
def test_a_byte_at_a_time(attacked: Attacked, length: int) -> None:
    """Requests that come a byte at a time are carried out like any other."""
    count = 1 if length > 4096 else 4
    stream = b"".join(
        wire.write(number, number * length, bytes([number + 1]) * length) for number in range(count)
    )
    with attacked.under_attack(), enter(attacked.frontends["tcp"], attacked.target.name) as sock:
        for position in range(len(stream)):
            sock.send(stream[position : position + 1])
        for number in range(count):
            assert received_until(sock, 16) == b"\x67\x44\x66\x98" + bytes(4) + _u64(number)
        sock.sendall(wire.request(0, 9, 0, count * length))
        data = received_until(sock, 16 + count * length)[16:]
        assert data == b"".join(bytes([number + 1]) * length for number in range(count))


def _u64(number: int) -> bytes:
    return number.to_bytes(8)


# -- a few bytes that ask for a great deal -----------------------------------------------------

HUGE_BYTES = 16 << 40


@pytest.fixture(scope="package")
def huge(attacked: Attacked) -> Target:
    """The largest volume there is."""
    attacked.daemon.bock("volume", "create", "huge", "--size", "16T")
    return Target("huge", HUGE_BYTES, HUGE_BYTES)


@pytest.mark.parametrize("command", [4, 5, 6, 7], ids=["trim", "cache", "zeroes", "status"])
def test_requests_for_sixteen_tebibytes_hold_up_nobody(
    attacked: Attacked, huge: Target, command: int
) -> None:
    """Each names all of 16 TiB, and there are many in one piece."""
    count = 200 if command in (5, 7) else 2
    allocation = wire.option(SET_META, wire.meta_data(huge.name, "base:allocation"))
    requests = b"".join(wire.extended(command, n, 0, huge.size) for n in range(count))
    with (
        attacked.under_attack(),
        enter(attacked.unix, huge.name, wire.option(EXTENDED), allocation) as sock,
    ):
        sock.sendall(requests)
        for _ in range(count):
            header = received_until(sock, 32)
            received_until(sock, int.from_bytes(header[24:]))
            assert header[6:8] in (b"\0\0", b"\0\6")


def test_many_small_requests_at_once(attacked: Attacked) -> None:
    """As many as fit a receive buffer, again and again, by several clients."""
    kinds = [wire.request(command, 1, 0, 4096) * 10_000 for command in (3, 99)]
    kinds += [wire.request(command, 1, 0, 4096) * 500 for command in (4, 5, 6)]

    def ask(sock: socket.socket, request: bytes) -> int:
        answered = 0
        sock.sendall(request + wire.request(2))
        while data := sock.recv(1 << 20):
            answered += len(data)
        return answered

    with (
        attacked.under_attack(),
        ThreadPoolExecutor(len(kinds)) as threads,
        ExitStack() as held,
    ):
        # All come before one is busy: coming in is a fence, which waits for what was asked before.
        name = attacked.target.name
        socks = [held.enter_context(enter(attacked.unix, name)) for _ in kinds]
        expected = [16 * len(kind) // 28 for kind in kinds]
        assert list(threads.map(ask, socks, kinds)) == expected
