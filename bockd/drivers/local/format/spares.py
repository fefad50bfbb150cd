"""Journal segments kept in reserve, so that a full disk can still begin and go on with a journal.

A spare is a file of a segment's size in the journal's directory, every block of it allocated:
`<v>.<g>.<n>.spare`. It becomes a segment by being renamed and rewritten in place, and a segment
that is done with becomes a spare by being renamed. Its space is never free in between, so whatever
else writes to the disk cannot take it.

A spare lies in the directory of the segments so that one sync of that directory covers the whole
rename: no power loss leaves one file under both names once the new one is relied on.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from bockd.drivers.local.format import journal
from bockd.drivers.local.format.layout import JournalName, Layout, unlink_if_present
from bockd.failpoints import Failpoint, hit
from bockd.model import MIB, VolumeId

log = logging.getLogger(__name__)

SPARE_SEGMENTS = 4
"""Volumes that may begin a journal, or change segments, at once while the disk is full."""

ROOM_BYTES = 16 * MIB
"""Free before spares are made anew while volumes are in use, as for the ballast."""


_ZEROS = b"\0" * MIB


class SpareSegments:
    """The spares of one pool, for any thread. Several processes may use them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.wanted = False
        """There are too few, as far as this process knows."""

    def take(self, path: Path) -> bool:
        """Rename a spare to `path`, in the journal's directory. Return False when there is none."""
        for name in self._layout.spare_segments():
            spare = self._layout.spare_segment(name)
            try:
                if os.stat(spare).st_size != journal.SEGMENT_BYTES:
                    continue
                os.rename(spare, path)
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                log.warning("spare journal segment %s cannot be used: %s", spare, error)
                continue
            self.wanted = True
            return True
        return False

    def keep_or_unlink(self, path: Path, name: JournalName) -> None:
        """Keep a segment that nothing needs any more as a spare, or remove its file. Raises
        OSError."""
        if self.wanted and self._is_worth_keeping(path):
            if len(self._layout.spare_segments()) < SPARE_SEGMENTS:
                os.rename(path, self._layout.spare_segment(name))
                return
            self.wanted = False
        unlink_if_present(path)

    def _is_worth_keeping(self, path: Path) -> bool:
        """Whether a file is whole, and has no second name under which it is to stay as it is."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return False
        return status.st_size == journal.SEGMENT_BYTES and status.st_nlink == 1

    def restore(self) -> None:
        """Make the spares that are missing, if there is ample room by now. Blocks."""
        if not self.wanted:
            return
        try:
            status = os.statvfs(self._layout.journal)
        except OSError as error:
            log.warning("spare journal segments were not made: %s", error)
            return
        if status.f_bavail * status.f_frsize >= ROOM_BYTES:
            self.ensure()

    def ensure(self) -> bool:
        """Make the spares that are missing or incomplete. Return False when there is no room.
        Blocks."""
        try:
            whole = 0
            for name in self._layout.spare_segments():
                spare = self._layout.spare_segment(name)
                if os.stat(spare).st_size == journal.SEGMENT_BYTES:
                    whole += 1
                else:
                    os.unlink(spare)
            for name in self._unused_names(SPARE_SEGMENTS - whole):
                self._make(self._layout.spare_segment(name))
        except OSError as error:
            self.wanted = True
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log.warning("spare journal segments were not made: %s", error)
            return False
        self.wanted = False
        return True

    def _unused_names(self, count: int) -> list[JournalName]:
        """Names for new spares; no volume has the id 0."""
        taken = set(self._layout.spare_segments())
        names = (JournalName(VolumeId(0), 0, number) for number in range(2 * SPARE_SEGMENTS))
        return [name for name in names if name not in taken][: max(0, count)]

    def _make(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while written < journal.SEGMENT_BYTES:
                written += os.pwrite(fd, _ZEROS[: journal.SEGMENT_BYTES - written], written)
            hit(Failpoint.SPARE_WRITTEN)
            os.fsync(fd)
        except BaseException:
            # What stays is short, and is made anew by the next attempt.
            unlink_if_present(path)
            raise
        finally:
            os.close(fd)
