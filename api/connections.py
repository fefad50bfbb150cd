"""HTTP connections: Hypercorn's protocol on listeners that are bound already, inside our nursery.

What one client may cost is bounded: the size of a header and the time for it here, the body's in
`api.intake`, the number of connections here. Who connects and asks nothing makes room for others.

Hypercorn's own loop (`hypercorn.trio.serve`) shields what it sends from cancellation, without a
bound: one client that stops reading a long answer keeps the daemon from ever ending. Here a send
ends within `SEND_TIMEOUT_SECONDS`, and what goes wrong in one connection stays there.
"""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

from api.requestline import RequestLine

log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0
"""How long requests may take to finish once the daemon stops."""

SEND_TIMEOUT_SECONDS = 10.0
"""For a client to take one piece of an answer; then it is dropped."""

HANDSHAKE_SECONDS = 10
"""For TLS, from a client's connecting to the end of the handshake: as long as for a piece of an
answer. Hypercorn waits a minute."""

GOODBYE_SECONDS = 1.0
"""For TLS's last message, which nobody needs to get. Without a bound a client that reads nothing
would keep the daemon from ending, because Hypercorn shields this too."""

IDLE_SECONDS = 10
"""Between two requests, and for the whole header of one, however slowly it trickles in."""

MAX_HEADER_BYTES = 16 << 10
"""Of a request line and its header: a token, a few names, and a proxy's additions."""

MAX_CONNECTIONS = 256
"""On one listener: a quarter of the usual 1,024 descriptors, which disks and NBD clients share."""

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)

REQUESTS_PER_CONNECTION = 1_000_000_000
"""No limit: a request costs no more on an old connection, and a client that watches (`bock stat`)
would find it closed at some moment between its requests."""


class Http1(H11Protocol):
    """HTTP/1.1, which stays it: the limits here are HTTP/1.1's, and so are all the clients."""

    async def _check_protocol(self, event: object) -> None:
        """Hypercorn would change to HTTP/2 here, where a client asks for it or begins with it, and
        has no setting against that. Who asks is answered in HTTP/1.1, as the standard has it (RFC
        9110, section 7.8); who begins with it gets an error."""


class Connection(TCPServer):
    """One connection. Sends are bounded; the rest is Hypercorn's."""

    asked = False
    """It has sent a request's header at least once."""
    busy = False
    """A request is being received or answered."""

    async def protocol_send(self, event: Event) -> None:
        """Send a piece of an answer, or pass on what is not one."""
        if isinstance(event, Updated):
            self.busy = not event.idle
            self.asked = True
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                # Shielded, because a response must not be cut off by the end of its request.
                with trio.fail_after(SEND_TIMEOUT_SECONDS, shield=True):
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        made = self.protocol
        self.protocol.protocol = Http1(
            made.app,
            made.config,
            made.context,
            made.task_group,
            made.state,
            made.ssl,
            made.client,
            made.server,
            made.send,
        )
        await super()._read_data()

    async def _close(self) -> None:
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            await super()._close()
        await trio.aclose_forcefully(self.stream)

    async def _initiate_server_close(self) -> None:
        await self.protocol.handle(Closed())
        await self._close()


class Room:
    """The connections of one listener, oldest first, each with what ends it."""

    def __init__(self, most: int | None = None) -> None:
        """There may be `most` at once; None: MAX_CONNECTIONS."""
        self._most = most
        self._inside: dict[Connection, trio.CancelScope] = {}

    @contextmanager
    def place_for(self, connection: Connection, scope: trio.CancelScope) -> Iterator[None]:
        """Let a connection in. If need be, it replaces one that is not being served, first of all
        one that has never asked. Raise TooManyError when all are being served."""
        most = MAX_CONNECTIONS if self._most is None else self._most
        if len(self._inside) >= most:
            idle = [one for one in self._inside if not one.busy]
            if not idle:
                raise TooManyError
            self._inside.pop(min(idle, key=lambda one: one.asked)).cancel()
        self._inside[connection] = scope
        try:
            yield
        finally:
            self._inside.pop(connection, None)


class TooManyError(Exception):
    """As many as there may be are being served."""


async def refuse(stream: trio.SocketStream) -> None:
    """Tell the client that there are too many connections. A client that does not read is waited
    for at most `GOODBYE_SECONDS`."""
    with trio.move_on_after(GOODBYE_SECONDS), suppress(trio.BrokenResourceError):
        await stream.send_all(_TOO_MANY)


def quiet_config() -> Config:
    """Return Hypercorn's settings: it logs errors only, through our logger, and does not name
    itself."""
    config = Config()
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = log
    config.ssl_handshake_timeout = HANDSHAKE_SECONDS
    config.keep_alive_max_requests = REQUESTS_PER_CONNECTION
    config.keep_alive_timeout = IDLE_SECONDS
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    return config


async def serve_connections(
    app: ASGIApp,
    listeners: list[trio.SocketListener],
    *,
    shutdown: Callable[[], Awaitable[None]],
    tls: Callable[[], ssl.SSLContext] | None = None,
    max_connections: int | None = None,
) -> None:
    """Serve `app` to all clients that connect, over TLS with the context that `tls` gives if there
    is one, until `shutdown` returns; then requests get `GRACE_SECONDS` to finish. The caller closes
    the listeners. There may be `max_connections`, or else MAX_CONNECTIONS, at once."""
    context = WorkerContext(None)
    connect = functools.partial(
        Connection,
        ASGIWrapper(cast(ASGIFramework, RequestLine(app))),
        quiet_config(),
        context,
        ConnectionState({}),
    )

    room = Room(max_connections)

    async def serve_one(stream: trio.SocketStream) -> None:
        # Hypercorn takes either kind of stream.
        either: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        try:
            if tls is not None:
                either = trio.SSLStream(stream, tls(), server_side=True, https_compatible=True)
            connection = connect(cast(trio.SSLStream[trio.SocketStream], either))
            with trio.CancelScope() as scope, room.place_for(connection, scope):
                await connection
        except TooManyError:
            await refuse(stream)
        except Exception:
            log.exception("an HTTP connection failed")

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(
                functools.partial(
                    trio.serve_listeners, serve_one, listeners, handler_nursery=connections
                )
            )
            await shutdown()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS
