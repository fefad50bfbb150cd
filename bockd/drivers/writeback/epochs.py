"""An epoch: what clients have changed between two barriers, and what of it is sent below.

The order of changes within an epoch is nobody's promise, so what was overwritten in it is left out,
and neighbours are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bockd.drivers.writeback.dirtymap import DirtyMap, Piece
from bockd.drivers.writeback.records import Kind, Record
from bockd.model import BLOCK_SIZE, GIB, MIB

WRITE_BYTES = 1 * MIB
"""What is written below by one request, at most; it ends at a multiple of this."""

ZERO_BYTES = 1 * GIB
"""What is made zeros below by one request, at most."""

MOST_PIECES = 1000
"""That one request is made of: they are looked through at once, in a millisecond or two."""


@dataclass(eq=False, slots=True)
class Epoch:
    """What a log has between two barriers."""

    map: DirtyMap = field(default_factory=DirtyMap)
    barrier: int = 0
    """The sequence of the barrier at its end; 0 if it goes on."""
    first: int = 0
    """The sequence of its first record; 0 if it has none."""
    bytes: int = 0
    """What its records take in the log."""
    began: float = 0.0
    """When the first of them was appended, in seconds since the epoch."""

    @property
    def empty(self) -> bool:
        return not self.first

    def add(self, record: Record, size_bytes: int, time: float) -> int:
        """Note a record that was appended. Return how many pieces more the map has."""
        if self.empty:
            self.first, self.began = record.sequence, time
        self.bytes += size_bytes
        before = self.map.count
        self.map.put(record)
        return self.map.count - before


class Job(NamedTuple):
    """A request to the device below."""

    kind: Kind
    offset: int
    length: int
    pieces: list[Piece]
    """Of a WRITE: what its data is made of, in order."""


def cut(job: Job, length: int) -> tuple[Job, Job]:
    """Return the first bytes of a WRITE as a job, and the rest as another one."""
    at = job.offset + length
    first = [(start, min(end, at), record) for start, end, record in job.pieces if start < at]
    rest = [(max(start, at), end, record) for start, end, record in job.pieces if end > at]
    return (
        Job(job.kind, job.offset, length, first),
        Job(job.kind, at, job.length - length, rest),
    )


def jobs_of(epoch: Epoch) -> Iterator[Job]:
    """Yield what writes an epoch below, in any order."""
    run: list[Piece] = []
    for piece in epoch.map.pieces():
        if run and (len(run) == MOST_PIECES or not _joins(run, piece)):
            yield from _jobs(run)
            run = []
        run.append(piece)
    if run:
        yield from _jobs(run)


def _joins(run: list[Piece], piece: Piece) -> bool:
    first, (_, end, last) = run[0][0], run[-1]
    start, stop, record = piece
    if start != end or record.kind is not last.kind:
        return False
    if record.kind is Kind.WRITE:
        return first // WRITE_BYTES == (stop - 1) // WRITE_BYTES
    return stop - first <= ZERO_BYTES


def _jobs(run: list[Piece]) -> Iterator[Job]:
    start, end, kind = run[0][0], run[-1][1], run[0][2].kind
    if kind is not Kind.TRIM:
        yield Job(kind, start, end - start, run if kind is Kind.WRITE else [])
        return
    # A trim leaves parts of blocks alone, but one of which a part was overwritten is zeros for
    # the rest.
    first, last = -(-start // BLOCK_SIZE) * BLOCK_SIZE, end // BLOCK_SIZE * BLOCK_SIZE
    if first >= last:
        yield Job(Kind.ZERO, start, end - start, [])
        return
    if start < first:
        yield Job(Kind.ZERO, start, first - start, [])
    yield Job(Kind.TRIM, first, last - first, [])
    if last < end:
        yield Job(Kind.ZERO, last, end - last, [])
