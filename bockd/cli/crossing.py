"""The bytes of an export to another one, of another daemon perhaps, and whether both are the same.

Holes and blocks of zeros of the source are not sent to a target that is blank, and become holes of
another one. Both ends have several requests under way at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from bockd.cli.convert import Show
from bockd.cli.copying import GAP_BYTES, PIECE_BYTES, Reading, connected, data_runs, has_room
from bockd.cli.records import WayIn
from bockd.errors import DamagedError, UnavailableError
from bockd.model import GIB, MIB
from bockd.nbd.client import Export
from bockd.tls.trust import Trust

WINDOW_BYTES: Final = GIB
"""Copied, or compared, between two looks at how far it is. A volume of 16 TiB has 16,384."""

NOTED_BYTES: Final = 256 * MIB
"""Data between two notes of how far the copy is: what is copied again after an interruption at
most. A note costs a flush and a commit."""

BATCH_BYTES: Final = 8 * MIB
BATCH_PIECES: Final = 64
"""Compared at once, at most."""

Ranges = Sequence[tuple[int, int]]
"""Offset and length in bytes, in order."""

Note = Callable[[int], None]
"""Called with the offset up to which the target has everything, safe from power loss."""


def reached(way: WayIn, trust: Trust) -> Export:
    """Connect to an attached volume: by its daemon's socket if that is on this machine, else over
    TCP. Raises UnavailableError."""
    if way.unix_uri is not None:
        try:
            # Another daemon behind the same path knows no export of this name.
            return connected(way.unix_uri)
        except UnavailableError:
            if way.uri is None:
                raise
    if way.uri is None:
        raise UnavailableError(
            "the daemon there is on another machine, and serves NBD on its Unix socket only: let "
            "it listen with BOCKD_NBD_LISTEN (docs/attachments.md)"
        )
    return connected(way.uri, trust)


class _Filled:
    """A target of a copy (bockd.cli.copying.Target). What is not written to one that is not blank
    becomes zeros (`zero_rest`)."""

    def __init__(self, export: Export, *, blank: bool) -> None:
        self.unsaved_bytes = 0
        self.offset = 0
        """Where the reading began."""
        self._export = export
        self._written: list[tuple[int, int]] | None = None if blank else []

    def write(self, content: bytearray, length: int, position: int) -> None:
        view = memoryview(content)
        for begin, end in data_runs(content, length):
            at = self.offset + position + begin
            self._wait_for_room()
            self._export.write(at, view[begin:end])
            self.unsaved_bytes += end - begin
            if self._written is not None:
                self._written.append((at, at + end - begin))

    def zero_rest(self, end: int) -> None:
        """Have all from where the reading began to `end` that was not written become zeros."""
        if self._written is None:
            return
        at = self.offset
        for begin, stop in [*sorted(self._written), (end, end)]:
            if at < begin:
                self._wait_for_room()
                self._export.zero(at, begin - at)
            at = stop
        self._written.clear()

    def _wait_for_room(self) -> None:
        while not has_room(self._export):
            self._export.receive()


def copy_across(
    source: Export, target: Export, ranges: Ranges, show: Show, note: Note, *, blank: bool
) -> None:
    """Copy ranges of a source that does not change to a target, which is blank there or holds
    anything. What has been noted, and at the end all of it, survives power loss. Raises
    BockdError."""
    filled, done_bytes = _Filled(target, blank=blank), 0
    for begin, length in _windows(ranges):
        filled.offset = begin
        Reading(source, begin, length, filled, shifted(show, done_bytes)).run()
        filled.zero_rest(begin + length)
        done_bytes += length
        if filled.unsaved_bytes >= NOTED_BYTES:
            save(target)
            filled.unsaved_bytes = 0
            note(begin + length)
    save(target)
    note(source.size_bytes)


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges with small gaps between them: to copy what is the same costs less than another
    request."""
    found: list[tuple[int, int]] = []
    for offset, length in ranges:
        if found and offset - sum(found[-1]) <= GAP_BYTES:
            first, _ = found.pop()
            found.append((first, offset + length - first))
        else:
            found.append((offset, length))
    return found


def lengths(ranges: Ranges) -> int:
    """Sum ranges up, in bytes."""
    return sum(length for _, length in ranges)


def _windows(ranges: Ranges) -> Iterator[tuple[int, int]]:
    """Cut ranges, so that none is longer than a window."""
    for offset, length in ranges:
        for begin in range(offset, offset + length, WINDOW_BYTES):
            yield begin, min(WINDOW_BYTES, offset + length - begin)


def save(target: Export) -> None:
    """Have all that was written survive power loss. Raises BockdError."""
    target.drain()
    target.flush()
    target.drain()


def shifted(show: Show, offset: int) -> Show:
    """Return a progress function for a part that begins at `offset`."""
    return None if show is None else lambda done: show(offset + done)


def compare(source: Export, target: Export, ranges: Ranges, show: Show) -> None:
    """Compare all in these ranges that one of two exports does not report as a hole. Raises
    DamagedError where they differ, BockdError."""
    batch: list[tuple[int, int]] = []
    for offset, length, done_bytes in _compared(source, target, ranges):
        batch.append((offset, length))
        if len(batch) == BATCH_PIECES or lengths(batch) >= BATCH_BYTES:
            _compare_batch(source, target, batch)
            batch.clear()
            if show is not None:
                show(done_bytes)
    _compare_batch(source, target, batch)
    if show is not None:
        show(lengths(ranges))


def _compared(source: Export, target: Export, ranges: Ranges) -> Iterator[tuple[int, int, int]]:
    """Offset and length of the pieces that are to be compared, and how much of the ranges is behind
    each. Extents are asked for only where a range is long. Nothing may be under way."""
    before_bytes = 0
    for begin, length in _windows(ranges):
        end = begin + length
        if length <= PIECE_BYTES:
            yield begin, length, before_bytes + length
        else:
            data = (_data(source, begin, end), _data(target, begin, end))
            for offset, count in list(_pieces(*data, begin, end)):
                yield offset, count, before_bytes + offset + count - begin
        before_bytes += length


def _compare_batch(source: Export, target: Export, batch: list[tuple[int, int]]) -> None:
    for offset, length in batch:
        source.read(offset, length)
        target.read(offset, length)
    expected, found = _received(source), _received(target)
    for offset, _ in batch:
        if expected[offset] != found[offset]:
            pair = enumerate(zip(expected[offset], found[offset], strict=True))
            at = offset + next(number for number, (one, other) in pair if one != other)
            raise DamagedError(f"the copy differs from the original at byte {at}")


def _received(export: Export) -> dict[int, bytearray]:
    """The data of all reads that are under way, by offset."""
    found: dict[int, bytearray] = {}
    while export.pending:
        part = export.receive()
        begin = part.request.offset
        content = found.setdefault(begin, bytearray(part.request.length))
        at = part.offset - begin
        content[at : at + part.length] = memoryview(export.content)[: part.length]
    return found


def _data(export: Export, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what is no hole, in order."""
    while begin < end:
        export.status(begin, end - begin)
        while export.pending:
            for length, zero in export.receive().extents:
                stop = min(begin + length, end)
                if not zero:
                    yield begin, stop
                begin = stop


def _pieces(
    one: Iterator[tuple[int, int]], other: Iterator[tuple[int, int]], begin: int, end: int
) -> Iterator[tuple[int, int]]:
    """Offset and length of the pieces that cover what either has, each once, in order."""
    done = begin
    for start, stop in sorted([*one, *other]):
        for offset in range(max(start, done), stop, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, stop - offset)
        done = max(done, min(stop, end))
