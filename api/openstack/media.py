"""Request bodies: JSON objects, under the media types that clients give to JSON.

curl calls a body of `-d` a form unless told otherwise, and the specification's own example of an
attach (section 4.4.3.2) does not tell it. So JSON with that media type is read as JSON; a real form
is refused. In another example (section 4.4.4.2) the lines within a quoted body end in backslashes,
which a shell leaves there: such line breaks are read as line breaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

CONTINUED_LINE = re.compile(rb"\\\r?\n")
"""Valid nowhere in JSON, so removing it changes no body that is valid."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class NotJsonError(Exception):
    """The body cannot be read as JSON; the message says why."""


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and Infinity: Python reads them, but JSON has neither."""
    raise ValueError(f"{name} is not a JSON value")


def parse_json(body: bytes) -> object:
    """Parse `body`. Raises NotJsonError."""
    try:
        return json.loads(body, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        if CONTINUED_LINE.search(body):
            return parse_json(CONTINUED_LINE.sub(b"", body))
        raise NotJsonError(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise NotJsonError("it is nested too deeply") from error
    except ValueError as error:  # not UTF-8, or a number with thousands of digits
        raise NotJsonError(str(error).partition(";")[0]) from error


def plain_json(value: object) -> bytes:
    """Encode `value` as JSON in UTF-8. Raise NotJsonError for text that UTF-8 cannot carry, and for
    numbers that JSON cannot write."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotJsonError("it holds text or numbers that cannot be written as JSON") from error


def read_body(body: bytes, content_type: str) -> bytes:
    """Return `body` as plain JSON. Raises HTTPException: 415, 422 (the body is empty) or 400."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("", JSON, FORM):
        raise unsupported(media_type)
    if not body.strip():
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "The request has an empty body.")
    try:
        return plain_json(parse_json(body))
    except NotJsonError as error:
        if media_type == FORM:
            raise unsupported(media_type) from error
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {error}") from error


def unsupported(media_type: str) -> HTTPException:
    """Return the error for a media type other than JSON: only JSON is supported (section 4.1)."""
    return HTTPException(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"A body is {JSON}; {media_type} is not supported."
    )


class JsonRoute(APIRoute):
    """A route that reads a JSON body with `read_body`; others ignore the body."""

    def get_route_handler(self) -> Handler:
        """Return a handler that encodes the body again as plain JSON and calls FastAPI's."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            content_type = request.headers.get("content-type", "")
            body = read_body(await request.body(), content_type)
            headers = [item for item in request.scope["headers"] if item[0] != b"content-type"]
            headers.append((b"content-type", JSON.encode()))

            async def receive() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            return await handle(Request({**request.scope, "headers": headers}, receive))

        return handle_json
