"""Under all that takes up memory, a daemon stays within what its named limits add up to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bockd.engine.leafcache import CACHE_BYTES
from bockd.nbd.replies import MAX_STATUS_EXTENTS
from bockd.server.limits import memory_bound_bytes
from tests.daemon.process import Bockd, serving
from tests.hostile.live import HANG_SECONDS, enter, received_until, resident_bytes
from tests.hostile.sessions import MIB, SET_META, STRUCTURED
from tests.nbd import wire

SIZE = 64 * MIB
CLIENTS_OF_A_KIND = 12
SENT_BYTES = 24 * MIB
"""By each client, or less if nobody takes it any more."""

STUCK_SECONDS = 0.5

ROUND = 400
LEFT_BEHIND_BYTES = 8 << 10
"""By each connection at most, on average: its receive buffer alone takes as much when it is used,
its tasks and objects several times that."""

SLACK_BYTES = 64 * MIB
"""The engine's memory beside its leaves, stacks of threads, and what the allocator keeps."""

ALLOCATION = (
    wire.option(STRUCTURED),
    wire.option(SET_META, wire.meta_data("v", "base:allocation")),
)

KINDS = {
    "large reads": (wire.request(0, 1, 0, SIZE), ()),
    "large chunked reads": (wire.request(0, 1, 0, SIZE), ALLOCATION[:1]),
    "reads": (wire.request(0, 1, 0, 256 << 10), ()),
    "large writes": (wire.request(1, 1, 0, 32 * MIB) + bytes(32 * MIB - 1), ()),
    "writes": (wire.write(1, 0, bytes(65_537)), ()),
    "block status": (wire.request(7, 1, 0, SIZE), ALLOCATION),
    "errors": (wire.request(99, 1), ALLOCATION[:1]),
}
"""What a client sends again and again, and the options that go before."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Bockd]:
    """With a volume every second block of which holds something."""
    with serving(tmp_path / "pool") as running:
        running.bock("volume", "create", "v", "--size", f"{SIZE // MIB}M")
        blocks = range(0, 2 * MAX_STATUS_EXTENTS, 2)
        with enter(running.nbd_socket, "v") as sock:
            sock.sendall(b"".join(wire.write(1, block * 4096, b"x") for block in blocks))
            received_until(sock, 16 * len(blocks))
        yield running


def test_memory_stays_within_the_limits(daemon: Bockd) -> None:
    base = resident_bytes(daemon.pid)
    # All come before one is stuck: coming in is a fence, which drops those that are.
    with ExitStack() as held, ThreadPoolExecutor(len(KINDS) * CLIENTS_OF_A_KIND) as threads:
        innocent = held.enter_context(enter(daemon.nbd_socket, "v"))
        senders = [
            (held.enter_context(enter(daemon.nbd_socket, "v", *options)), request)
            for request, options in KINDS.values()
            for _ in range(CLIENTS_OF_A_KIND)
        ]
        for sent in [threads.submit(_send, *sender) for sender in senders]:
            sent.result()
        innocent.sendall(wire.request(3, 1))
        received_until(innocent, 16)
    bound = memory_bound_bytes(len(KINDS) * CLIENTS_OF_A_KIND + 1)
    peak = resident_bytes(daemon.pid, "VmHWM")
    print(f"peak {peak >> 20} MiB, bound {base + bound + CACHE_BYTES + SLACK_BYTES >> 20} MiB")
    assert peak <= base + bound + CACHE_BYTES + SLACK_BYTES


def test_those_who_come_and_go_leave_nothing_behind(daemon: Bockd) -> None:
    """Thousands of connections, each with something in flight when it goes."""

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
