"""A process that ends does not wait for ever for a cluster that does not answer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

END_SECONDS = 10.0
"""How long the end may go on without anything being closed, or written back: the cluster hangs
then. What was answered is in the cluster, or in a write-back log, and who needs a volume next
breaks its lock."""

LOOK_SECONDS = 0.2
"""Between two looks at how far the end is."""


class EndWatch:
    """Ends the process when nothing was closed, or written back, for `END_SECONDS`, from `begin` on
    until `end` and nothing is left."""

    def __init__(self, left: Callable[[], int], carried_out: Callable[[], int] = lambda: 0) -> None:
        """`left` returns, in any thread, how much is not closed yet; `carried_out`, a number that
        changes when something gets below that is to be closed then."""
        self._left = left
        self._carried_out = carried_out
        self._begun = False
        self._clients = True
        self._ended = False

    def begin(self) -> None:
        """Begin to watch. Doing so again does nothing."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._watch, name="end", daemon=True).start()

    def clients_left(self) -> None:
        """Note that no client's request is under way any more, and that closing begins, for which
        the time begins anew. Where nothing is left to be closed,
        the cluster is not waited for without a limit. What else the end waits for may take long,
        the cache's files and removals for example."""
        self._clients = False

    def end(self) -> None:
        """Watch no longer than something is left, which is closed in the background."""
        self._ended = True

    def _look(self, before: tuple[int, int]) -> tuple[int, int]:
        """Return how much is left, and what tells that it moves: as before, if that cannot be found
        out."""
        try:
            return self._left(), self._carried_out()
        except Exception:
            log.debug("how much is left to be closed is not known", exc_info=True)
            return before

    def _watch(self) -> None:
        left, clients, since = self._look((1, 0)), self._clients, time.monotonic()
        while time.monotonic() - since < END_SECONDS:
            time.sleep(LOOK_SECONDS)
            ended, now = self._ended, self._look(left)
            if ended and not now[0]:
                return
            if now != left or self._clients != clients or not (now[0] or self._clients):
                left, clients, since = now, self._clients, time.monotonic()
        log.error(
            "nothing could be closed for %d s, so bockd ends without that: the Ceph cluster does "
            "not answer. What was answered to clients is in the cluster, or in its write-back log",
            END_SECONDS,
        )
        # Threads hang in Ceph's library, and would be waited for.
        os._exit(1)
