"""What a log keeps in memory: it is counted, and has a bound, whatever clients do."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import log as log_module
from bockd.drivers.writeback import recovery
from bockd.drivers.writeback import space as space_module
from bockd.drivers.writeback.log import Log
from bockd.drivers.writeback.recovery import recover
from bockd.model import BLOCK_SIZE, KIB
from bockd.runtime.steps import Signal

from .opened import IMAGE, SEGMENT_BYTES, SIZE_BYTES, Opened

SECTOR = 512
WRITES = 300
"""They fit the log, with a flush each."""


@pytest.fixture
def below() -> MemoryDevice:
    return MemoryDevice(SIZE_BYTES)


@pytest.fixture
def opened(tmp_path: Path, below: MemoryDevice) -> Iterator[Opened]:
    one = Opened(tmp_path / "logs", below)
    yield one
    one.dispose()


def log_of(opened: Opened) -> Log:
    current = opened.device.way.log
    assert current is not None
    return current


def fill(opened: Opened, place: Callable[[int], int], writes_per_flush: int) -> None:
    """Write, and flush, while nothing gets below."""
    for number in range(WRITES):
        opened.write(place(number), b"x" * SECTOR)
        if number % writes_per_flush == writes_per_flush - 1:
            opened.flush()


def same(_number: int) -> int:
    return 0


def apart(number: int) -> int:
    return number * 2 * SECTOR


PATTERNS = [(same, 1), (apart, 1), (same, 10), (apart, 10), (apart, 2 * WRITES)]


@pytest.mark.parametrize(("place", "writes_per_flush"), PATTERNS)
def test_memory_is_about_what_is_counted(
    opened: Opened, below: MemoryDevice, place: Callable[[int], int], writes_per_flush: int
) -> None:
    below.gate = Signal()
    opened.write(0, b"x" * SECTOR)
    gc.collect()
    before = log_of(opened).memory_bytes
    tracemalloc.start()
    try:
        fill(opened, place, writes_per_flush)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = log_of(opened).memory_bytes - before
    assert 0.6 * taken < counted < 1.3 * taken


def test_reading_a_log_back_takes_no_memory_for_what_was_overwritten(
    opened: Opened, below: MemoryDevice
) -> None:
    """A segment may have 262,000 records of one place."""
    below.gate = Signal()
    for _ in range(2 * SEGMENT_BYTES // 64):
        opened.run(opened.device.trim(0, BLOCK_SIZE))
    assert opened.record is not None
    assert len(list(opened.log_path().glob("*.seg"))) >= 3
    opened.die()
    tracemalloc.start()
    try:
        found = recover(opened.log_path(), IMAGE, opened.record)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3.5 * SEGMENT_BYTES
    assert [one.map.count for one in found.records.epochs if not one.empty] == [1, 1]
    found.file.close()
    for one in found.segments:
        one.close()


def test_other_threads_go_on_while_a_log_is_read_back(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    below.gate = Signal()
    fill(opened, same, 2 * WRITES)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    opened.again()
    assert len(pauses) >= WRITES // recovery.SLICE > 0


def test_the_logs_of_a_directory_share_a_bound(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has little may go on all the same."""
    space = opened.directory.space
    below.gate = Signal()
    fill(opened, apart, 7)
    current = log_of(opened)
    assert space.memory_bytes == current.memory_bytes
    monkeypatch.setattr(space_module, "MAX_MEMORY_BYTES", space.memory_bytes + 1)
    assert current.has_room(SECTOR)
    space.memory_bytes += 1
    assert current.has_room(SECTOR)
    monkeypatch.setattr(space_module, "SHARE_BYTES", current.memory_bytes)
    assert not current.has_room(SECTOR)
    came = opened.begin(opened.device.write(0, memoryview(b"y" * SECTOR)))
    assert came == []
    gate, below.gate = below.gate, None
    gate.fire()
    opened.settle()
    assert came == [None]
    opened.close()
    assert space.memory_bytes == 1


def test_records_that_are_not_below_have_a_bound(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little memory they take: recovery reads them all."""
    monkeypatch.setattr(log_module, "MAX_RECORDS", 20)
    below.gate = Signal()

    async def trim_all() -> None:
        for _ in range(100):
            await opened.device.trim(0, BLOCK_SIZE)

    came = opened.begin(trim_all())
    assert came == []
    current = log_of(opened)
    assert current.sequence - current.done <= 21
    gate, below.gate = below.gate, None
    gate.fire()
    opened.settle()
    assert came == [None]


@pytest.mark.parametrize("place", [same, apart])
def test_a_client_that_flushes_always_waits_when_the_memory_is_used(
    opened: Opened,
    below: MemoryDevice,
    place: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 40 * KIB
    monkeypatch.setattr(log_module, "MAX_MEMORY_BYTES", limit)
    below.gate = Signal()

    async def write_all() -> None:
        for number in range(WRITES):
            await opened.device.write(place(number), memoryview(b"x" * SECTOR))
            await opened.device.flush()

    came = opened.begin(write_all())
    assert came == []
    assert limit <= log_of(opened).memory_bytes < limit + 4 * KIB
    gate, below.gate = below.gate, None
    gate.fire()
    opened.settle()
    assert came == [None]
    opened.run(opened.device.drain())


def test_all_is_counted_until_it_is_below_also_after_a_death(
    opened: Opened, below: MemoryDevice
) -> None:
    below.gate = Signal()
    fill(opened, apart, 7)
    opened.flush()
    current = log_of(opened)
    assert current.dirty_bytes == sum(one.bytes for one in current.records.epochs)
    counted = current.memory_bytes, current.dirty_bytes, opened.device.dirty()
    opened.again()
    current = log_of(opened)
    assert (current.memory_bytes, current.dirty_bytes, opened.device.dirty()) == counted
    gate, below.gate = below.gate, None
    gate.fire()
    opened.settle()
    opened.flush()
    opened.settle()
    assert (current.memory_bytes, current.dirty_bytes) == (0, 0)
    assert opened.device.dirty() == (0, None)


def test_what_is_dirty_is_told_without_a_walk_over_all_epochs(
    opened: Opened, below: MemoryDevice
) -> None:
    """The end of the daemon asks in a thread of its own, and there may be very many."""

    class Unwalked(deque[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("it is walked over")

    below.gate = Signal()
    began = opened.now
    fill(opened, same, 1)
    current = log_of(opened)
    current.records.epochs = Unwalked(list(current.records.epochs))
    assert opened.device.dirty() == (current.dirty_bytes, began)
    assert current.dirty_bytes > WRITES * BLOCK_SIZE // 8
