"""Removing, in the background, what nothing names any more.

To remove a large image takes minutes, and cannot be cut short. Nobody waits for that, least of all
a daemon that ends: what is not done then, and what fails, is left to the sweep
(bockd.drivers.rbd.sweep). So it is done in threads of its own, by a connection of its own, which is
left open while one of them is still at work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.connection import CommonConnection, Connected
from bockd.drivers.rbd.settings import index_options
from bockd.errors import BockdError

log = logging.getLogger(__name__)

THREADS = 4
"""Removals at once. Each has a number of operations under way in the cluster by itself."""

END_SECONDS = 2.0
"""How long the end waits for what is put in already. Removing a small image takes milliseconds."""

Removal = Callable[[Connected], object]
"""Removes something. Blocks. Raises BockdError."""


class Removals:
    """The removals of one gateway. Any thread may call this."""

    def __init__(self, settings: RbdSettings) -> None:
        self._connection = CommonConnection(settings, index_options(settings))
        self._waiting: deque[tuple[str, Removal]] = deque()
        self._at_work = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, doing: str, removal: Removal) -> None:
        """Remove something as soon as a thread is free. `doing` says what, for the log."""
        with self._changed:
            if self._ended:
                log.info("%s is left to the next sweep: this gateway ends", doing)
                return
            self._waiting.append((doing, removal))
            if self._at_work == THREADS:
                return
            self._at_work += 1
        try:
            # Python waits for none of these at its end.
            threading.Thread(target=self._run, name="removals", daemon=True).start()
        except RuntimeError:
            log.warning("no thread can be started; %s is put off", doing)
            self._leave()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is left to do. Return False when the time was over before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._at_work, seconds)

    def close(self) -> None:
        """Give what has been put in a moment to be done, and begin nothing more."""
        until = time.monotonic() + END_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: not self._at_work, until - time.monotonic())
            self._ended = True
            left = [doing for doing, _ in self._waiting]
            self._waiting.clear()
            at_work = self._at_work
        for doing in left:
            log.info("%s is left to the next sweep: this gateway ends", doing)
        if at_work:
            log.info("%d removals are not waited for; the next sweep goes on with them", at_work)
        else:
            self._connection.close()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            doing, removal = found
            try:
                try_to(doing, partial(self._remove, removal))
            except Exception:
                log.exception("%s failed", doing)

    def _remove(self, removal: Removal) -> None:
        with self._connection.use() as connected:
            removal(connected)

    def _next(self) -> tuple[str, Removal] | None:
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            self._at_work -= 1
            self._changed.notify_all()
            return None

    def _leave(self) -> None:
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()


def try_to(doing: str, operation: Callable[[], object]) -> None:
    """Do what the sweep does otherwise: log an error instead of raising it."""
    try:
        operation()
    except BockdError as error:
        log.warning("%s is put off: %s", doing, error)
