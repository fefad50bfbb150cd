"""Runs the applications inside the daemon's own nursery: both APIs on a Unix socket that only its
owner may use, the public one also on a TCP socket, and what watches the daemon (`api.metrics`) on
another one.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from starlette.types import ASGIApp

from api.connections import serve_connections
from bockd.unixsocket import listening_unix


async def serve_api(
    app: ASGIApp,
    socket_path: Path,
    *,
    shutdown: Callable[[], Awaitable[None]] = trio.sleep_forever,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `socket_path` until `shutdown` returns (then requests get a moment to
    finish) or until cancelled. Reports started when clients can connect.

    Raises what `listen_unix` raises.
    """
    with listening_unix(socket_path) as listener:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        task_status.started()
        await serve_connections(app, listeners, shutdown=shutdown)


async def serve_public(
    app: ASGIApp,
    *listening: socket.socket,
    tls: Callable[[], ssl.SSLContext] | None = None,
    max_connections: int | None = None,
    shutdown: Callable[[], Awaitable[None]] = trio.sleep_forever,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on sockets that listen already and that the caller closes; over HTTPS if there is
    `tls`, which gives the context for a client that is there now. Else as `serve_api`."""
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in listening]
    task_status.started()
    await serve_connections(
        app, listeners, shutdown=shutdown, tls=tls, max_connections=max_connections
    )
