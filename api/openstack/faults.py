"""How an error looks in the public API: `{"itemNotFound": {"message", "code"}}` (section 4.4).

This is the only place that turns a `BockdError` into that. The name of a fault follows from its
status. An error of the daemon itself is logged, and the client gets the text of section 4.4.1.1.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp

from api.faults import explain_validation, sendable
from bockd import errors
from bockd.publictexts import SERVER_ERROR, TOLD, discretion, own_trouble

log = logging.getLogger(__name__)

SERVER_FAULT = "cloudServersFault"

NAME_OF_STATUS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "badRequest",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "itemNotFound",
    HTTPStatus.METHOD_NOT_ALLOWED: "badMethod",
    HTTPStatus.CONFLICT: "conflictingRequest",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "overLimit",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "badMediaType",
    HTTPStatus.UNPROCESSABLE_ENTITY: "unprocessableEntity",
    HTTPStatus.TOO_MANY_REQUESTS: "overLimit",
    HTTPStatus.NOT_IMPLEMENTED: "notImplemented",
    HTTPStatus.SERVICE_UNAVAILABLE: "serviceUnavailable",
}
"""Any other status is a `cloudServersFault`."""

STATUS_OF_ERROR: dict[type[errors.BockdError], HTTPStatus] = {
    errors.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    errors.InvalidStateError: HTTPStatus.BAD_REQUEST,
    errors.UnauthorizedError: HTTPStatus.UNAUTHORIZED,
    errors.ForbiddenError: HTTPStatus.FORBIDDEN,
    errors.ReadOnlyError: HTTPStatus.FORBIDDEN,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.ConflictError: HTTPStatus.CONFLICT,
    errors.InUseError: HTTPStatus.CONFLICT,
    errors.OverLimitError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.NotSupportedError: HTTPStatus.NOT_IMPLEMENTED,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The first that fits counts, with the text of bockd.publictexts. Any other `BockdError` is the
daemon's own trouble: 503 if there is something that the client can do about it, else 500."""

METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS")

OVER_LIMIT = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS)


def fault(status: int, message: str, *, retry_after_seconds: int = 0) -> JSONResponse:
    """Return the response with the fault for `status`."""
    detail: dict[str, object] = {"message": sendable(message), "code": int(status)}
    headers = {}
    if status in OVER_LIMIT:
        detail["retryAfter"] = retry_after_seconds
        headers["Retry-After"] = str(retry_after_seconds)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Keystone"
    return JSONResponse({NAME_OF_STATUS.get(status, SERVER_FAULT): detail}, status, headers)


def server_error() -> JSONResponse:
    """Return the response with the fault for an error of the daemon itself."""
    return fault(HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_ERROR)


def fault_of_error(error: errors.BockdError) -> JSONResponse:
    """Return the response to a `BockdError`."""
    if isinstance(error, errors.OverLimitError):
        wait = error.retry_after_seconds
        # A quota does not pass by waiting (section 4.4.2: 413); too many requests do.
        status = HTTPStatus.TOO_MANY_REQUESTS if wait else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return fault(status, str(error), retry_after_seconds=wait)
    told = discretion.text(error)
    for family, status in STATUS_OF_ERROR.items():
        if isinstance(error, family):
            return fault(status, told)
    if own_trouble(error) is not None:
        return fault(HTTPStatus.SERVICE_UNAVAILABLE, told)
    if isinstance(error, TOLD):
        # Here it is not told, so it is not logged yet.
        log.error("a request failed: %s: %s", type(error).__name__, error)
    return server_error()


def refuse_body(status: HTTPStatus, message: str) -> ASGIApp:
    """Return the response to a body that is too large (413) or too slow (400: clients here know no
    408)."""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return fault(status, message)
    return fault(HTTPStatus.BAD_REQUEST, message)


def allowed_methods(request: Request) -> str:
    """Return all methods of the requested path, for the header of a 405."""

    def serves(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(dict(scope))[0] is Match.FULL for route in request.app.routes)

    # Where there is GET there is HEAD (`api.requestline`).
    asked_for = {method: "GET" if method == "HEAD" else method for method in METHODS}
    return ", ".join(method for method, served in asked_for.items() if serves(served))


def install_faults(app: FastAPI) -> None:
    """Make `app` answer every error as a fault."""

    @app.exception_handler(errors.BockdError)
    async def on_error(_: Request, error: errors.BockdError) -> JSONResponse:
        return fault_of_error(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return fault(HTTPStatus.BAD_REQUEST, explain_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = "The resource could not be found."
        answer = fault(error.status_code, message)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer.headers["Allow"] = allowed_methods(request)
        return answer

    @app.exception_handler(Exception)
    async def on_bug(_: Request, __: Exception) -> JSONResponse:
        # Starlette raises the error again afterwards, and Hypercorn logs it with its traceback.
        return server_error()
