"""The files of a volume's log: made, closed and removed, one after the other.

Once a volume is closed, the next opening may have its files: so closing waits until nothing is made
or removed any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.runtime.steps import Steps
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)


class LogFiles:
    """Of one volume. For the owner thread."""

    def __init__(self, make_log: Callable[[], Steps[Log | None]]) -> None:
        self._make_log = make_log
        self._turn = Mutex()

    async def make(self, check: Callable[[], None]) -> Log | None:
        """Make a log; None if there is no room for one. `check` raises if nobody wants it any
        more."""
        async with self._turn:
            made = await self._make_log()
            if made is not None:
                try:
                    check()
                except BaseException:
                    await _remove(made)
                    raise
            return made

    async def remove(self, unused: Log) -> None:
        """Close a log, and remove it. What cannot be removed is left to the next opening."""
        async with self._turn:
            await _remove(unused)

    async def close(self, closing: Log | None) -> None:
        """Close a log, whose files stay, and wait until no other is being made or removed."""
        if closing is not None:
            # One that cannot be synced is noted as broken, if it can: the next opening does not
            # rely on its disk, and writes nothing below again that is there.
            with suppress(BrokenLogError):
                await closing.flush()
            with suppress(BrokenLogError):
                await closing.note_end()
            await closing.close()
        async with self._turn:
            pass


async def _remove(unused: Log) -> None:
    try:
        await unused.remove()
    except OSError as error:
        log.warning("%s cannot be removed: %s", unused.path, error)
