"""The engine with small journals, small caches, eager merging and zeros allocated a few at a time,
so that a short life sees all of it: segments that change, leaves that are evicted and read again,
layers that are merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bockd.drivers.local.format import journal, layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.maintenance import copying, merging, resting, settling
from bockd.drivers.local.volume import (
    allocating,
    cells,
    leafcache,
    packedwrites,
    room,
    sweeping,
    volume,
)
from bockd.index import ballast, index
from bockd.model import BLOCK_SIZE

_MANY_CELLS = 1 << 16

_FOR_ANY_WRITE: tuple[tuple[Any, str, int], ...] = (
    (room, "PACKED_RECORDS_PER_OPERATION", room.PACKED_RECORDS_PER_OPERATION),
    (packedwrites, "PIECE_CELLS", packedwrites.PIECE_CELLS),
    (cells, "MAX_CELLS", _MANY_CELLS),
    (cells, "ROTATION_CELLS", _MANY_CELLS - 1024),
)


def sizes(journal_records: int) -> tuple[tuple[Any, str, float], ...]:
    """What is small, where its name lives, and its size. A journal needs room for four records of
    each operation that may be inside the engine at once, and for what is reserved."""
    return (
        (journal, "SEGMENT_RECORDS", journal_records),
        (journal, "SEGMENT_BYTES", journal.HEADER_BYTES + journal_records * journal.RECORD_BYTES),
        (room, "SEGMENT_RECORDS", journal_records),
        (room, "CHECKPOINT_RECORDS", journal_records // 3),
        (room, "RESERVED_RECORDS", 16),
        (room, "PACKED_RECORDS_PER_OPERATION", 12),
        (room, "ALLOWANCE_BLOCKS", 4),
        (room, "CHECKPOINT_DIRTY_LEAVES", 2),
        (leafcache, "CACHE_BYTES", 500),
        (leafcache, "GROUP_LEAVES", 1),
        (volume, "MIN_ALLOCATED_BYTES", 2 * BLOCK_SIZE),
        (allocating, "ALLOCATED_PIECE_BLOCKS", 8),
        (layer, "ZERO_PIECE_BYTES", 4 * BLOCK_SIZE),
        (layer, "ZERO_SECONDS", 0.0),
        (cells, "MAX_CELLS", 1024),
        (cells, "ROTATION_CELLS", 700),
        (cells, "MIN_FREE_RUN", 2),
        (packedwrites, "PIECE_CELLS", 52),
        (sweeping, "WINDOW_CELLS", 64),
        (sweeping, "BATCH_ROWS", 1),
        (merging, "MAX_DEAD_LAYERS", 1),
        (copying, "WINDOW_BLOCKS", LEAF_BLOCKS),
        (settling, "RUNS_PER_MIB", 1),
        (settling, "MIN_BYTES", 0),
        (resting, "HEAD_BYTES", 16 * BLOCK_SIZE),
        (settling, "SPARE_BYTES", 0),
        (ballast, "BALLAST_BYTES", 16 * 1024),
        (index, "_AHEAD_BYTES", 64 * 1024),
    )


def enlarge_journals(journal_records: int) -> None:
    """Give this process's engine, which is small, larger journals, for good. Checkpoints begin as
    soon as before. Operations on packed heads are promised more places than those on raw ones."""
    for target, name, value in sizes(journal_records):
        if name in ("SEGMENT_RECORDS", "SEGMENT_BYTES"):
            setattr(target, name, value)


def enlarge_heads() -> None:
    """Give this process's engine, which is small, packed heads for writes of any length, and as
    many places in the journal for each of them as the engine has, for good."""
    for target, name, value in _FOR_ANY_WRITE:
        setattr(target, name, value)


@contextmanager
def small_engine(journal_records: int) -> Iterator[None]:
    """For the duration, this process's engine is small."""
    with ExitStack() as patches:
        for target, name, value in sizes(journal_records):
            patches.enter_context(mock.patch.object(target, name, value))
        yield
