"""A machine with one volume with write-back, whose disk fails, and which may lose power."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import recovery
from bockd.errors import NoSpaceError
from bockd.runtime.steps import Signal

from .disk import Disk
from .opened import SIZE_BYTES, Opened


class Machine:
    """A volume on a disk that fails, and may lose power."""

    def __init__(self, root: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.disk = Disk(root / "logs", root / "shadow", random.Random(seed))
        self.disk.install(patch)
        self.below = MemoryDevice(SIZE_BYTES)
        self.boot = 1
        patch.setattr(recovery, "boot_id", lambda: f"boot {self.boot}")
        self.opened = Opened(root / "logs", self.below)

    def refuse_below(self) -> None:
        """Let all that is sent below fail."""
        self.below.failures["write"] = NoSpaceError("for a test")

    def hold_below(self) -> None:
        """Let nothing get below any more."""
        self.below.gate = Signal()

    def flush_until_broken(self) -> None:
        """Begin a flush, and let only so much happen that the log has failed."""
        scheduler, log = self.opened.scheduler, self.opened.device.way.log
        assert log is not None
        scheduler.start(self.opened.device.flush(), lambda: None)
        while not log.broken:
            scheduler.run(1)

    def cut(self) -> None:
        """Have the power fail, and come back."""
        self.opened.die()
        self.disk.cut()
        self.boot += 1
        self.opened.directory = self.opened._directory()


Made = Callable[[int], Machine]
"""Makes a machine of a seed, which says what its disk has when power fails."""
