"""What a request to the dashboard passes before it is looked at.

A browser runs pages of strangers, too, and sends what they ask for. So a request must name the one
host that the dashboard has, or a stranger's name could be made to lead here (DNS rebinding); what
changes something must come from a page of the dashboard (`Origin`); and everything but the entry
needs the cookie of a session. An answer forbids the page what it does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard.paths import ENTRY_PATH, FIRST_PAGE_PATH, STATIC_PATH
from api.dashboard.sessions import SESSION_SECONDS, Sessions
from api.faults import fault
from api.intake import sent_path
from bockd import logcontext

PROTECTION: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Of every answer. No page holds a script or a style of its own: both are files."""

OWN_FETCHES = frozenset({"same-origin", "none"})
"""What `Sec-Fetch-Site` says of requests by our pages, and by the user (an address, a bookmark)."""


class Guard:
    """The ASGI middleware that checks. `origin` is the dashboard's: scheme, host and port."""

    def __init__(self, app: ASGIApp, origin: str, sessions: Sessions) -> None:
        self._app = app
        self._origin = origin
        self._host = urlsplit(origin).netloc
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        refusal = self._refusal(scope["method"], sent_path(scope), Headers(scope=scope))
        await (refusal or self._app)(scope, receive, protected)

    def _refusal(self, method: str, path: str, headers: Headers) -> ASGIApp | None:
        host = headers.getlist("host")
        if len(host) != 1 or host[0].lower() != self._host:
            return fault(
                HTTPStatus.FORBIDDEN,
                "host",
                # Not which is: the name is told to those alone who may open a link.
                "this is no address of the dashboard: run 'bock dashboard' on the daemon's machine "
                "and open the link that it prints",
            )
        if method != "GET" and headers.getlist("origin") != [self._origin]:
            return fault(HTTPStatus.FORBIDDEN, "origin", "only the dashboard's own pages may ask")
        if is_open(path):
            return None
        session = session_in(headers, self._origin)
        if not self._sessions.knows(session):
            return fault(
                HTTPStatus.UNAUTHORIZED,
                "session",
                "there is no session, or it has ended: run 'bock dashboard' on the daemon's "
                "machine and open the link that it prints",
            )
        if headers.get("sec-fetch-site", "same-origin") not in OWN_FETCHES:
            return fault(HTTPStatus.FORBIDDEN, "origin", "only the dashboard's own pages may ask")
        logcontext.note(logcontext.SESSION, self._sessions.name_of(session))
        return None


def is_open(path: str) -> bool:
    """Return whether a path needs no session."""
    return path in (FIRST_PAGE_PATH, ENTRY_PATH) or path.startswith(STATIC_PATH)


def cookie_name(origin: str) -> str:
    """Return the cookie's name. A browser takes `__Host-` over HTTPS only, from this host only."""
    return "__Host-bockd" if origin.startswith("https:") else "bockd"


def session_in(headers: Headers, origin: str) -> str:
    """Return the session's secret in the cookie that a request carries; empty without one.

    Ours needs no decoding (RFC 6265, section 4.1.1). What else a browser sends along, of whatever
    form, is another program's.
    """
    ours = cookie_name(origin)
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == ours:
            return value.strip()
    return ""


def set_session(answer: JSONResponse, origin: str, session: str) -> None:
    """Have the browser keep a session; an empty one makes it forget."""
    answer.set_cookie(
        cookie_name(origin),
        session,
        max_age=SESSION_SECONDS if session else 0,
        secure=origin.startswith("https:"),
        httponly=True,
        samesite="strict",
    )
