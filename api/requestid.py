"""Each request gets an id, which is in its answer and in what is logged of it."""

from __future__ import annotations

import logging
import re
import uuid
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bockd import logcontext

log = logging.getLogger(__name__)

_SECRET = re.compile(r"(/tokens/).+", re.DOTALL)
"""A token that is to be revoked stands in the path. It is still good if that was refused."""

HEADER = "x-openstack-request-id"
"""As OpenStack's services call it; their clients show it with an error."""


class Identified:
    """The ASGI middleware that does it. It stands outside of all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{uuid.uuid4()}"
        # For as long as the task lives, which is that of the request: Hypercorn logs in it, too.
        logcontext.note(logcontext.REQUEST_ID, request_id)
        begun = perf_counter()

        async def name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                taken = 1000 * (perf_counter() - begun)
                path = _SECRET.sub(r"\1...", scope["path"])
                log.debug("%s %s: %d in %.1f ms", scope["method"], path, message["status"], taken)
            await send(message)

        await self._app(scope, receive, name)
