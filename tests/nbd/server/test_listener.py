"""Listening sockets: who may connect, stale sockets, and running out of descriptors."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from bockd.config import Address
from bockd.errors import (
    BockdError,
    ConflictError,
    DeviceError,
    InUseError,
    InvalidRequestError,
    UnavailableError,
)
from bockd.nbd.server.channel import find_dead_peers
from bockd.nbd.server.exports import NoExports
from bockd.nbd.server.limits import ACCEPT_PAUSE_SECONDS, ServerLimits
from bockd.nbd.server.listener import accept_from, address_of, listen_tcp
from bockd.nbd.server.nbd_server import NbdServer
from bockd.unixsocket import listen_unix
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_jumping_time, in_trio


def test_only_the_owner_may_connect(path: Path) -> None:
    before = os.umask(0)
    try:
        with listen_unix(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.listdir(path.parent) == [path.name]
    finally:
        os.umask(before)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    listen_unix(path).close()
    assert path.exists()
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_is_not_replaced(path: Path) -> None:
    with listen_unix(path), pytest.raises(InUseError):
        listen_unix(path)


def test_another_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConflictError):
        listen_unix(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "error"), [("x" * 200, InvalidRequestError), ("missing/nbd.sock", DeviceError)]
)
def test_a_socket_path_that_cannot_be_is_refused(
    tmp_path: Path, name: str, error: type[BockdError]
) -> None:
    with pytest.raises(error):
        listen_unix(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_taken_port_is_refused_by_its_number() -> None:
    with listen_tcp(Address("127.0.0.1", 0)) as first:
        taken = address_of(first)
        assert taken.port
        with pytest.raises(InUseError, match=str(taken.port)):
            listen_tcp(taken)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UnavailableError):
        listen_tcp(Address("192.0.2.1", 0))


@in_trio
async def test_tcp_lists_and_opens_nothing_yet() -> None:
    listener = listen_tcp(Address("127.0.0.1", 0))
    port = address_of(listener).port
    async with trio.open_nursery() as nursery:
        nursery.start_soon(NbdServer().serve, listener, NoExports())
        client = Client(await trio.open_tcp_stream("127.0.0.1", port))
        await client.read(18)
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(3))
        assert (await client.option_reply()).kind == 1
        await client.send(wire.go("disk"))
        assert (await client.option_reply()).kind == 0x80000006
        await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


@in_trio
async def test_tcp_serves_its_own_table(exports: FixedExports) -> None:
    listener = listen_tcp(Address("127.0.0.1", 0))
    port = address_of(listener).port
    data = bytes(range(256)) * 8000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(NbdServer().serve, listener, exports)
        client = Client(await trio.open_tcp_stream("127.0.0.1", port))
        await client.read(18)
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk"))
        assert [(await client.option_reply()).kind for _ in range(2)] == [3, 1]
        for length in (1, 4096, len(data)):
            assert await client.write(7, data[:length]) == 0
            assert await client.read_data(7, length) == data[:length]
        await client.send(wire.request(2))
        assert await client.closes() == b""
        await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


@in_trio
async def test_the_kernel_probes_clients_that_say_nothing(exports: FixedExports) -> None:
    """proc_pid_net(5): the server's side of the connection has a keepalive timer, which goes off
    within half of the limit; the other half is for its probes."""
    listener = listen_tcp(Address("127.0.0.1", 0))
    port = address_of(listener).port
    async with trio.open_nursery() as nursery:
        limits = ServerLimits(keepalive_seconds=200)
        nursery.start_soon(NbdServer(limits).serve, listener, exports)
        client = Client(await trio.open_tcp_stream("127.0.0.1", port))
        await client.read(18)
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk"))
        assert [(await client.option_reply()).kind for _ in range(2)] == [3, 1]
        theirs = client.stream.socket.getsockname()[1]
        while (timer := _timer(port, theirs))[0] != KEEPALIVE:
            await trio.testing.wait_all_tasks_blocked(0.01)  # something is not acknowledged yet
        assert 0 < timer[1] <= 100 * os.sysconf("SC_CLK_TCK")
        await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


def test_dead_peers_are_found_in_time() -> None:
    with listen_tcp(Address("127.0.0.1", 0)) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as ours:
            for keepalive, user_timeout in [(900, 0), (10, 7)]:
                find_dead_peers(
                    ours, keepalive_seconds=keepalive, user_timeout_seconds=user_timeout
                )
                idle, interval, probes = (
                    ours.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                )
                assert keepalive / 2 <= idle + interval * probes <= keepalive * 1.5
                found = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert found == user_timeout * 1000


KEEPALIVE = 2
"""A kind of timer in /proc/net/tcp."""


def _timer(local_port: int, remote_port: int) -> tuple[int, int]:
    """The timer of a TCP connection on the loopback interface: its kind, and the clock ticks until
    it goes off."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = line.split()
        ports = [int(address.split(":")[1], 16) for address in (local, remote)]
        if ports == [local_port, remote_port]:
            kind, ticks = timer.split(":")
            return int(kind, 16), int(ticks, 16)
    raise AssertionError("there is no such connection")


class FailingListener:
    """A listener whose first accepts fail as they do when descriptors run out."""

    def __init__(self, listener: socket.socket, errors: list[int]) -> None:
        self._listener = listener
        self._errors = errors
        self.fileno = listener.fileno

    def accept(self) -> tuple[socket.socket, object]:
        if self._errors:
            number = self._errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._listener.accept()


@in_jumping_time
async def test_accepting_survives_a_lack_of_descriptors() -> None:
    with listen_tcp(Address("127.0.0.1", 0)) as listener:
        failing = FailingListener(listener, [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE])
        accepted = trio.Event()

        async def greet(client: socket.socket) -> None:
            client.close()
            accepted.set()

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_from, cast(socket.socket, failing), greet)
            async with await trio.open_tcp_stream("127.0.0.1", address_of(listener).port):
                await accepted.wait()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - start >= 2 * ACCEPT_PAUSE_SECONDS
