"""Background work that failed for lack of something, tried again until that is back.

What is lacking is space, inodes, a disk that answers, or a file system that can be written. Nothing
reports when it is back, so all work that waits is tried again every `RETRY_SECONDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from bockd.errors import BockdError, DeniedError, DeviceError, NoSpaceError, UnavailableError
from bockd.runtime.steps import Steps

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""An attempt on a full disk costs milliseconds."""

MAY_PASS = (NoSpaceError, DeviceError, DeniedError, UnavailableError)
"""The errors of what may succeed later."""

Work = Callable[[], Steps[None]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    reason: str
    work: Work


class Retrying:
    """Starts background work, and tries it again as long as it is put off. `spawn` runs an attempt
    to its end, whatever happens to `run`."""

    def __init__(self, spawn: Callable[[Steps[None]], None]) -> None:
        self._spawn = spawn
        self._waiting: dict[str, _Waiting] = {}
        self._some = trio.Event()

    @property
    def waiting(self) -> tuple[str, ...]:
        """What work waits, and for what, in words."""
        return tuple(f"{what}: {entry.reason}" for what, entry in self._waiting.items())

    def start(self, what: str, work: Work) -> None:
        """Run `work` in the background, and repeat it until it no longer fails for lack of
        something."""
        self._spawn(self._attempt(what, work))

    async def _attempt(self, what: str, work: Work) -> None:
        try:
            await work()
        except MAY_PASS as error:
            self._put_off(what, _Waiting(str(error), work))
        except BockdError as error:
            self._waiting.pop(what, None)
            log.error("%s: %s", what, error)  # noqa: TRY400
        else:
            if self._waiting.pop(what, None) is not None:
                log.warning("%s: it was put off, and is done now", what)

    def _put_off(self, what: str, entry: _Waiting) -> None:
        known = self._waiting.get(what)
        if known is None or known.reason != entry.reason:
            log.warning("%s is put off: %s", what, entry.reason)
        self._waiting[what] = entry
        self._some.set()

    async def run(self) -> None:
        """Try again the work that waits, until cancelled."""
        while True:
            await self._some.wait()
            await trio.sleep(RETRY_SECONDS)
            self._some = trio.Event()
            for what, entry in list(self._waiting.items()):
                self.start(what, entry.work)
