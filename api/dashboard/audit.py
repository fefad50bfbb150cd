"""What operators do in the dashboard, for the daemon's log: who entered, and who changed what.

Who that was is the name of a session: it says which lines are one browser's, and admits nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response

from bockd import logcontext
from bockd.errors import BockdError

log = logging.getLogger(__name__)

MAX_SHOWN = 300
"""Characters of a request's body that are logged: ids, a name, a size."""

_FIELDS = {
    "tenant": (logcontext.TENANT, str),
    "volume": (logcontext.VOLUME, int),
    "snapshot": (logcontext.SNAPSHOT, int),
}
"""Keys of a body that say what its request is about, and their types."""


def note_entry(session: str, client: tuple[str, int] | None) -> None:
    """Log that a link was used."""
    logcontext.note(logcontext.SESSION, session)
    log.info("dashboard session %s began, by a client at %s", session, address(client))


def note_refused_entry(client: tuple[str, int] | None) -> None:
    """Log that a link was tried that admits nobody."""
    log.info(
        "a link to the dashboard that was used or has expired was tried at %s", address(client)
    )


def note_leaving(session: str) -> None:
    """Log that a session was ended by its browser."""
    log.info("dashboard session %s has left", session)


def address(client: tuple[str, int] | None) -> str:
    """Return where a client is, as the daemon sees it: behind a proxy, the proxy."""
    return "an unknown address" if client is None else client[0]


class AuditedRoute(APIRoute):
    """A route that changes something: each request is a line of the log, with what came of it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which logs."""
        handle = super().get_route_handler()

        async def audited(request: Request) -> Response:
            asked = await request.body()
            _note_fields(asked)
            outcome = "was not waited for"
            try:
                answer = await handle(request)
                outcome = "done"
            except RequestValidationError:
                outcome = "not understood"
                raise
            except BockdError as error:
                outcome = f"refused: {error}"
                raise
            except Exception:
                outcome = "failed"
                raise
            else:
                return answer
            finally:
                log.info(
                    "dashboard session %s: %s %s: %s",
                    logcontext.noted().get(logcontext.SESSION, "?"),
                    self.path.rpartition("/")[2],
                    asked[:MAX_SHOWN].decode("ascii", "backslashreplace"),
                    outcome,
                )

        return audited


def _note_fields(asked: bytes) -> None:
    try:
        body = json.loads(asked)
    except (ValueError, RecursionError):
        return  # it will be refused
    if not isinstance(body, dict):
        return
    for key, (field, kind) in _FIELDS.items():
        if type(value := body.get(key)) is kind:
            logcontext.note(field, value)
