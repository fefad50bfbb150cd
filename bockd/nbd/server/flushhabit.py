"""Whether a client flushes after every write: then the disk may begin before the flush comes.

What it writes in place is begun to be written back as soon as its reply is sent, in the fast lane
(`_fastlane_writeback.h`). The flush that follows finds that under way, and waits for less. It
promises what it always does: nothing is taken for written because it was begun.

Begun in vain it costs a write to the disk that a later one may repeat. So it takes a few flushes
that each came after one write, and the first that did not, or a second write before the flush, ends
it.
"""

from __future__ import annotations

REGULAR_FLUSHES = 8
"""So many flushes in a row, each after one write, and the next write is likely to be flushed."""


class FlushHabit:
    """How one client flushes, as the counters of its export tell."""

    __slots__ = ("_flushes", "_regular", "_writes")

    def __init__(self) -> None:
        self._writes = self._flushes = 0
        """Of the export, at its last flush."""
        self._regular = 0

    def expects_flush(self, writes: int, flushes: int) -> bool:
        """Return whether a flush is likely to follow the next write. To be asked before each;
        `writes` and `flushes` are what the export has served so far. Others on the same export
        count as well, and end the habit."""
        if flushes != self._flushes:
            is_regular = (writes - self._writes, flushes - self._flushes) == (1, 1)
            self._regular = self._regular + 1 if is_regular else 0
            self._writes, self._flushes = writes, flushes
        return self._regular >= REGULAR_FLUSHES and writes == self._writes
