"""Any application on a real TCP socket of its own, for clients that know nothing of trio."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import trio
from starlette.types import ASGIApp

from api.serve import serve_public

START_SECONDS = 60.0


@contextmanager
def serving_app(app: ASGIApp) -> Iterator[int]:
    """Serve `app`; its port."""
    started = threading.Event()
    stops: list[Callable[[], None]] = []

    async def main() -> None:
        stop, token = trio.Event(), trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        started.set()
        await serve_public(app, listener, shutdown=stop.wait)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        with ThreadPoolExecutor(1) as threads:
            finished = threads.submit(trio.run, main)
            assert started.wait(START_SECONDS)
            try:
                yield listener.getsockname()[1]
            finally:
                if not finished.done():
                    stops[0]()
                finished.result()
