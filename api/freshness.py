"""Where several daemons share an index, a request is answered by what was committed anywhere before
it came: that is awaited before anything is looked up, a token to begin with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from bockd.errors import BockdError

Refresh = Callable[[], Awaitable[None]]
"""Returns when what anybody has committed before the call is visible. Raises BockdError."""

FaultOfError = Callable[[BockdError], ASGIApp]
"""Makes the answer for an error."""


class Freshness:
    """The ASGI middleware that awaits it."""

    def __init__(self, app: ASGIApp, refresh: Refresh, fault_of_error: FaultOfError) -> None:
        self._app = app
        self._refresh = refresh
        self._fault_of_error = fault_of_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._refresh()
            except BockdError as error:
                await self._fault_of_error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
