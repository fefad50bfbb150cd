"""What is read from a log: each record once for all that is wanted of it, and how much at once."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import device
from bockd.drivers.writeback.reading import AT_ONCE_BYTES, AT_ONCE_PARTS, Part, fill
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.runtime.steps import Signal

from .opened import SIZE_BYTES, Opened, holding


class Reads:
    """Reads of records, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        preadv = os.preadv

        def counting(fd: int, buffers: Sequence[memoryview], *more: int) -> int:
            self.count += 1
            return preadv(fd, buffers, *more)

        monkeypatch.setattr(os, "preadv", counting)


@pytest.fixture
def below() -> MemoryDevice:
    return MemoryDevice(SIZE_BYTES)


@pytest.fixture
def opened(
    tmp_path: Path, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opened]:
    monkeypatch.setattr("tests.drivers.writeback.opened.SEGMENT_BYTES", 4 * MIB)
    monkeypatch.setattr("tests.drivers.writeback.opened.BOUND_BYTES", 16 * MIB)
    one = Opened(tmp_path / "logs", below)
    below.gate = Signal()
    yield one
    one.dispose()


def overwritten(opened: Opened, count: int) -> bytes:
    """Write 8 KiB at once, and so many parts of them anew. Return what is there."""
    expected = bytearray(random.Random(count).randbytes(8 * KIB))
    opened.write(0, bytes(expected))
    for nth in range(count):
        start = nth * 128 + 64
        expected[start : start + 64] = b"x" * 64
        opened.write(start, b"x" * 64)
    return bytes(expected)


def test_a_record_is_read_once_for_all_that_is_wanted_of_it(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, by a thread, and by the writer: each piece had cost a read of all of it."""
    few = AT_ONCE_PARTS // 2 - 1
    expected, into, reads = overwritten(opened, few), bytearray(8 * KIB), Reads(monkeypatch)
    assert opened.device.try_read(0, memoryview(into))
    assert into == expected
    assert reads.count == 1 + few
    expected, reads.count = overwritten(opened, 50), 0
    assert not opened.device.try_read(0, memoryview(into))
    assert reads.count == 0, "it is left to a thread before anything is read"
    assert opened.read(0, 8 * KIB) == expected
    assert reads.count == 1 + 50
    reads.count = 0
    gate, below.gate = below.gate, None
    assert gate is not None
    gate.fire()
    opened.run(opened.device.drain())
    assert holding(below, 0, 8 * KIB) == expected
    assert reads.count == 1 + 50


def test_what_many_bytes_must_be_verified_for_is_left_to_a_thread(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = 256 * KIB
    most = AT_ONCE_BYTES // large
    for nth in range(most + 1):
        opened.write(nth * BLOCK_SIZE, bytes([nth + 1]) * large)
    into, reads = bytearray((most + 1) * BLOCK_SIZE), Reads(monkeypatch)
    assert not opened.device.try_read(0, memoryview(into))
    assert reads.count == 0
    expected = b"".join(bytes([nth + 1]) * BLOCK_SIZE for nth in range(most + 1))
    assert opened.read(0, len(into)) == expected
    assert opened.device.try_read(0, memoryview(into)[: most * BLOCK_SIZE])


@pytest.mark.parametrize("most", [1, 3, 20])
def test_a_long_read_looks_up_a_part_at_a_time(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Of 32 MiB of sectors the lookup alone held everybody up."""
    monkeypatch.setattr(device, "MOST_PARTS", most)
    chance, expected = random.Random(most), bytearray(random.Random(0).randbytes(64 * KIB))
    below.try_write(0, memoryview(expected))
    below.commit()
    for _ in range(80):
        offset, length = chance.randrange(0, 60 * KIB, 64), chance.randrange(64, 4 * KIB, 64)
        if chance.random() < 0.3:
            opened.run(opened.device.zero(offset, length, allocate=False))
            expected[offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            opened.write(offset, data)
            expected[offset : offset + length] = data
    filled = list[int]()

    async def counting(parts: Sequence[Part]) -> None:
        filled.append(len(parts))
        await fill(parts)

    monkeypatch.setattr(device, "fill", counting)
    below.gate = None
    assert opened.read(0, 64 * KIB) == expected
    assert len(filled) > 1
    assert max(filled) <= most
    assert opened.read(100, 50 * KIB) == expected[100 : 100 + 50 * KIB]
