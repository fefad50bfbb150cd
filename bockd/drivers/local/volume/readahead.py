"""Reading ahead: which readers of a device are sequential, and what is to be read for them.

The kernel's own readahead is off for layers (`Layer.open`), because most requests are random. A
reader whose misses follow each other is a *stream*. What lies ahead of it is asked for in
*spans*: the first is as long as what it is known to have read, and each is twice as long as the
one before. So what is asked for in vain is never much more than what was wanted. A reader that
finds everything in memory is not seen here any more; in the middle of each span there is a
*mark* instead, and a read that touches it is reported.

Pure arithmetic, for the owner thread. Offsets and lengths are in bytes of the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from bockd.model import MIB

MAX_SPAN_BYTES = 8 * MIB
"""A reader has half of it before it when the next one is asked for: at 5 GB/s that takes 0.8 ms,
longer than most disks take to answer."""

MAX_STREAMS = 8
"""The fast lane compares each read with the mark of each."""

MAX_CANDIDATES = 64
"""Misses that the next one may follow. A sequential reader is forgotten when random ones have so
many between two of its own."""

Range = tuple[int, int]
"""Offset and end."""


@dataclass(slots=True)
class _Stream:
    low: int
    """Where the reader was when the last span was asked for."""
    front: int
    """Where the last span ends."""
    span: int

    @property
    def mark(self) -> int:
        return self.front - self.span // 2

    def advance(self, offset: int, end: int) -> Range:
        """Ask for another span, while the reader reads offset..end."""
        start = max(self.front, end)
        self.span = min(2 * self.span, MAX_SPAN_BYTES)
        self.low, self.front = offset, start + self.span
        return start, self.front


class ReadAhead:
    """The streams of one device."""

    def __init__(self) -> None:
        self.marks: list[int] = []
        """One of each stream, always in this list: a read that touches one is to be reported."""
        self._streams: list[_Stream] = []
        self._candidates: dict[int, int] = {}
        """Where a miss ended, and how much was read before in one go."""

    def missed(self, offset: int, end: int) -> Range | None:
        """Take note of a read of offset..end that had to wait for the disk. Return what is to be
        read ahead, if anything is."""
        for stream in self._streams:
            if stream.low <= offset <= stream.front:
                return self._advance(stream, offset, end) if end > stream.mark else None
        before = self._candidates.pop(offset, 0)
        known = before + end - offset
        if before:
            span = min(known, MAX_SPAN_BYTES)
            return self._begin(_Stream(offset, end + span, span), end)
        if len(self._candidates) == MAX_CANDIDATES:
            del self._candidates[next(iter(self._candidates))]
        self._candidates[end] = known
        return None

    def touched(self, offset: int, end: int) -> Range | None:
        """Take note of a read of offset..end that touches a mark. Return what is to be read
        ahead."""
        for stream in self._streams:
            if offset <= stream.mark < end:
                return self._advance(stream, offset, end)
        return None

    def _begin(self, stream: _Stream, end: int) -> Range:
        if len(self._streams) == MAX_STREAMS:
            del self._streams[0]  # the one that has not moved for longest
        self._streams.append(stream)
        self._set_marks()
        return end, stream.front

    def _advance(self, stream: _Stream, offset: int, end: int) -> Range:
        self._streams.remove(stream)
        self._streams.append(stream)
        ahead = stream.advance(offset, end)
        self._set_marks()
        return ahead

    def _set_marks(self) -> None:
        self.marks[:] = [stream.mark for stream in self._streams]


def extents_of(reads: list[Range]) -> list[Range]:
    """Put reads that follow each other together. They are in order of their offsets."""
    found: list[Range] = []
    for offset, end in reads:
        if found and offset == found[-1][1]:
            found[-1] = found[-1][0], end
        else:
            found.append((offset, end))
    return found
