"""Waiting until the daemon has seen that a client is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bockd.errors import InUseError, InvalidStateError

T = TypeVar("T")

RELEASE_TIMEOUT_SECONDS = 10.0
"""For the daemon to notice that its client has gone, which keeps a volume from being deleted."""

RELEASE_POLL_SECONDS = 0.05


def when_released(action: Callable[[], T]) -> T:
    """Run an action that needs a volume without clients, as soon as the daemon sees that we, or
    the tool which we ran, have disconnected. Raises InUseError, InvalidStateError when a client
    stays."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_SECONDS
    while True:
        try:
            return action()
        except (InUseError, InvalidStateError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RELEASE_POLL_SECONDS)
