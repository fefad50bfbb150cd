"""Runs the application inside the daemon's own nursery, on a Unix socket only its owner may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from fastapi import FastAPI

from api.connections import serve_connections
from bockd.unixsocket import listening_unix


async def serve_api(
    app: FastAPI,
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
