"""An application that is built when it is asked for the first time: one with dozens of routes takes
some tenths of a second of processor time, and some daemons are never asked."""

from __future__ import annotations

from collections.abc import Callable

import trio
from starlette.types import ASGIApp, Receive, Scope, Send


class OnRequest:
    """Does what the application that `build` returns does. `build` runs once, in a thread, and is
    tried again by the next request if it raises."""

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self._build = build
        self._turn = trio.Lock()
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await self._built()
        await app(scope, receive, send)

    async def _built(self) -> ASGIApp:
        async with self._turn:
            if self._app is None:
                self._app = await trio.to_thread.run_sync(self._build)
            return self._app
