"""A few MiB of disk that are given up when the disk is full, so that metadata can still commit.

Without it a full disk would refuse the very transactions (delete, trim) that free space.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

from bockd.failpoints import Failpoint, hit
from bockd.model import MIB

log = logging.getLogger(__name__)

BALLAST_BYTES = 8 * MIB
"""LMDB rewrites each changed page on the way to its root: a large delete needs tens of pages; a
journal segment needs 2 MiB. Eight MiB leave room for several of each."""


ROOM_BYTES = 2 * BALLAST_BYTES
"""Free before the ballast is taken back while volumes are in use: taking the last of a disk would
fail a client's write for no gain."""


class Ballast:
    """The ballast file of one pool."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.given = False
        """The space was given up, by this process, and not taken back."""

    def restore(self) -> None:
        """Write again what was given up, if there is ample room by now. Blocks."""
        if not self.given:
            return
        try:
            status = os.statvfs(self._path.parent)
        except OSError as error:
            log.warning("the ballast was not written: %s", error)
            return
        if status.f_bavail * status.f_frsize >= ROOM_BYTES:
            self.ensure()

    def ensure(self) -> bool:
        """Write the ballast in full if it is missing or short. Return False when there is no
        room."""
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_size == BALLAST_BYTES:
                    self.given = False
                    return True
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("the ballast was not written: %s", error)
            return False
        try:
            written = 0
            while written < BALLAST_BYTES:
                written += os.pwrite(fd, bytes(min(MIB, BALLAST_BYTES - written)), written)
            hit(Failpoint.BALLAST_WRITTEN)
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log.warning("the ballast was not written: %s", error)
            # What stays is short, and completed by the next attempt.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            return False
        finally:
            os.close(fd)
        self.given = False
        return True

    def release(self) -> bool:
        """Give the space back to the file system. Return False when it was already given, or cannot
        be."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("the ballast was not given up: %s", error)
            return False
        self.given = True
        return True
