"""Extents of a device with write-back: what is dirty lies over what is below.

Only whole blocks are said to be holes, for clients ask and are told in those. Both are walked once,
side by side, and no further than the answer goes: it costs what it tells and what it passes,
however much is dirty in the range that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from bockd.drivers.writeback.dirtymap import Piece
from bockd.drivers.writeback.records import Kind
from bockd.model import BLOCK_SIZE, GIB, Extent

MOST_PIECES = 500
"""Dirty pieces that one answer passes: a millisecond or two of work. It ends behind them then, and
clients ask again from there. (Those of one block are passed in any case, which are 4096 at most.)
"""

LONGEST_BYTES = 256 * GIB
"""What one answer covers, at most: to find nothing dirty in it is a quarter of a millisecond."""

_HOLES = (Kind.TRIM, Kind.ZERO)


class Run(NamedTuple):
    """A range of whole blocks that is dirty; its edges are the device's, or those of a request. If
    it is empty, what follows is not known, and the last one."""

    start: int
    end: int
    hole: bool


def runs_of(pieces: Iterable[Piece], offset: int) -> Iterator[Run]:
    """Yield what dirty pieces make of their blocks from `offset` on, in order: a block is data if
    any of it is."""
    at = offset
    for nth, (start, end, record) in enumerate(pieces):
        if nth >= MOST_PIECES and (known := max(at, _down(start))) > offset:
            yield Run(known, known, hole=False)
            return
        hole = record.kind in _HOLES
        first, stop = (_up(start), _down(end)) if hole else (_down(start), _up(end))
        first = max(first, at)
        if first < stop:
            yield Run(first, stop, hole)
            at = stop


def merged(over: Iterable[Run], below: list[Extent], limit: int) -> list[Extent]:
    """Return extents of the range that those of the device below cover, or of its beginning, with
    the dirty runs laid over them; at most `limit`."""
    found: list[Extent] = []
    begin = at = below[0].offset_bytes
    kind: bool | None = None
    for stop, hole in _pieces(over, below):
        if kind is not None and hole != kind:
            found.append(Extent(begin, at - begin, kind))
            if len(found) == limit:
                return found
            begin = at
        at, kind = stop, hole
    assert kind is not None
    return [*found, Extent(begin, at - begin, kind)]


def _pieces(over: Iterable[Run], below: list[Extent]) -> Iterator[tuple[int, bool]]:
    """Yield where each piece ends of the range that extents cover, with the runs laid over them,
    and whether it is a hole."""
    at, end = below[0].offset_bytes, _end(below[-1])
    rest = iter(below)
    extent = next(rest)
    for first, stop, hole in chain(over, (Run(end, end, hole=False),)):
        until = min(first, end)
        while at < until:
            while _end(extent) <= at:
                extent = next(rest)
            at = min(_end(extent), until)
            yield at, extent.hole
        if at == end or first == stop:
            return
        at = min(stop, end)
        yield at, hole


def _end(extent: Extent) -> int:
    return extent.offset_bytes + extent.length_bytes


def _down(offset: int) -> int:
    return offset // BLOCK_SIZE * BLOCK_SIZE


def _up(offset: int) -> int:
    return -(-offset // BLOCK_SIZE) * BLOCK_SIZE
