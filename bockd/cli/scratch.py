"""Files without a name, for what arrives or is unpacked before it is imported.

Nothing is left of them whatever kills the program. Runs of zeros take no space.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bockd.errors import BockdError, InvalidRequestError, NoSpaceError
from bockd.model import MAX_VOLUME_BYTES, MIB

DIRECTORY = "/var/tmp"  # noqa: S108 - a file without a name cannot be guessed or replaced
"""Not /tmp, which is memory on many machines. TMPDIR says otherwise."""

MAX_FILE_BYTES = MAX_VOLUME_BYTES
"""No image's file is larger than the largest disk, however badly it is packed."""

KEEP_FREE_BYTES = 64 * MIB
"""Left for others on the file system when what arrives has an unknown length."""

LOOK_BYTES = 32 * MIB
"""How much is written between two looks at what is free."""

_HOLE_BYTES = 64 << 10
_ZEROS = bytes(_HOLE_BYTES)


def directory() -> str:
    """Return the directory of scratch files."""
    return os.environ.get("TMPDIR", DIRECTORY)


class Scratch:
    """A file that is written from its beginning to its end."""

    def __init__(self, file: IO[bytes], called: str) -> None:
        self.file = file
        self._called = called
        self.done_bytes = 0
        self._unlooked = 0

    @property
    def path(self) -> Path:
        """Where programs that we start find the file, while we live."""
        return Path(f"/proc/{os.getpid()}/fd/{self.file.fileno()}")

    def write(self, chunk: bytes) -> None:
        """Append. Raises InvalidRequestError for more than any image has, NoSpaceError before
        the file system is full, OSError."""
        self.done_bytes += len(chunk)
        if self.done_bytes > MAX_FILE_BYTES:
            raise InvalidRequestError(f"{self._called} is larger than {MAX_FILE_BYTES} bytes")
        for at in range(0, len(chunk), _HOLE_BYTES):
            piece = chunk[at : at + _HOLE_BYTES]
            if piece == _ZEROS[: len(piece)]:
                self.file.seek(len(piece), os.SEEK_CUR)
                continue
            self.file.write(piece)
            self._unlooked += len(piece)
        if self._unlooked >= LOOK_BYTES:
            self._unlooked = 0
            check_room(self._called, KEEP_FREE_BYTES)

    def begin_anew(self) -> None:
        """Discard what was written. Raises OSError."""
        self.file.seek(0)
        self.file.truncate()
        self.done_bytes = 0

    def end(self) -> None:
        """Give the file its length. Raises OSError."""
        self.file.flush()
        self.file.truncate(self.done_bytes)


@contextlib.contextmanager
def scratch(called: str) -> Iterator[Scratch]:
    """Yield a scratch file, which is gone after the body. `called` is its name in messages. Raises
    BockdError."""
    try:
        with tempfile.TemporaryFile(dir=directory()) as file:
            yield Scratch(file, called)
    except OSError as error:
        told = f"cannot keep {called} in {directory()}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            raise NoSpaceError(f"{told}; set TMPDIR to a directory with room") from error
        raise BockdError(told) from error


def check_room(called: str, more_bytes: int) -> None:
    """Raise NoSpaceError when scratch files need more bytes than the file system has free."""
    free = shutil.disk_usage(directory()).free
    if more_bytes > free:
        raise NoSpaceError(
            f"{called} needs {more_bytes} bytes more, {directory()} has {free}; "
            "set TMPDIR to a directory with room"
        )
