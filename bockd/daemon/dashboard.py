"""The dashboard's listener: the configured one, or one that is opened when a link is asked for and
closed when no link and no session is left.

On the loopback interface it goes by a random name below `localhost`, which browsers resolve by
themselves (RFC 6761, section 6.3). A browser sends cookies to all ports of a host, and on one of
these another local user may listen: to a name that nobody else knows it sends them to us only.
The name leads to both addresses of that interface, of which a browser tries one first: so the
dashboard listens at both, or another user could at the one that is left.
"""

from __future__ import annotations

import errno
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import trio
from starlette.types import ASGIApp

from api.dashboard.paths import ENTRY_PATH
from api.dashboard.sessions import LINK_SECONDS, Sessions
from bockd import logcontext
from bockd.config import Address
from bockd.config.sections import DashboardSettings
from bockd.daemon.loading import Loading
from bockd.dashboardcontrol import DashboardLink
from bockd.errors import InUseError, UnavailableError
from bockd.model import TlsMode
from bockd.nbd.server.listener import address_of, listen_tcp
from bockd.nbd.server.tls import NO_TLS, FrontendTls

log = logging.getLogger(__name__)

LOOPBACK, LOOPBACK_6 = "127.0.0.1", "::1"

PORTS_TRIED = 32
"""Of those that the kernel chooses: at the other address one may be taken."""

DEFAULT_PORTS = {"http": 80, "https": 443}
"""What a browser leaves out of `Host` and `Origin`."""

NAME_BYTES = 8
"""Of the random name: guesses are requests to the dashboard."""

LACKS_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

ALSO_THERE = "the dashboard's name leads there, too: set dashboard.listen to another port"

BuildApp = Callable[[str, Sessions], ASGIApp]
"""Makes the application that is served at an origin, for whom the sessions admit."""


class Dashboard:
    """Implements bockd.dashboardcontrol.DashboardControl while `run` runs."""

    def __init__(
        self, settings: DashboardSettings, build: BuildApp, tls: FrontendTls, loading: Loading
    ) -> None:
        self._settings = settings
        self._loading = loading
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
        somebody asks; until cancelled. Reports started when the listener has its origin; it is
        served once `loading` is done."""
        with self._beside(listener) as listeners:
            async with trio.open_nursery() as self._nursery:
                if listeners:
                    self.origin = self._origin_of(listeners)
                    self._nursery.start_soon(
                        self._serve, self.origin, listeners, trio.sleep_forever, self._tls
                    )
                task_status.started()
                await trio.sleep_forever()

    def told_to_all(self, listener: socket.socket | None) -> str | None:
        """Return where the configured listener is, without the random name: everybody may read what
        the daemon says when it begins. None: there is none."""
        if listener is None or not goes_by_random_name(self._settings):
            return self.origin
        return f"http://{address_of(listener)}/"

    async def make_link(self) -> DashboardLink:
        # The link is there first, or a listener without one would close.
        secret = self._sessions.new_link()
        log.info("a link to the dashboard was made")
        async with self._turn:
            if self.origin is None:
                await self._nursery.start(self._serve_for_now)
            return DashboardLink(f"{self.origin}{ENTRY_PATH}#{secret}", LINK_SECONDS)

    async def _serve_for_now(self, *, task_status: trio.TaskStatus[None]) -> None:
        logcontext.clear()  # it outlives the request that asked for a link
        with listening_at_loopback() as listeners:
            origin = self._origin_of(listeners)
            await self._serve(origin, listeners, self._until_unused, NO_TLS, task_status)

    @contextmanager
    def _beside(self, listener: socket.socket | None) -> Iterator[list[socket.socket]]:
        """Add to the configured listener what the dashboard's name leads to as well. Raises
        InUseError."""
        if listener is None:
            yield []
        elif goes_by_random_name(self._settings):
            with beside(listener) as others:
                yield [listener, *others]
        else:
            yield [listener]

    async def _until_unused(self) -> None:
        await self._sessions.until_none()
        self.origin = None

    def _origin_of(self, listeners: list[socket.socket]) -> str:
        return origin_of(self._settings, address_of(listeners[0]))

    async def _serve(
        self,
        origin: str,
        listeners: list[socket.socket],
        shutdown: Callable[[], Awaitable[None]],
        tls: FrontendTls,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self._loading.done()
        from api.serve import serve_public

        app = self._build(origin, self._sessions)
        self.origin = origin
        await serve_public(
            app,
            *listeners,
            tls=None if tls.mode is TlsMode.OFF else tls.context,
            shutdown=shutdown,
            task_status=task_status,
        )


def origin_of(settings: DashboardSettings, address: Address) -> str:
    """Return the origin, as a browser writes it, of a listener at `address`."""
    if settings.listen is not None and settings.public_url is not None:
        return as_browsers_write(settings.public_url)
    if settings.listen is None or goes_by_random_name(settings):
        return f"http://bockd-{secrets.token_hex(NAME_BYTES)}.localhost:{address.port}"
    return as_browsers_write(f"https://{Address(settings.listen.host, address.port)}")


def goes_by_random_name(settings: DashboardSettings) -> bool:
    """Return whether browsers reach it by a random name: on the loopback interface without TLS."""
    return settings.public_url is None and settings.tls is TlsMode.OFF


@contextmanager
def listening_at_loopback() -> Iterator[list[socket.socket]]:
    """Listen at both addresses of the loopback interface, at a port that the kernel chooses. Raises
    InUseError."""
    for _ in range(PORTS_TRIED):
        with ExitStack() as stack:
            listener = stack.enter_context(listen_tcp(Address(LOOPBACK, 0)))
            try:
                others = stack.enter_context(beside(listener))
            except InUseError:
                continue
            yield [listener, *others]
            return
    raise InUseError("no port of the loopback interface is free at both of its addresses")


@contextmanager
def beside(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Listen at the same port of the loopback addresses that a listener has not. An address that
    this machine lacks is nobody else's either. Raises InUseError, UnavailableError."""
    address = address_of(listener)
    with ExitStack() as stack:
        others = []
        for host in {LOOPBACK, LOOPBACK_6} - {address.host}:
            try:
                one = listen_tcp(Address(host, address.port), ALSO_THERE)
            except UnavailableError as error:
                cause = error.__cause__
                if not isinstance(cause, OSError) or cause.errno not in LACKS_ADDRESS:
                    raise
            else:
                others.append(stack.enter_context(one))
        yield others


def as_browsers_write(url: str) -> str:
    """Return a URL of a host in lower case, and without the port that its scheme implies."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{DEFAULT_PORTS[parts.scheme]}')}"
