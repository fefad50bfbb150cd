"""The file system of `filesystem.py` in use: its process, and the orders it takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.crash.powercut.mounted import PowerCutDisk, mounted_by


class How(Enum):
    """What goes wrong at a position."""

    EIO_ONCE = ("once", errno.EIO)
    ENOSPC_ONCE = ("once", errno.ENOSPC)
    EIO_LASTING = ("lasting", errno.EIO)
    ENOSPC_LASTING = ("lasting", errno.ENOSPC)
    FULL = ("full", errno.ENOSPC)
    """From there on nothing finds room but where something was given back."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where: `at` counts positions from 1."""

    at: int
    how: How


class FaultyDisk(PowerCutDisk):
    """A disk that fails on order."""

    def inject(self, life: str, fault: Fault | None) -> None:
        """Count the positions of a life from here on, and let the fault be there."""
        how, number = (How.EIO_ONCE if fault is None else fault.how).value
        at = 0 if fault is None else fault.at
        os.setxattr(self.mount, "user.fault", f"{life} {at} {how} {number}".encode())

    @property
    def failed(self) -> int:
        """Positions that have failed since `inject`."""
        return int(os.getxattr(self.mount, "user.fault"))

    def unreadable(self, file: Path, offset: int, length: int) -> None:
        """Reads of these bytes of a file fail with EIO from now on; with length 0, none do."""
        os.setxattr(file, "user.unreadable", f"{offset} {length}".encode())

    def positions(self) -> list[str]:
        """The kinds of all positions since `inject`, as "KIND OF"."""
        found: list[str] = []
        while True:
            os.setxattr(self.mount, "user.positions", str(len(found)).encode())
            more = os.getxattr(self.mount, "user.positions").decode().splitlines()
            if not more:
                return found
            found += more


@contextmanager
def faulty_disk(mount: Path) -> Iterator[FaultyDisk]:
    """Mount one at an empty directory."""
    with mounted_by("tests.crash.faults.filesystem", mount):
        yield FaultyDisk(mount)
