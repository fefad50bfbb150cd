"""The text that blkparse prints of a block device's requests (blkparse(1), its default format).

      8,0    3       11     0.009507758   697  D   W 223490 + 8 [kjournald]
      8,0    3       12     0.009538995   697  C   W 223490 + 8 [0]

A request is taken from where it was queued (Q) or, once that is seen, issued to the driver (D), to
where it was completed (C). What was merged into another request (M, F) is that one's. Sectors have
512 bytes. Other events, and the summary at the end, are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from bockd.errors import InvalidRequestError
from bockd.model import MAX_VOLUME_BYTES
from bockd.trace.records import FUA, Kind, Record

_SECTOR_BYTES: Final = 512
_EVENT: Final = re.compile(
    rb" *(\d+,\d+) +\d+ +\d+ +(\d{1,9})\.(\d{9}) +\d+ +([A-Za-z]{1,2}) +([A-Z]+)(?: +(.*))?$"
)
_PLACE: Final = re.compile(rb"(\d{1,16}) \+ (\d{1,9}) ")
_USED: Final = frozenset({b"Q", b"D", b"C", b"M", b"F"})
_MAX_LINE_BYTES: Final = 4096
_MAX_UNFINISHED: Final = 1 << 18
"""Requests that are remembered until they are completed; a device has fewer under way."""

_Key = tuple[Kind, int, int]


def looks_like_blkparse(line: bytes) -> bool:
    """Return whether a file whose first line this is holds blkparse's text."""
    return _EVENT.match(line.rstrip(b"\r\n")) is not None


def read_blkparse(file: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the requests in the order in which they were completed, then those that were not, with
    latency 0. Raises InvalidRequestError, which names the line."""
    reader = _Reader()
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
        event = _EVENT.match(line.rstrip(b"\r\n"))
        if event is None:
            if line[:1] in b" 0123456789" and line.strip() and b"," in line[:8]:
                raise InvalidRequestError(f"{name}: line {number} is no line of blkparse")
            continue
        try:
            yield from reader.take(event, number)
        except ValueError as error:
            raise InvalidRequestError(f"{name}: line {number}: {error}") from error
    yield from reader.rest()


class _Reader:
    """Matches the events of requests."""

    def __init__(self) -> None:
        self._device: bytes | None = None
        self._open: dict[_Key, tuple[int, int, int, bool]] = {}
        """Time, line, flags, and whether the driver had it."""
        self._issued = False

    def take(self, event: re.Match[bytes], number: int) -> Iterator[Record]:
        """Take one event. Yield the requests that it completes. Raises ValueError."""
        device, seconds, fraction, action, rwbs, told = event.groups()
        if self._device is None:
            self._device = device
        elif device != self._device:
            raise ValueError(
                f"a second device, {device.decode()} beside {self._device.decode()}: print one "
                "with blkparse -i"
            )
        place = _PLACE.match(told or b"")
        if action not in _USED:
            return
        time_ns = int(seconds) * 10**9 + int(fraction)
        for kind, flags, sectors in _requests_of(rwbs, place):
            begin = int(place[1]) * _SECTOR_BYTES if place and sectors else 0
            if begin + sectors * _SECTOR_BYTES > MAX_VOLUME_BYTES:
                raise ValueError("no volume is so large")
            key = kind, begin, sectors * _SECTOR_BYTES
            if action in (b"M", b"F"):
                self._open.pop(key, None)
            elif action == b"C":
                if (found := self._open.pop(key, None)) is not None:
                    yield _record(key, found, time_ns - found[0])
            elif action == b"D" or key not in self._open:
                self._issued = self._issued or action == b"D"
                if len(self._open) >= _MAX_UNFINISHED:
                    self._open.pop(next(iter(self._open)))
                self._open[key] = time_ns, number, flags, action == b"D"

    def rest(self) -> Iterator[Record]:
        """Yield the requests that were not completed; of a trace that shows what the driver had,
        those that it had."""
        for key, found in self._open.items():
            if found[3] or not self._issued:
                yield _record(key, found, 0)


def _record(key: _Key, found: tuple[int, int, int, bool], latency_ns: int) -> Record:
    kind, offset, length = key
    time_ns, number, flags, _ = found
    return Record(time_ns, number, kind, flags, offset, length, max(latency_ns, 0))


def _requests_of(rwbs: bytes, place: re.Match[bytes] | None) -> Iterator[tuple[Kind, int, int]]:
    """Kind, flags and sectors of what an event is about: an F in front is a flush, which may come
    with a write; an F behind the kind is FUA (the kernel's blk_fill_rwbs)."""
    sectors = int(place[2]) if place else 0
    if rwbs.startswith(b"F"):
        yield Kind.FLUSH, 0, 0
        rwbs = rwbs[1:]
    kind = {b"R": Kind.READ, b"W": Kind.WRITE, b"D": Kind.TRIM}.get(rwbs[:1])
    if kind is not None and sectors:
        yield kind, FUA if b"F" in rwbs[1:] else 0, sectors
