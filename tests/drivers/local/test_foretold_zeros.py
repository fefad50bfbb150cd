"""A death between zeros in the head and the journal's record of them.

Recovery of a copied pool takes a block of zeros under a fresh redirect for a page that was lost,
and then nothing counts that was not flushed. So whatever is under way, what was acknowledged before
must come back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from bockd.drivers.local.format.journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    Change,
    Entry,
    JournalSegment,
    Kind,
)
from bockd.drivers.local.format.journalreading import SegmentContents
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.volume import volume as volumes
from bockd.drivers.local.volume.lostpages import find_lost_pages
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, VolumeId
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die

ZERO = bytes(BLOCK_SIZE)
ACKNOWLEDGED = 9
"""A block that holds an "a"; block 5 holds an "n". Neither was flushed."""

HALF = BLOCK_SIZE // 2

Work = Callable[[Volume], Steps[None]]


def write(offset: int, data: bytes) -> Work:
    return lambda device: device.write(offset, memoryview(data))


WAYS: dict[str, Work] = {
    "in place": write(5 * BLOCK_SIZE, ZERO),
    "among new blocks": write(4 * BLOCK_SIZE, ZERO * 3),
    "behind a new block": write(4 * BLOCK_SIZE, b"x" * BLOCK_SIZE + ZERO),
    "in the end of a write": write(4 * BLOCK_SIZE + HALF, bytes(HALF) + ZERO),
    "allocated": lambda device: device.zero(4 * BLOCK_SIZE, 3 * BLOCK_SIZE, allocate=True),
    "a hole": lambda device: device.trim(4 * BLOCK_SIZE, 3 * BLOCK_SIZE),
}


class DiedError(BaseException):
    """The process is dead."""


def dying(work: Work, device: Volume, appends: int) -> None:
    """Do some work, and die instead of appending to the journal once more than so often."""
    done = 0
    real = JournalSegment.append

    def append(self: JournalSegment, entries: Sequence[Entry]) -> None:
        nonlocal done
        if done == appends:
            raise DiedError
        done += 1
        real(self, entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalSegment, "append", append)
        run_inline(work(device))


def recovered(bench: Bench, root: Path) -> Bench:
    """A copy of the pool, of which the kernel has nothing in memory."""
    die(bench.pool)
    copy = root / "copy"
    shutil.copytree(root / "pool", copy)
    found = Bench.__new__(Bench)
    found.background = bench.background
    found.pool = type(bench.pool).open(copy, bench.background.spawn)
    found.volume = bench.volume
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("appends", range(3))
@pytest.mark.parametrize("way", WAYS)
def test_what_was_acknowledged_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, appends: int, packed: bool
) -> None:
    monkeypatch.setattr(volumes, "MIN_ALLOCATED_BYTES", BLOCK_SIZE)
    bench = Bench(tmp_path / "pool")
    bench.pool.registry.pack = lambda: packed
    bench.snapshot("s")
    device = bench.device()
    bench.write(5, b"n")
    bench.write(ACKNOWLEDGED, b"a")
    try:
        dying(WAYS[way], device, appends)
    except DiedError:
        pass
    else:
        assert appends, "nothing is appended: nothing was tried"
    copy = recovered(bench, tmp_path)
    assert copy.block(bench.volume, ACKNOWLEDGED) == b"a"
    run_inline(copy.pool.close_all())
    copy.pool.release()


@pytest.mark.parametrize("packed", [False, True])
def test_an_append_that_is_cut_short_at_the_end_of_a_page(tmp_path: Path, packed: bool) -> None:
    """Its redirect is there, and the record is not that says that the block is zeros."""
    bench = Bench(tmp_path / "pool")
    bench.pool.registry.pack = lambda: packed
    bench.snapshot("s")
    device = bench.device()
    bench.write(ACKNOWLEDGED, b"a")
    places = BLOCK_SIZE // RECORD_BYTES
    segment = device.durability.tail.segment
    trims = True
    while segment.used % places != places - 1:  # the next record is to be the last of its page
        if trims:
            run_inline(device.trim(20 * BLOCK_SIZE, BLOCK_SIZE))
        else:
            bench.write(20, b"p")
        trims = not trims
    bench.write(5, b"\0")
    path = bench.pool.registry.store.layout.journal_segment(segment.name)
    with path.open("r+b") as file:
        size_bytes = path.stat().st_size
        file.truncate(HEADER_BYTES + segment.used // places * BLOCK_SIZE)
        file.truncate(size_bytes)
    copy = recovered(bench, tmp_path)
    assert copy.block(bench.volume, ACKNOWLEDGED) == b"a"
    run_inline(copy.pool.close_all())
    copy.pool.release()


class Head:
    """A raw head that holds data in some blocks, and is a hole elsewhere."""

    packed = False

    def __init__(self, blocks: range) -> None:
        self._blocks = blocks

    def length_bytes(self) -> int:
        return 1024 * BLOCK_SIZE

    def data_ranges(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        first = max(start, self._blocks.start * BLOCK_SIZE)
        end = min(start + length, self._blocks.stop * BLOCK_SIZE)
        if first < end:
            yield first, end

    def read(self, _offset: int, into: memoryview) -> None:
        into[:] = b"x" * len(into)


def test_where_a_journal_ends_with_a_page_only_its_last_redirects_prove_nothing() -> None:
    places = BLOCK_SIZE // RECORD_BYTES
    changes = [Change(1 + n, Kind.REDIRECT, 10 + n, 1) for n in range(places)]
    behind = places - 3  # a hole, and two redirects behind it
    changes[behind] = Change(1 + behind, Kind.HOLE, 1000, 1)
    whole = SegmentContents(JournalName(VolumeId(1), 1, 0), "", tuple(changes), places, torn=False)
    following = SegmentContents(JournalName(VolumeId(1), 1, 1), "", (), 0, torn=False)
    for segments in ([whole], [whole, following]):
        first, end = 10, 10 + places
        assert not find_lost_pages(segments, cast(Layer, Head(range(first, end - 2))))
        assert find_lost_pages(segments, cast(Layer, Head(range(first + 1, end))))
    shorter = replace(whole, changes=whole.changes[:-1], places=places - 1)
    assert find_lost_pages([shorter], cast(Layer, Head(range(first, end - 2))))
