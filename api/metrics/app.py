"""The application: three paths, which are read only.

    /metrics    all metrics, as text for Prometheus
    /healthz    200: the process is alive, and its loop answers
    /readyz     200: clients can be served; 503 with the reason if they cannot

Whoever reaches a listener that has it may ask, without a token: it shows names of volumes and ids
of tenants. A scrape costs the daemon some time, so one is under way at a time, and what it has
found is the answer to all that come within a second.
"""

from __future__ import annotations

from http import HTTPStatus

import trio
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from api.metrics.exposition import CONTENT_TYPE, expose
from bockd.metrics import Watched

METRICS = "/metrics"
ALIVE = "/healthz"
READY = "/readyz"

PATHS = frozenset({METRICS, ALIVE, READY})

MAX_CONNECTIONS = 16
"""On its listener: a Prometheus or two, a load balancer, and somebody with curl."""

FRESH_SECONDS = 1.0
"""So long a scrape is the answer to others: Prometheus asks every few seconds at the most."""


class MetricsApp:
    """See the module's docstring."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._turn = trio.Lock()
        self._text = b""
        self._collected_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = await self._answer(scope["method"], scope["path"])
        await answer(scope, receive, send)

    async def _answer(self, method: str, path: str) -> Response:
        if path not in PATHS:
            return _says(HTTPStatus.NOT_FOUND, f"here are {', '.join(sorted(PATHS))}")
        if method != "GET":  # HEAD is GET here (`api.requestline`)
            return _says(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD")
        if path == ALIVE:
            return _says(HTTPStatus.OK, "alive")
        if path == READY:
            trouble = await self._watched.trouble()
            if trouble is None:
                return _says(HTTPStatus.OK, "ready")
            return _says(HTTPStatus.SERVICE_UNAVAILABLE, trouble)
        return Response(await self._scrape(), headers={"Content-Type": CONTENT_TYPE})

    async def _scrape(self) -> bytes:
        async with self._turn:
            if trio.current_time() - self._collected_at >= FRESH_SECONDS:
                self._text = await expose(await self._watched.families())
                self._collected_at = trio.current_time()
            return self._text


def _says(status: HTTPStatus, text: str, **headers: str) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"Cache-Control": "no-store", **headers})
