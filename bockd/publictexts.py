"""What clients over the network are told of trouble with the storage cluster.

Its errors name commands, users and files of the operator's. Whoever comes over the network, a
tenant or somebody whose token nobody has looked at, is told one fixed text. The log has the whole
one, at most once a minute, and so has the control API.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from bockd.errors import ClusterUnavailableError

log = logging.getLogger(__name__)

CLUSTER_SILENT: Final = "the storage cluster does not answer; try again later"

PERIOD_SECONDS: Final = 60.0
"""A text is in the log once in so long, however many clients ask."""


class Discretion:
    """Tells clients the fixed text. Its methods may be called on any thread."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def text(self, error: ClusterUnavailableError) -> str:
        """Return what a client is told, and log the rest."""
        now, whole = time.monotonic(), str(error)
        with self._lock:
            self._logged_at = {
                text: at for text, at in self._logged_at.items() if now - at < PERIOD_SECONDS
            }
            new = whole not in self._logged_at
            if new:
                self._logged_at[whole] = now
        if new:
            log.error("clients are told that the storage cluster does not answer: %s", whole)
        return CLUSTER_SILENT


discretion: Final = Discretion()
"""That of this process, so that all its frontends log a text once."""
