"""Runs the application inside the daemon's own nursery, on a Unix socket only its owner may use.

The socket's file never exists with wider permissions than 0600: on Linux a socket's mode is set
on the descriptor before `bind`, and `bind` gives it to the file. A socket that a dead daemon left
behind is replaced; one that still answers is not. Two daemons cannot race for it, because
whoever serves a pool holds the pool's lock first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import trio
from fastapi import FastAPI

from api.connections import serve_connections
from bockd.errors import BockdError, InUseError, InvalidRequestError

SOCKET_MODE = 0o600

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path has 108 bytes, one of them for the final NUL."""

BACKLOG = 100
"""Connections that the kernel holds until we accept them."""


def check_socket_path(path: Path) -> None:
    """Raise InvalidRequestError if no Unix socket can have this path."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequestError(
            f"socket path {path} has {length} bytes, and the system allows "
            f"{MAX_SOCKET_PATH_BYTES}: choose a shorter data directory (BOCKD_DATA)"
        )


def clear_stale_socket(path: Path) -> None:
    """Remove the socket file of a daemon that is gone.

    Raises InUseError when a daemon still answers there, or when the file is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InUseError(f"{path} exists and is not a socket: move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a daemon with a full backlog is alive too
        refusal = probe.connect_ex(os.fspath(path))
    if refusal != errno.ECONNREFUSED:
        raise InUseError(f"a daemon already answers on {path}")
    path.unlink(missing_ok=True)


def bind_owner_only(path: Path) -> socket.socket:
    """A listening Unix socket at `path` with mode 0600. Raises BockdError."""
    check_socket_path(path)
    clear_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), SOCKET_MODE)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BockdError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """`bind_owner_only`, and the file is removed at the end, if it is still this one."""
    listener = bind_owner_only(path)
    ours = path.lstat()
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), ours):
                path.unlink()


async def serve_api(
    app: FastAPI,
    socket_path: Path,
    *,
    shutdown: Callable[[], Awaitable[None]] = trio.sleep_forever,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `socket_path` until `shutdown` returns (then requests get a moment to
    finish) or until cancelled. Reports started when clients can connect.

    Raises InUseError when a daemon answers there already, InvalidRequestError when the path is
    too long for a socket, BockdError when the directory does not admit it.
    """
    with listening(socket_path) as listener:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        task_status.started()
        await serve_connections(app, listeners, shutdown=shutdown)
