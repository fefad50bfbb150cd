"""Traces that the tests write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bockd.trace.reading import open_trace
from bockd.trace.records import Header, Kind, Record, end_record

HEADER = Header("web", 1 << 30, 4096, 1_700_000_000.5)


def record(
    time_ns: int,
    kind: Kind = Kind.READ,
    offset: int = 0,
    length: int = 4096,
    *,
    flags: int = 0,
    latency_ns: int = 1000,
    order: int = 0,
) -> Record:
    return Record(time_ns, order, kind, flags, offset, length, latency_ns)


def write_trace(path: Path, records: Iterable[Record], *, ended: bool = True) -> Path:
    """Write a file of our own format."""
    parts = [HEADER.pack(), *(one.pack() for one in records)]
    path.write_bytes(b"".join(parts) + (end_record(0) if ended else b""))
    return path


def read_all(path: Path | str) -> list[Record]:
    with open_trace(str(path)) as trace:
        return list(trace.records)


def places(records: Sequence[Record]) -> list[tuple[Kind, int, int]]:
    """What every format has of requests."""
    return [(one.kind, one.offset, one.length) for one in records]
