"""What clients over the network are told of an error.

The message of an error of the service itself, or of the storage cluster behind it, names files,
users, commands and addresses of the operator's. Whoever comes over the network, a tenant or
somebody whose token nobody has looked at, is told a fixed text instead, at once or later, as the
reason that a volume keeps. The log has the whole message, at most once a minute, and so has the
control API.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, TypeVar

from bockd import errors
from bockd.errors import BockdError, ClusterUnavailableError

log = logging.getLogger(__name__)

CLUSTER_SILENT: Final = ClusterUnavailableError.public_text

CLUSTER_REFUSES: Final = (
    "the storage cluster refuses this; the service's operator finds the reason in bockd's log"
)

NOT_WRITTEN_BACK: Final = (
    "write-back is not at work here as it should be; the service's operator finds the reason in "
    "bockd's log"
)

UNREADABLE_LOG: Final = (
    "writes to this volume were answered that are not in the storage cluster, and cannot be read "
    "now; the service's operator finds the reason in bockd's log"
)

TOLD: Final = (
    errors.InvalidRequestError,
    errors.UnauthorizedError,
    errors.ForbiddenError,
    errors.ReadOnlyError,
    errors.NotFoundError,
    errors.ConflictError,
    errors.InUseError,
    errors.OverLimitError,
    errors.NotSupportedError,
    errors.UnavailableError,
    errors.VolumeFailedError,
)
"""Errors that are about what a client has asked for: their messages are told, unless one has a
`public_text`."""

SERVER_ERROR: Final = "Server Error, please try again later."
"""Section 4.4.1.1 of the API's specification."""

OWN_TROUBLE: Final[dict[type[BockdError], str]] = {
    errors.ReadOnlyFileSystemError: (
        "Read-only file system: what is stored can be read, and nothing changed until the "
        "service's operator has repaired the disk."
    ),
    errors.NoInodesError: (
        "The service's file system has no inodes left, whatever space it has: its operator can "
        "remove files there ('df -i' shows it)."
    ),
    errors.NoSpaceError: (
        "The service has no space left for this: delete what you do not need, empty the trash if "
        "there is one ('bock trash empty'), and try again, or ask the service's operator for more."
    ),
}
"""What a client can do about it. Of other trouble of the service itself it is told `SERVER_ERROR`.
"""

PERIOD_SECONDS: Final = 60.0
"""A text is in the log once in so long, however many clients ask."""


def own_trouble(error: BockdError) -> str | None:
    """Return what a client can do about trouble of the service itself, or None."""
    return next((text for one, text in OWN_TROUBLE.items() if isinstance(error, one)), None)


E = TypeVar("E", bound=BockdError)


def for_operator(error: E) -> E:
    """Return an error, whose message clients over the network are not told from now on."""
    error.public_text = error.public_text or own_trouble(error) or CLUSTER_REFUSES
    return error


def concealed(error: E, told: str) -> E:
    """Return an error, of which clients over the network are told this from now on."""
    error.public_text = error.public_text or told
    return error


class Discretion:
    """Tells clients what they may read. Its methods may be called on any thread."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def text(self, error: BockdError) -> str:
        """Return what a client is told, and log a message that it is not told."""
        told = error.public_text or own_trouble(error)
        if told is None:
            if isinstance(error, TOLD):
                return str(error)
            told = SERVER_ERROR
        now, whole = time.monotonic(), str(error)
        with self._lock:
            self._logged_at = {
                text: at for text, at in self._logged_at.items() if now - at < PERIOD_SECONDS
            }
            new = whole not in self._logged_at
            if new:
                self._logged_at[whole] = now
        if new:
            log.error("clients are told %r: %s", told, whole)
        return told


discretion: Final = Discretion()
"""That of this process, so that all its frontends log a text once."""
