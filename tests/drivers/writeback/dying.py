"""A process that writes to volume "one" with write-back, in DIRECTORY, and says what was answered.

    python -m tests.drivers.writeback.dying DIRECTORY write|salvage

Or it writes back what is whole of a damaged log of that volume. It dies at the failpoint that its
environment names. For each change that was answered it appends a line to `answered`: offset and
value. The driver's record, and how often it was committed, is the file `record`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bockd.errors import NoSpaceError
from bockd.failpoints import arm
from bockd.model import BLOCK_SIZE

from .filedevice import FileDevice
from .opened import SIZE_BYTES, Opened
from .salvaging import salvage

BLOCKS = 24


class Recorded(Opened):
    """Its record is in a file."""

    async def _commit(self, record: str | None) -> None:
        await super()._commit(record)
        (self.path.parent / "record").write_text(f"{self.begun} {record or ''}")


class Closed(Recorded):
    """What an earlier process has left, and is not opened."""

    def __init__(self, root: Path) -> None:
        record, begun = _record(root)
        super().__init__(root / "logs", FileDevice(root / "below", SIZE_BYTES), record, begun)

    def open(self) -> None:  # type: ignore[override]
        """Leave it closed."""

    def flush(self) -> None:
        """There is nothing to flush."""


class _Refusing(FileDevice):
    """It takes nothing."""

    async def write(self, offset: int, data: memoryview) -> None:
        raise NoSpaceError("for a test")


def log_only(root: Path) -> Recorded:
    """Open a new volume, of which nothing gets below."""
    root.mkdir()
    return Recorded(root / "logs", _Refusing(root / "below", SIZE_BYTES))


def _record(root: Path) -> tuple[str | None, int]:
    record = root / "record"
    begun, named = record.read_text().split(" ") if record.exists() else ("0", "")
    return named or None, int(begun)


def open_again(root: Path) -> Recorded:
    """Open what an earlier process has left."""
    record, begun = _record(root)
    return Recorded(root / "logs", FileDevice(root / "below", SIZE_BYTES), record, begun)


def main(root: Path) -> None:
    """Write, flush, fill segments, drain and end."""
    opened, answered = open_again(root), (root / "answered").open("a")

    def write(block: int, value: int) -> None:
        opened.write(block * BLOCK_SIZE, bytes([value]) * BLOCK_SIZE)
        answered.write(f"{block} {value}\n")
        answered.flush()

    for turn in range(1, 4):
        for block in range(BLOCKS):
            write(block, 10 * turn + block % 7)
            if block % 5 == 0:
                opened.flush()
        opened.look()
    opened.run(opened.device.drain())
    write(0, 99)
    opened.close()


if __name__ == "__main__":
    arm(os.environ)
    if sys.argv[2] == "salvage":
        salvage(Closed(Path(sys.argv[1])))
    else:
        main(Path(sys.argv[1]))
