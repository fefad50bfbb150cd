"""Under all that takes up memory, a daemon stays within what its named limits add up to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from bockd.drivers.local.volume.leafcache import CACHE_BYTES
from bockd.nbd.protocol.replies import MAX_STATUS_EXTENTS
from bockd.nbd.server.limits import TLS_BYTES, memory_bound_bytes
from tests.attach.tenant import Tenant
from tests.daemon.process import Bockd, serving
from tests.hostile.live import HANG_SECONDS, enter, received_until, resident_bytes
from tests.hostile.sessions import MIB, SET_META, STRUCTURED
from tests.nbd.protocol import wire
from tests.tls.configured import configuration
from tests.tls.conftest import Pki
from tests.tls.served import client_context

SIZE = 64 * MIB
CLIENTS_OF_A_KIND = 12
SENT_BYTES = 24 * MIB
"""By each client, or less if nobody takes it any more."""

STUCK_SECONDS = 0.5

PAIRS = 60
ECHO = wire.write(1, 0, bytes(4096)) + wire.request(0, 1, 0, 64 << 10)
"""Fills what TLS has for receiving, and what it has for sending."""

ROUND = 400
LEFT_BEHIND_BYTES = 8 << 10
"""By each connection at most, on average: its receive buffer alone takes as much when it is used,
its tasks and objects several times that."""

SLACK_BYTES = 64 * MIB
"""The engine's memory beside its leaves, stacks of threads, and what the allocator keeps."""

Kind = tuple[bytes, tuple[bytes, ...]]
"""What a client sends again and again, and the options that go before."""


def kinds(name: str) -> dict[str, Kind]:
    """On an export."""
    structured = (wire.option(STRUCTURED),)
    allocation = (*structured, wire.option(SET_META, wire.meta_data(name, "base:allocation")))
    return {
        "large reads": (wire.request(0, 1, 0, SIZE), ()),
        "large chunked reads": (wire.request(0, 1, 0, SIZE), structured),
        "reads": (wire.request(0, 1, 0, 256 << 10), ()),
        "large writes": (wire.request(1, 1, 0, 32 * MIB) + bytes(32 * MIB - 1), ()),
        "writes": (wire.write(1, 0, bytes(65_537)), ()),
        "block status": (wire.request(7, 1, 0, SIZE), allocation),
        "errors": (wire.request(99, 1), structured),
    }


class Enter(Protocol):
    """Come in by one of the frontends, after some options."""

    def __call__(self, *options: bytes) -> socket.socket: ...


@dataclass(frozen=True)
class Running:
    """A daemon with a volume every second block of which holds something."""

    daemon: Bockd
    export: str
    frontends: dict[str, Enter]


@pytest.fixture
def running(tmp_path: Path, pki: Pki) -> Iterator[Running]:
    config = configuration(tmp_path / "bockd.toml", pki.server, pki.ours, nbd="on")
    here = "127.0.0.1:0"
    with serving(
        tmp_path / "pool", nbd_listen=here, api_listen=here, config=config, is_forked=False
    ) as daemon:
        volume = daemon.bock("volume", "create", "v", "--size", f"{SIZE // MIB}M")["id"]
        blocks = range(0, 2 * MAX_STATUS_EXTENTS, 2)
        with enter(daemon.nbd_socket, "v") as sock:
            sock.sendall(b"".join(wire.write(1, block * 4096, b"x") for block in blocks))
            received_until(sock, 16 * len(blocks))
        name = Tenant(daemon).attach(volume).export
        tcp = ("127.0.0.1", daemon.nbd_port)
        frontends: dict[str, Enter] = {
            "unix": partial(enter, daemon.nbd_socket, name),
            "tcp": partial(enter, tcp, name),
            "tls": partial(enter, tcp, name, tls=client_context(pki.client)),
        }
        yield Running(daemon, name, frontends)


@pytest.mark.parametrize("frontend", ["unix", "tls"])
def test_memory_stays_within_the_limits(running: Running, frontend: str) -> None:
    daemon, come_in = running.daemon, running.frontends[frontend]
    base = resident_bytes(daemon.pid)
    sent_by = [kind for kind in kinds(running.export).values() for _ in range(CLIENTS_OF_A_KIND)]
    # All come before one is stuck: coming in is a fence, which drops those that are.
    with ExitStack() as held, ThreadPoolExecutor(len(sent_by)) as threads:
        innocent = held.enter_context(come_in())
        senders = [(held.enter_context(come_in(*options)), request) for request, options in sent_by]
        for sent in [threads.submit(_send, *sender) for sender in senders]:
            sent.result()
        innocent.sendall(wire.request(3, 1))
        received_until(innocent, 16)
    clients = len(sent_by) + 1
    bound = memory_bound_bytes(*((0, clients) if frontend == "tls" else (clients, 0)))
    peak = resident_bytes(daemon.pid, "VmHWM")
    print(f"peak {peak >> 20} MiB, bound {base + bound + CACHE_BYTES + SLACK_BYTES >> 20} MiB")
    assert peak <= base + bound + CACHE_BYTES + SLACK_BYTES


def test_tls_adds_no_more_than_its_limit(running: Running) -> None:
    """To clients that send more than is read, and take no replies. The same with and without."""
    daemon = running.daemon
    grown = {}
    for frontend in ("tcp", "tls"):
        with ExitStack() as held, ThreadPoolExecutor(PAIRS) as threads:
            socks = [held.enter_context(running.frontends[frontend]()) for _ in range(PAIRS)]
            before = resident_bytes(daemon.pid)
            for sent in [threads.submit(_send, sock, ECHO) for sock in socks]:
                sent.result()
            grown[frontend] = resident_bytes(daemon.pid) - before
    added = (grown["tls"] - grown["tcp"]) // PAIRS
    print(f"{added >> 10} KiB a connection, bound {TLS_BYTES >> 10} KiB")
    assert added <= TLS_BYTES


def test_connections_that_come_and_go_leave_no_memory_taken(running: Running) -> None:
    """Thousands of connections, each with something in flight when it goes."""
    daemon = running.daemon

    def come_and_go() -> int:
        for number in range(ROUND):
            with enter(daemon.nbd_socket, "v") as sock:
                sock.sendall(wire.write(1, 0, bytes(512)) + wire.request(0, 2, 0, 4096 * number))
        with enter(daemon.nbd_socket, "v") as sock:
            sock.sendall(wire.request(3, 1))
            received_until(sock, 16)
        return resident_bytes(daemon.pid)

    come_and_go()
    warm = come_and_go()
    for _ in range(3):
        last = come_and_go()
    print(f"{warm >> 10} KiB, and {3 * ROUND} connections later {last >> 10} KiB")
    assert last - warm <= 3 * ROUND * LEFT_BEHIND_BYTES


def _send(sock: socket.socket, request: bytes) -> None:
    """Again and again, and take no reply."""
    many = request * max(1, MIB // len(request))
    sock.settimeout(STUCK_SECONDS)
    with suppress(TimeoutError):
        for _ in range(max(1, SENT_BYTES // len(many))):
            sock.sendall(many)
    sock.settimeout(HANG_SECONDS)
