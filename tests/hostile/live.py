"""Conversations with a running server, from outside: whole ones, and such as are left half-way."""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.judge import GREETING
from tests.nbd.protocol import wire

Address = Path | tuple[str, int]
"""Of a Unix socket, or host and port."""

HANG_SECONDS = 60.0
"""A conversation that takes longer hangs: the largest one takes well under a second."""

RECEIVE_BYTES = 1 << 18

STARTTLS = wire.option(5)


def connect(address: Address) -> socket.socket:
    """A connected socket; waits while the backlog is full."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.connect(str(address) if isinstance(address, Path) else address)
        sock.settimeout(HANG_SECONDS)  # not before: a Unix socket would not wait for the backlog
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Heard:
    """The server's side of a conversation."""

    received: bytes
    reset: bool
    """It ended with a reset, which on TCP may cost bytes that were sent before it."""


def converse(address: Address, pieces: Sequence[bytes]) -> Heard:
    """Send the pieces one after another, taking answers meanwhile; then say that no more follows,
    and take answers until the server closes. AssertionError when it does not."""
    deadline = time.monotonic() + HANG_SECONDS
    received = bytearray()
    reset = False
    waiting = list(pieces)
    with connect(address) as sock:
        sock.setblocking(False)
        left = memoryview(b"")
        open_for_sending = True
        while True:
            if open_for_sending and not left:
                if waiting:
                    left = memoryview(waiting.pop(0))
                else:
                    open_for_sending = False
                    with suppress(OSError):  # gone already
                        sock.shutdown(socket.SHUT_WR)
            writers = [sock] if left else []
            readable, writable, _ = select.select([sock], writers, [], deadline - time.monotonic())
            assert readable or writable, "the server neither answers nor closes"
            try:
                if writable:
                    left = left[sock.send(left) :]
                if readable:
                    data = sock.recv(RECEIVE_BYTES)
                    if not data:
                        break
                    received += data
            except BlockingIOError:
                pass
            except BrokenPipeError:  # it has closed: what it said before can still be read
                left, waiting, open_for_sending = memoryview(b""), [], False
            except ConnectionResetError:
                reset = True
                break
    return Heard(bytes(received), reset)


def enter(
    address: Address, name: str, *options: bytes, tls: ssl.SSLContext | None = None
) -> socket.socket:
    """A socket in transmission on an export, through TLS if there is a context for it, after some
    options that are acknowledged."""
    sock = connect(address)
    try:
        assert received_until(sock, len(GREETING)) == GREETING
        sock.sendall(wire.FIXED_NEWSTYLE_NO_ZEROES)
        if tls is not None:
            sock.sendall(STARTTLS)
            acknowledged(sock)
            sock = tls.wrap_socket(sock, server_hostname="localhost")
        sock.sendall(b"".join(options) + wire.go(name))
        for _ in range(len(options) + 1):
            acknowledged(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def acknowledged(sock: socket.socket) -> None:
    """Take the answers to an option, up to the acknowledgement."""
    kind = 0
    while kind != 1:
        header = received_until(sock, 20)
        received_until(sock, int.from_bytes(header[16:]))
        kind = int.from_bytes(header[12:16])
        assert not kind >> 31, f"option refused: {kind:#x}"


def received_until(sock: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes. AssertionError when the server closes before."""
    data = bytearray()
    while len(data) < length:
        more = sock.recv(length - len(data))
        assert more, f"closed after {len(data)} of {length} bytes"
        data += more
    return bytes(data)


# -- the server's process ----------------------------------------------------------------------


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """A memory figure of a process from /proc/PID/status (VmHWM is its peak)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise AssertionError(f"no {field} of process {pid}")


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def sockets(pid: int) -> int:
    """How many of them are sockets."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return count
