"""The bytes of an export to another one, of another daemon perhaps, and whether both are the same.

Holes and blocks of zeros of the source are not sent to a target that reads as zeros. Both ends have
several requests under way at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from bockd.cli.convert import Show
from bockd.cli.copying import PIECE_BYTES, Reading, connected, data_runs, has_room
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

BATCH_PIECES: Final = 8
"""Compared at once."""

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
    """A target that reads as zeros where nothing was written (bockd.cli.copying.Target)."""

    def __init__(self, export: Export) -> None:
        self.unsaved_bytes = 0
        self.offset = 0
        """Where the reading began."""
        self._export = export

    def write(self, content: bytearray, length: int, position: int) -> None:
        view = memoryview(content)
        for begin, end in data_runs(content, length):
            while not has_room(self._export):
                self._export.receive()
            self._export.write(self.offset + position + begin, view[begin:end])
            self.unsaved_bytes += end - begin


def copy_across(source: Export, target: Export, offset: int, show: Show, note: Note) -> None:
    """Copy a source that does not change from `offset` to its end, to a target that holds the same
    or zeros there. What has been noted, and at the end all of it, survives power loss. Raises
    BockdError."""
    filled = _Filled(target)
    for begin in range(offset, source.size_bytes, WINDOW_BYTES):
        filled.offset = begin
        length = min(WINDOW_BYTES, source.size_bytes - begin)
        Reading(source, begin, length, filled, shifted(show, begin)).run()
        if filled.unsaved_bytes >= NOTED_BYTES:
            save(target)
            filled.unsaved_bytes = 0
            note(begin + length)
    save(target)
    note(source.size_bytes)


def save(target: Export) -> None:
    """Have all that was written survive power loss. Raises BockdError."""
    target.drain()
    target.flush()
    target.drain()


def shifted(show: Show, offset: int) -> Show:
    """Return a progress function for a part that begins at `offset`."""
    return None if show is None else lambda done: show(offset + done)


def compare(source: Export, target: Export, show: Show) -> None:
    """Compare all that one of two exports of the same size does not report as a hole. Raises
    DamagedError where they differ, BockdError."""
    for begin in range(0, source.size_bytes, WINDOW_BYTES):
        end = min(begin + WINDOW_BYTES, source.size_bytes)
        wanted = list(_pieces(_data(source, begin, end), _data(target, begin, end), begin, end))
        for first in range(0, len(wanted), BATCH_PIECES):
            batch = wanted[first : first + BATCH_PIECES]
            _compare_batch(source, target, batch)
            if show is not None:
                show(sum(batch[-1]))
        if show is not None:
            show(end)


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
