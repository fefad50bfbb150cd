"""The end of an open volume's service: a sync or an append of its journal that failed.

Invariants:
* A failure is final for this opening: nothing is acknowledged after it.
* Why is recorded in the index before the volume is closed. What fails a sync may fail the record
  of it, too, for a while; so whoever is refused next has it tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from bockd.errors import BockdError, ReadOnlyFileSystemError, volume_failed
from bockd.model import VolumeId
from bockd.runtime.steps import Spawn, blocking, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)


class Failure:
    """Whether and why a volume has failed, and whether the index knows."""

    def __init__(
        self,
        volume: VolumeId,
        name: str,
        reason: str | None,
        *,
        record: Callable[[str], None],
        spawn: Spawn,
        on_failed: Callable[[], None],
    ) -> None:
        """`record` blocks; it stores a reason in the index, or raises BockdError."""
        self.reason = reason
        """Why the volume has failed; None if it has not."""
        self.recorded = True
        """The index knows that the volume has failed, if it has."""
        self.read_only: ReadOnlyFileSystemError | None = None
        """The index could not be told because of this."""
        self._volume = volume
        self._name = name
        self._record = record
        self._spawn = spawn
        self._on_failed = on_failed
        self._recording = Mutex()

    def check_usable(self) -> None:
        """Raise VolumeFailedError if the volume has failed. If recording the failure in the index
        has failed, too, try it again."""
        if self.reason is not None:
            if not (self.recorded or self._recording.held):
                try_spawn(self._spawn, self.record())
            raise volume_failed(self._volume, self._name, self.reason)

    def declare(self, reason: str) -> None:
        """Refuse the volume from now on, and record why. The first reason stays."""
        if self.reason is not None:
            return
        self.reason = reason
        self.recorded = False
        log.error("volume %s (%s) failed: %s", self._volume, self._name, reason)
        self._on_failed()
        try_spawn(self._spawn, self.record())  # or else who is refused next tries it

    async def record(self) -> None:
        """Record a failure in the index. This is done before the volume is closed: a record that
        came after an operator has reopened the volume would undo the reopening."""
        async with self._recording:
            if self.reason is not None and not self.recorded:
                await self._try_recording(self.reason)

    async def _try_recording(self, reason: str) -> None:
        try:
            await blocking(self._record, reason)
        except BockdError as error:
            self.read_only = error if isinstance(error, ReadOnlyFileSystemError) else None
            # Known to this process all the same.
            log.error(  # noqa: TRY400
                "the failure of volume %s could not be recorded: %s", self._volume, error
            )
        else:
            self.recorded = True
            self.read_only = None
