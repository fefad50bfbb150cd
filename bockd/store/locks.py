"""Who may use what, across processes: flock on small files that go only with what they guard.

The kernel drops a lock with its process, so a SIGKILL leaves nothing stale. The pool lock is held
by whoever changes the catalogue (a daemon, or `check`); a volume's exclusively by its one writer
(promise D6); a snapshot's shared by each reader and exclusively by its deletion.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from bockd.errors import InUseError, from_os_error


class FileLock:
    """A held lock; `release` gives it back. Made by `acquire`."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def acquire(cls, path: Path, *, shared: bool, held_message: str) -> FileLock:
        """Take the lock, or raise InUseError(`held_message` and, where known, the holder),
        NoSpaceError, DeniedError or DeviceError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"locking {path}") from error
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise InUseError(held_message + (f" (process {holder})" if holder else "")) from None
        except BaseException:
            os.close(fd)
            raise
        if not shared:
            with contextlib.suppress(OSError):  # a courtesy to who is refused; the disk may be full
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd, path)

    def release(self) -> None:
        """Give the lock back. Once only."""
        os.close(self._fd)
        self._fd = -1
