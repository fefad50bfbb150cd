"""The daemon that serves the same pool, which may have a volume open that nobody uses there.

It keeps a volume open for some seconds after its last client left, because clients come back. Who
needs the volume here asks it, over its control API, to close it now.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bockd.errors import InUseError
from bockd.model import VolumeId
from bockd.overunix import UnixConnection

T = TypeVar("T")

PATIENCE_SECONDS = 2.0
"""For the daemon to notice that its last client has gone, and to close what that one wrote."""

PAUSE_SECONDS = 0.05

ANSWER_SECONDS = 10.0
"""A daemon that is stopped or hangs must not keep nbdkit from starting or failing for longer."""


def take_over(pool: Path, volume: VolumeId, attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns. If the volume is open elsewhere, and a daemon serves the pool,
    ask that to close it and try again.

    Raises: InUseError if the volume has users there, or is open in a process that is no daemon.
    """
    deadline: float | None = None
    while True:
        try:
            return attempt()
        except InUseError:
            now = time.monotonic()
            deadline = deadline or now + PATIENCE_SECONDS
            if now > deadline or not _ask_to_close(pool, volume):
                raise
        time.sleep(PAUSE_SECONDS)


def _ask_to_close(pool: Path, volume: VolumeId) -> bool:
    """Return whether a daemon that can do it was asked; it refuses while the volume is in use."""
    connection = UnixConnection(pool / "api.sock")
    target = f"/control/v1/volumes/{volume}/release"
    try:
        connection.prepare(ANSWER_SECONDS)
        status, _, _ = connection.exchange("POST", target, None, {}, patient=False)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return status in (http.client.NO_CONTENT, http.client.CONFLICT)
