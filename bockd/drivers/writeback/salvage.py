"""Writing below what a damaged log has before its damage (damagedlog.py), once somebody has said
that the rest is to be given up.

It is sent like any log, epoch after epoch, with the progress noted durably before the next but one.
So it may be ended at any moment and begun again: it goes on from the progress.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec

from bockd.drivers.writeback.damagedlog import Prefix
from bockd.drivers.writeback.epochs import Epoch
from bockd.drivers.writeback.log import BrokenLogError, Log, Opened
from bockd.drivers.writeback.progress import Progress
from bockd.drivers.writeback.segment import Segment
from bockd.drivers.writeback.space import Space
from bockd.drivers.writeback.writer import Writer
from bockd.errors import BockdError, UnreadableError
from bockd.failpoints import Failpoint, hit
from bockd.pool.caches import Salvaged
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Spawn


class DamagedLog(Log):
    """A log of which only what is before its damage is used: nothing is appended to it."""

    def __init__(
        self, opened: Opened, space: Space, spawn: Spawn, clock: Callable[[], float]
    ) -> None:
        super().__init__(opened, space, spawn, clock)
        self._was_broken, self.broken = self.broken, ""

    def ready(self) -> Epoch | None:
        # Without its progress, no epoch is sent that is two newer than what that says.
        return None if self.broken else super().ready()

    @property
    def settled(self) -> int:
        return self.noted

    async def note(self) -> None:
        """Do what `Log.note` does. Raises UnreadableError: the disk does not take it."""
        with suppress(BrokenLogError):  # it says so itself
            await super().note()
        if self.broken:
            raise UnreadableError(f"how much of {self.path} is below is not noted: {self.broken}")

    def _progress_at(self, done: int, needed: Segment) -> Progress:
        """Say nothing by which the damage would not be found later."""
        progress = super()._progress_at(done, needed)
        return msgspec.structs.replace(progress, broken=self._was_broken, drained=False)


class Salvage:
    """Of one volume, which is not open. For the owner thread."""

    def __init__(
        self,
        below: BlockDevice,
        prefix: Prefix,
        make_log: Callable[[Opened], DamagedLog],
        spawn: Spawn,
        on_closed: Callable[[], None],
    ) -> None:
        """`below` is the volume's device, of which this gateway has just taken possession."""
        self._behind_bytes = prefix.behind_bytes
        self._on_closed = on_closed
        self._log: DamagedLog | None = None
        self._writer: Writer | None = None
        self._begun_bytes = 0
        if prefix.opened is not None:
            self._log = make_log(prefix.opened)
            self._writer = Writer(below, self._log, spawn, _leave, _is_never_needed)
            self._begun_bytes = self._log.dirty_bytes

    async def drain(self) -> None:
        """Return when all is below, and flushed there, that can be. Raises UnreadableError: the
        local disk ends it before that; BockdError."""
        if self._log is not None and self._writer is not None:
            whole = [one.barrier for one in self._log.records.epochs]
            synced = self._log.synced
            await self._writer.until(max((one for one in whole if one <= synced), default=0))
        hit(Failpoint.WRITEBACK_SALVAGED)

    def carried_out(self) -> int:
        """Return how many requests the device below has carried out. For any thread."""
        return 0 if self._log is None else self._log.carried_out

    def left_bytes(self) -> int:
        """Return how much of the log is not below that may yet be. For any thread."""
        return 0 if self._log is None else self._log.dirty_bytes

    def result(self) -> Salvaged:
        """Return what has become of the log so far, if it is ended now."""
        left = self.left_bytes()
        return Salvaged(self._begun_bytes - left, left + self._behind_bytes)

    async def close(self) -> None:
        """Send nothing below any more, and close the log, which stays. What is on its way below is
        not waited for."""
        try:
            if self._log is not None and self._writer is not None:
                self._writer.stop()
                await self._log.close()
        finally:
            self._on_closed()


def _leave(_error: BockdError) -> None:
    """Leave an error to `Writer.until`."""


async def _is_never_needed() -> None:
    """Do nothing: nothing is sent without the progress."""
    raise AssertionError
