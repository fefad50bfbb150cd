"""The request line in the one form that the applications are written for.

HTTP lets a client ask in other forms, and has every server accept them: a whole URL as the target
(RFC 9112, section 3.2.2), as clients send it that take us for a proxy; and HEAD wherever there is
GET (RFC 9110, section 9.3.2).
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

ABSOLUTE_FORM = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)


class RequestLine:
    """The ASGI middleware that puts requests into that form.

    HEAD becomes GET. The body of the answer is left out by the HTTP server, which has read the
    request itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = in_origin_form(scope)
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def in_origin_form(scope: Scope) -> Scope:
    """Return `scope` with a path as its target. The host of a target that was a URL prevails over
    the header Host, as the standard has it."""
    absolute = ABSOLUTE_FORM.fullmatch(scope["raw_path"])
    if absolute is None:
        return scope
    host, path = absolute[1].rpartition(b"@")[2], absolute[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"host"]
    return {
        **scope,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "headers": [(b"host", host), *headers],
    }
