"""The data directory of a daemon whose pool lies elsewhere: sockets, credentials, what is cached.

One daemon at a time has it, by the same lock as a local pool, so that a daemon of another kind is
refused, too.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bockd.directories import make_durable
from bockd.errors import InUseError, InvalidRequestError, from_os_error

_LOCK = Path("locks/pool")
_INDEX = Path("index/data.mdb")
"""Where a local pool has its lock and its index."""

REPLICA = "replica"
"""Where copies of the index of a pool in Ceph are."""


class DataDirectory:
    """A data directory that this process has to itself, until `release` or its end."""

    def __init__(self, path: Path) -> None:
        """Take it; make it, if it is not there. Blocks. Raises InUseError, DeniedError,
        NoSpaceError, DeviceError."""
        self.path = path
        lock = path / _LOCK
        try:
            make_durable(lock.parent)
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"locking {lock}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise InUseError(
                f"the data directory {path} is in use by another bockd"
                + (f" (process {holder})" if holder else "")
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise from_os_error(error, f"locking {lock}") from error

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._fd)


def refuse_local_pool(path: Path) -> None:
    """Raise InvalidRequestError if there is a local pool in a data directory: its credentials would
    be overwritten. Blocks."""
    if os.path.exists(path / _INDEX):
        raise InvalidRequestError(
            f"there is a local pool in {path}: give a daemon that serves a pool in Ceph a data "
            "directory of its own (data_dir), or serve the local one (pool.driver)"
        )


def refuse_gateway(path: Path) -> None:
    """Raise InvalidRequestError if a data directory is that of a daemon whose pool is in Ceph.
    Blocks."""
    if is_of_gateway(path):
        raise InvalidRequestError(
            f"{path} is that of a daemon whose pool is in a Ceph cluster: set pool.driver to rbd, "
            "or give a local pool a data directory of its own (data_dir)"
        )


def is_of_gateway(path: Path) -> bool:
    """Return whether a data directory is that of a daemon whose pool is in Ceph. Blocks."""
    return os.path.isdir(path / REPLICA) and not os.path.exists(path / _INDEX)
