"""Listening on TCP, and accepting in bad times. (Unix sockets: bockd.unixsocket.)"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from bockd.config import Address
from bockd.errors import InUseError, UnavailableError
from bockd.nbd.server.limits import ACCEPT_PAUSE_SECONDS, ACCEPTS_OF_A_TURN
from bockd.unixsocket import BACKLOG

log = logging.getLogger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen_tcp(address: Address, elsewhere: str = "") -> socket.socket:
    """Create a listening TCP socket. Raises InUseError for a port that is taken, UnavailableError
    for an address that is not ours. `elsewhere` tells in their message how to choose another
    address."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found[0]
        listener = socket.create_server(where, family=family, backlog=BACKLOG)
    except OSError as error:
        kind = InUseError if error.errno == errno.EADDRINUSE else UnavailableError
        # Python adds the address, which is told already.
        reason = (error.strerror or str(error)).partition(" (while ")[0]
        hint = f"; {elsewhere}" if elsewhere else ""
        raise kind(f"cannot listen on {address}: {reason}{hint}") from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> Address:
    """Return the address of a TCP listener, with the port that the kernel chose."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


async def accept_from(
    listener: socket.socket, greet: Callable[[socket.socket], Awaitable[None]]
) -> None:
    """Accept for ever, handing each client to `greet`, which must not wait for it."""
    accepted = 0
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener.fileno())
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                log.warning("cannot accept a client now: %s", error.strerror)
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
            else:  # the client gave up before it was accepted
                await trio.lowlevel.checkpoint()
        else:
            await greet(client)
            accepted += 1
            if accepted % ACCEPTS_OF_A_TURN == 0:
                await trio.lowlevel.checkpoint()
