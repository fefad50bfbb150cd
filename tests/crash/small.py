"""The engine with small journals, small caches, eager merging and zeros allocated a few at a time,
so that a short life sees all of it: segments that change, leaves that are evicted and read again,
layers that are merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bockd.drivers.local.format import journal, layer
from bockd.drivers.local.maintenance import merging
from bockd.drivers.local.volume import allocating, leafcache, room, volume
from bockd.index import ballast, index
from bockd.model import BLOCK_SIZE


def sizes(journal_records: int) -> tuple[tuple[Any, str, float], ...]:
    """What is small, where its name lives, and its size. A journal needs room for four records of
    each operation that may be inside the engine at once, and for what is reserved."""
    return (
        (journal, "SEGMENT_RECORDS", journal_records),
        (journal, "SEGMENT_BYTES", journal.HEADER_BYTES + journal_records * journal.RECORD_BYTES),
        (room, "SEGMENT_RECORDS", journal_records),
        (room, "CHECKPOINT_RECORDS", journal_records // 3),
        (room, "RESERVED_RECORDS", 16),
        (room, "ALLOWANCE_BLOCKS", 4),
        (room, "CHECKPOINT_DIRTY_LEAVES", 2),
        (leafcache, "CACHE_BYTES", 500),
        (leafcache, "GROUP_LEAVES", 1),
        (volume, "MIN_ALLOCATED_BYTES", 2 * BLOCK_SIZE),
        (allocating, "ALLOCATED_PIECE_BLOCKS", 8),
        (layer, "ZERO_PIECE_BYTES", 4 * BLOCK_SIZE),
        (layer, "ZERO_SECONDS", 0.0),
        (merging, "MAX_DEAD_LAYERS", 1),
        (ballast, "BALLAST_BYTES", 16 * 1024),
        (index, "_AHEAD_BYTES", 64 * 1024),
    )


@contextmanager
def small_engine(journal_records: int) -> Iterator[None]:
    """For the duration, this process's engine is small."""
    with ExitStack() as patches:
        for target, name, value in sizes(journal_records):
            patches.enter_context(mock.patch.object(target, name, value))
        yield
