"""Who may use what, across processes: flock on small files that go only with what they guard.

The kernel drops a lock with its process, so a SIGKILL leaves nothing stale.

| lock         | exclusively                                  | shared                           |
|--------------|----------------------------------------------|----------------------------------|
| the pool's   | who changes the catalogue: a daemon, `check` | -                                |
| guests       | `check`, which needs the pool for itself     | a process beside the daemon: the |
|              |                                              | nbdkit plugin                    |
| a volume's   | its one writer (promise D6), whoever it is   | -                                |
| backup       | who copies a pool that a daemon serves       | -                                |
| a snapshot's | its deletion                                 | each process that reads it       |
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from bockd.errors import InUseError, from_os_error

log = logging.getLogger(__name__)


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
            fd = _open(path)
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
        """Release the lock. Once only."""
        os.close(self._fd)
        self._fd = -1


def _open(path: Path) -> int:
    """Open a lock's file, which is made if it is not there. OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    # What is there can be locked without being written.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def touch_if_possible(path: Path) -> None:
    """Make a lock's file if it does not exist. If that fails, it is made when it is needed."""
    try:
        touch(path)
    except OSError as error:
        log.warning("the lock file %s was not made: %s", path, error)


def touch(path: Path) -> None:
    """Make a lock's file if it does not exist. Raises OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_held(path: Path) -> bool:
    """Return whether a process, this one included, holds the lock exclusively at this moment.
    Leaves no file behind. Raises DeniedError, DeviceError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os_error(error, f"looking at {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
