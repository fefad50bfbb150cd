"""What a request passes before it is routed: its body is taken in whole, within bounds, and its
path is left as it was sent.

A body arrives within `BODY_TIMEOUT_SECONDS` and holds at most `MAX_BODY_BYTES`, so that no client
can occupy memory or a task by sending much or slowly.

Volume names may hold any printable character, "/" too. ASGI servers decode the path before it
is split into segments, which would make a name with a slash unreachable; so routing works on the
raw path, and `api.control` decodes the segment that is a reference.

Both APIs pass their requests through here; each has its own way to say that a body is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.faults import CODE_OF_STATUS, fault

MAX_BODY_BYTES = 64 << 10
"""A request holds names, a size, references and, for a volume, some metadata."""

BODY_TIMEOUT_SECONDS = 10.0
"""For the whole body; it fits in a few packets."""

Refuse = Callable[[HTTPStatus, str], ASGIApp]
"""Makes the answer for a body that is too large (413) or too slow (408), with the reason."""


def refuse_control(status: HTTPStatus, message: str) -> ASGIApp:
    """Return the control API's response to a body that is too large or too slow."""
    return fault(status, CODE_OF_STATUS[status], message)


class BodyRefusedError(Exception):
    """The body is too large or too slow."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ClientGoneError(Exception):
    """The client hung up before its request was complete; there is nobody to answer."""


async def take_body(receive: Receive) -> bytes:
    """Receive the whole body. Raises BodyRefusedError or ClientGoneError."""
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise BodyRefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body is larger than {MAX_BODY_BYTES} bytes",
                )
            if not message.get("more_body", False):
                return bytes(body)
    raise BodyRefusedError(
        HTTPStatus.REQUEST_TIMEOUT,
        f"the body did not arrive within {BODY_TIMEOUT_SECONDS:g} seconds",
    )


def sent_path(scope: Scope) -> str:
    """Return the path of a request as it was sent, by which it is routed. Who decides by the path
    before that must look at this one, too."""
    sent: bytes = scope["raw_path"]
    return sent.partition(b"?")[0].decode("latin-1")


class Intake:
    """The ASGI middleware that does it."""

    def __init__(self, app: ASGIApp, refuse: Refuse = refuse_control) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await take_body(receive)
        except ClientGoneError:
            return
        except BodyRefusedError as refusal:
            await self._refuse(refusal.status, str(refusal))(scope, receive, send)
            return

        taken: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_taken() -> Message:
            return taken.pop() if taken else await receive()

        await self._app({**scope, "path": sent_path(scope)}, receive_taken, send)
