"""Listening sockets: a Unix socket that only its owner can reach, TCP, and accepting in bad times.

A Unix socket gets its mode before it gets its name, and its name by a rename, so that there is no
moment in which others could connect; a stale one is replaced, one that somebody listens on is not.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from bockd.config import Address
from bockd.errors import ConflictError, InUseError, InvalidRequestError, UnavailableError
from bockd.server.limits import ACCEPT_PAUSE_SECONDS

log = logging.getLogger(__name__)

BACKLOG = 128
"""Clients that may wait to be accepted: all connections of a busy host starting at once."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket at `path`, mode 0600.

    Raises InUseError when somebody listens there, ConflictError when something else has the name,
    InvalidRequestError when the path is too long or its directory cannot be written.
    """
    _check_unused(path)
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # Linux gives the name the mode of the descriptor; before bind nobody can connect.
        os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        listener.bind(temporary)
        listener.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError as error:
        listener.close()
        if os.path.lexists(temporary):
            os.unlink(temporary)
        reason = error.strerror or str(error)
        raise InvalidRequestError(f"cannot listen on {path}: {reason}") from error
    return listener


def _check_unused(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"{path} exists and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # left behind by a process that died
        except BlockingIOError:
            pass  # somebody listens and is busy
        except OSError as error:
            raise InUseError(f"{path}: {error.strerror}") from error
    raise InUseError(f"another process listens on {path}; stop it or choose another directory")


def listen_tcp(address: Address) -> socket.socket:
    """A listening TCP socket. Raises InUseError for a port that is taken, UnavailableError for an
    address that is not ours."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found[0]
        listener = socket.create_server(where, family=family, backlog=BACKLOG)
    except OSError as error:
        kind = InUseError if error.errno == errno.EADDRINUSE else UnavailableError
        raise kind(f"cannot listen on {address}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where a TCP listener listens, with the port that the kernel chose."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


async def accept_from(
    listener: socket.socket, greet: Callable[[socket.socket], Awaitable[None]]
) -> None:
    """Accept for ever, handing each client to `greet`, which must not wait for it."""
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
            await trio.lowlevel.checkpoint()
