"""How an error looks over HTTP: one body, `{"error": {"code", "message"}}`, and the status for it.

This is the only place that turns a `BockdError` into HTTP. `code` is the error's stable word (see
`bockd.errors`), or one of the few below for what HTTP itself can get wrong.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from bockd import errors

STATUS_OF_ERROR: dict[type[errors.BockdError], HTTPStatus] = {
    errors.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.ConflictError: HTTPStatus.CONFLICT,
    errors.InUseError: HTTPStatus.CONFLICT,
    errors.NoSpaceError: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.ReadOnlyError: HTTPStatus.FORBIDDEN,
    errors.ReadOnlyFileSystemError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotSupportedError: HTTPStatus.NOT_IMPLEMENTED,
    errors.VolumeFailedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DeniedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DeviceError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DamagedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.PoolFormatError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OverLimitError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnauthorizedError: HTTPStatus.UNAUTHORIZED,
    errors.ForbiddenError: HTTPStatus.FORBIDDEN,
}

CODE_OF_STATUS: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
    HTTPStatus.REQUEST_TIMEOUT: "timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too-large",
}
"""For refusals that HTTP makes before a `Control` is asked; any other is "invalid"."""

MAX_REASONS = 5
"""A body with a thousand unknown keys gets a readable answer, not a thousand lines."""


def sendable(message: str) -> str:
    """Escape the lone surrogates in a text that a client sent, because JSON in UTF-8 cannot carry
    them."""
    return message.encode("utf-8", "backslashreplace").decode()


def fault(status: int, code: str, message: str) -> JSONResponse:
    """Return the response with the error body."""
    return JSONResponse({"error": {"code": code, "message": sendable(message)}}, status)


def fault_of_error(error: errors.BockdError) -> JSONResponse:
    """Return the response to a `BockdError`."""
    for family, status in STATUS_OF_ERROR.items():
        if isinstance(error, family):
            return fault(status, error.code, str(error))
    return fault(HTTPStatus.INTERNAL_SERVER_ERROR, error.code, str(error))


def explain_validation(problems: list[dict[str, Any]]) -> str:
    """Return, in one line, what FastAPI found wrong: "body.size_bytes: Input should be an
    integer"."""
    reasons = []
    for problem in problems[:MAX_REASONS]:
        if problem["type"] == "json_invalid":
            detail = problem.get("ctx", {}).get("error", "cannot be parsed")
            reasons.append(f"the body is not JSON: {detail}")
        else:
            place = ".".join(str(part) for part in problem["loc"])
            reasons.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
    if len(problems) > MAX_REASONS:
        reasons.append(f"and {len(problems) - MAX_REASONS} more")
    return "; ".join(reasons)


def install_faults(app: FastAPI) -> None:
    """Make `app` answer every error in this one form."""

    @app.exception_handler(errors.BockdError)
    async def on_error(_: Request, error: errors.BockdError) -> JSONResponse:
        return fault_of_error(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        content_type = request.headers.get("content-type", "")
        if error.body and not content_type.startswith("application/json"):
            return fault(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "invalid",
                "send the body as JSON, with the header Content-Type: application/json",
            )
        return fault(HTTPStatus.BAD_REQUEST, "invalid", explain_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODE_OF_STATUS.get(error.status_code, "invalid")
        answer = fault(
            error.status_code, code, f"{request.method} {request.url.path}: {error.detail}"
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again afterwards, and Hypercorn logs it with its traceback.
        return fault(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal",
            f"{request.method} {request.url.path} failed inside the daemon "
            f"({type(error).__name__}); its log says more",
        )
