"""The bounds that the logs of a directory share: of the disk, and of memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bockd.drivers.writeback.flight import Flight
from bockd.drivers.writeback.segment import log_call, segments_in, taken_by
from bockd.durable import sync_directory
from bockd.model import KIB, MIB

MAX_MEMORY_BYTES = 400 * MIB
"""About what is kept in memory of all logs together: as much as of four that are full."""

SHARE_BYTES = 256 * KIB
"""What each log may keep whatever the others do, some 600 dirty ranges: so each of them goes on
without waiting for another one."""


class Space:
    """Counts what segments take, by the path of their log: those that are there, and those that are
    being made. For the owner thread."""

    def __init__(self, limit_bytes: int, log_limit_bytes: int | None = None) -> None:
        """`log_limit_bytes` is the most for one log; None: all of it."""
        self.limit_bytes = limit_bytes
        self._log_limit_bytes = limit_bytes if log_limit_bytes is None else log_limit_bytes
        self._counted: dict[Path, int] = {}
        self.void: set[Path] = set()
        """Logs that could not be removed, and that nobody needs."""
        self.memory_bytes = 0
        """About what the logs that are open keep in memory."""
        self.flight = Flight()
        """What is on its way below."""

    @property
    def used_bytes(self) -> int:
        return sum(self._counted.values())

    def is_crowded(self, memory_bytes: int) -> bool:
        """Return whether a log that keeps so much in memory must have some written below first, for
        the sake of the others."""
        return memory_bytes >= SHARE_BYTES and self.memory_bytes >= MAX_MEMORY_BYTES

    def set(self, log: Path, size_bytes: int) -> None:
        """Count so much of a log, whatever was counted: somebody may have put it back."""
        self._counted.pop(log, None)
        if size_bytes > 0:
            self._counted[log] = size_bytes

    def take(self, log: Path, size_bytes: int) -> bool:
        """Take so much. False if that is more than there is, or more than one log may have."""
        wanted = self._counted.get(log, 0) + size_bytes
        if wanted > self._log_limit_bytes or self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.set(log, wanted)
        return True

    def give_back(self, log: Path, size_bytes: int) -> None:
        self.set(log, self._counted.get(log, 0) - size_bytes)

    async def remove(self, log: Path) -> None:
        """Remove a log that nobody needs. Raises OSError: some of it is there, and counts."""
        self.void.add(log)
        left_bytes, error = await log_call(_remove, log)
        if left_bytes is not None:
            self.set(log, left_bytes)
        if error is not None:
            raise error
        self.void.discard(log)


def _remove(log: Path) -> tuple[int | None, OSError | None]:
    """Return what is left, None if the disk does not tell, and why."""
    try:
        # Without the progress, of a log that is left in parts it looked as if it was not below.
        for segment in segments_in(log).values():
            segment.unlink()
        sync_directory(log)
        shutil.rmtree(log)
    except OSError as error:
        try:
            os.lstat(log)
            return taken_by(log), error
        except FileNotFoundError:
            return 0, None
        except OSError:
            return None, error
    return 0, None
