"""The dashboard's listener: the configured one, or one that is opened when a link is asked for and
closed when no link and no session is left.

On the loopback interface it goes by a random name below `localhost`, which browsers resolve by
themselves (RFC 6761, section 6.3). A browser sends cookies to all ports of a host, and on one of
these another local user may listen: to a name that nobody else knows it sends them to us only.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import trio
from starlette.types import ASGIApp

from api.dashboard.guard import ENTRY_PATH
from api.dashboard.sessions import LINK_SECONDS, Sessions
from api.serve import serve_public
from bockd.config import Address
from bockd.config.sections import DashboardSettings
from bockd.dashboardcontrol import DashboardLink
from bockd.model import TlsMode
from bockd.nbd.server.listener import address_of, listen_tcp
from bockd.nbd.server.tls import NO_TLS, FrontendTls

ANY_LOOPBACK_PORT = Address("127.0.0.1", 0)

DEFAULT_PORTS = {"http": 80, "https": 443}
"""What a browser leaves out of `Host` and `Origin`."""

NAME_BYTES = 8
"""Of the random name: guesses are requests to the dashboard."""

BuildApp = Callable[[str, Sessions], ASGIApp]
"""Makes the application that is served at an origin, for whom the sessions admit."""


class Dashboard:
    """Implements bockd.dashboardcontrol.DashboardControl while `run` runs."""

    def __init__(self, settings: DashboardSettings, build: BuildApp, tls: FrontendTls) -> None:
        self._settings = settings
        self._build = build
        self._tls = tls
        self._sessions = Sessions()
        self._nursery: trio.Nursery
        self._turn = trio.Lock()
        self.origin: str | None = None
        """Where it is served; None: nowhere now."""

    async def run(
        self,
        listener: socket.socket | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on the configured listener, which the caller closes, or on one of our own when
        somebody asks; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            if listener is not None:
                await self._nursery.start(self._serve, listener, trio.sleep_forever, self._tls)
            task_status.started()
            await trio.sleep_forever()

    async def make_link(self) -> DashboardLink:
        # The link is there first, or a listener without one would close.
        secret = self._sessions.new_link()
        async with self._turn:
            if self.origin is None:
                await self._nursery.start(self._serve_for_now)
            return DashboardLink(f"{self.origin}{ENTRY_PATH}#{secret}", LINK_SECONDS)

    async def _serve_for_now(self, *, task_status: trio.TaskStatus[None]) -> None:
        with listen_tcp(ANY_LOOPBACK_PORT) as listener:
            await self._serve(listener, self._until_unused, NO_TLS, task_status=task_status)

    async def _until_unused(self) -> None:
        await self._sessions.until_none()
        self.origin = None

    async def _serve(
        self,
        listener: socket.socket,
        shutdown: Callable[[], Awaitable[None]],
        tls: FrontendTls,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        self.origin = origin_of(self._settings, address_of(listener))
        await serve_public(
            self._build(self.origin, self._sessions),
            listener,
            tls=None if tls.mode is TlsMode.OFF else tls.context,
            shutdown=shutdown,
            task_status=task_status,
        )


def origin_of(settings: DashboardSettings, address: Address) -> str:
    """Return the origin, as a browser writes it, of a listener at `address`."""
    if settings.listen is not None and settings.public_url is not None:
        return as_browsers_write(settings.public_url)
    if settings.listen is None or settings.tls is TlsMode.OFF:
        return f"http://bockd-{secrets.token_hex(NAME_BYTES)}.localhost:{address.port}"
    return as_browsers_write(f"https://{Address(settings.listen.host, address.port)}")


def as_browsers_write(url: str) -> str:
    """Return a URL of a host in lower case, and without the port that its scheme implies."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{DEFAULT_PORTS[parts.scheme]}')}"
