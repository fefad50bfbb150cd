"""The log of failed I/O: a line for each kind of failure, at most one a minute for each volume.

A disk that fails, fails thousands of times a second. An operator needs to know that it does, how
often, with which error and what to do, and no more: so the first failure of a kind is logged at
once, and those that follow are counted and logged together when a minute is over. A kind is a
volume, an operation and an error number.

All frontends report failed I/O here. A request that is refused because it was wrong is not logged.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bockd.errors import (
    BockdError,
    DeniedError,
    DeviceError,
    InvalidRequestError,
    NoSpaceError,
    NotSupportedError,
    ReadOnlyError,
    UnavailableError,
    from_os_error,
)

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 60.0

_ANSWERS: Final = (InvalidRequestError, NotSupportedError, ReadOnlyError, UnavailableError)
"""What is answered and is no failure: the request was wrong, or the daemon is stopping."""

_TRANSLATED: Final = (NoSpaceError, DeniedError, DeviceError)
"""What `from_os_error` makes of an error of the system, which is their cause."""


@dataclass(slots=True)
class _Kind:
    """Failures of one kind since they were logged last."""

    logged_at: float
    held_back: int = 0
    text: str = ""


class FailureLog:
    """Logs failures, each kind at most once a minute. Its methods may be called on any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._lock = threading.Lock()
        self.on_first: Callable[[], None] = _nothing
        """Called, on the thread of the failure, when `watching` becomes true."""

    @property
    def watching(self) -> bool:
        """Whether there is a kind that `log_due` is to look at."""
        return bool(self._kinds)

    def note(self, called: str, operation: str, error: Exception, count: int = 1) -> None:
        """Log that `count` operations failed with an error, or count them for later. `called` names
        the volume or snapshot: "volume 12". `operation` is a noun that takes an s ("read")."""
        if isinstance(error, _ANSWERS):
            return
        name = _error_name(error)
        key = (called, operation, name)
        now = self._clock()
        with self._lock:
            kind = self._kinds.get(key)
            if kind is not None and now - kind.logged_at < PERIOD_SECONDS:
                kind.held_back += count
                kind.text = _text(operation, error)
                return
            held_back = kind.held_back if kind is not None else 0
            first = not self._kinds
            self._kinds[key] = _Kind(now)
        if first:
            self.on_first()
        unexpected = not isinstance(error, BockdError | OSError | MemoryError)
        _log_line(
            called,
            operation,
            name,
            held_back + count,
            _text(operation, error),
            unexpected=error if unexpected else None,
        )

    def log_due(self) -> None:
        """Log what was held back for a minute, and forget kinds that were quiet for as long."""
        now = self._clock()
        due = []
        with self._lock:
            for key, kind in list(self._kinds.items()):
                if now - kind.logged_at < PERIOD_SECONDS:
                    continue
                if not kind.held_back:
                    del self._kinds[key]
                    continue
                due.append((key, kind.held_back, kind.text))
                self._kinds[key] = _Kind(now)
        for (called, operation, name), count, text in due:
            _log_line(called, operation, name, count, text)

    def close(self) -> None:
        """Log all that was held back."""
        with self._lock:
            kinds, self._kinds = self._kinds, {}
        for (called, operation, name), kind in kinds.items():
            if kind.held_back:
                _log_line(called, operation, name, kind.held_back, kind.text)


def _nothing() -> None:
    """Nobody wants to know."""


def _log_line(
    called: str,
    operation: str,
    name: str,
    count: int,
    text: str,
    *,
    unexpected: Exception | None = None,
) -> None:
    what = f"a {operation}" if count == 1 else f"{count} {operation}s"
    kind, _, number = called.partition(" ")
    log.error(
        "%s: %s failed with %s: %s",
        called,
        what,
        name,
        text,
        exc_info=unexpected,
        extra={kind: number},
    )


def _error_name(error: Exception) -> str:
    """The name of the error number that says most: the system's, or what clients are told."""
    cause = error.__cause__ if isinstance(error, _TRANSLATED) else error
    if isinstance(cause, OSError) and cause.errno:
        number = cause.errno
    elif isinstance(error, BockdError):
        number = error.errno
    else:
        return type(error).__name__
    return errno.errorcode.get(number, str(number))


def _text(operation: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return str(from_os_error(error, operation))
    return str(error) or type(error).__name__
