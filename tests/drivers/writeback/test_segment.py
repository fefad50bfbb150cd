"""How records get into a segment: in whole pages, of which none has to be read before."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback.records import HEADER_BYTES, Header, Kind, padded, parse, verifies
from bockd.drivers.writeback.segment import FIRST_RECORD, Segment
from bockd.model import BLOCK_SIZE, KIB
from bockd.runtime.steps import Signal

from .opened import SIZE_BYTES, Opened, holding

LOG = "0123456789abcdef"
PAGE = 4096

Write = tuple[int, bytes]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Write]:
    """What is appended, by the calls that do it: where, and what."""
    calls, pwritev = list[Write](), os.pwritev

    def noting(fd: int, buffers: Sequence[bytes | memoryview], at: int) -> int:
        calls.append((at, b"".join(buffers)))
        return pwritev(fd, buffers, at)

    monkeypatch.setattr(os, "pwritev", noting)
    return calls


def full(segment: Segment, chance: random.Random) -> list[tuple[int, bytes]]:
    """Append records until there is no room. Return where they lie, and their data."""
    records, sequence = list[tuple[int, bytes]](), 0
    while True:
        length = chance.choice((0, 1, 64, 512, 4000, BLOCK_SIZE, 8 * BLOCK_SIZE, 9000))
        if HEADER_BYTES + padded(length) > segment.free_bytes:
            return records
        data, kind = chance.randbytes(length), Kind.WRITE if length else Kind.BARRIER
        sequence += 1
        header = Header(kind, sequence, 0, length, 0, 0)
        records.append((segment.append(header, memoryview(data)), data))


@pytest.mark.parametrize("seed", range(6))
def test_appends_write_whole_pages_and_what_they_wrote_is_there(
    tmp_path: Path, written: list[Write], seed: int
) -> None:
    """Part of a page that is not in memory is read from the disk first, on the owner thread."""
    chance = random.Random(seed)
    size = chance.choice((256 * KIB, 256 * KIB + 3 * 512))
    segment = Segment.create(tmp_path, 1, size, LOG)
    records = full(segment, chance)
    assert len(written) == len(records) > 10
    for at, data in written:
        assert at % PAGE == 0
        assert (at + len(data)) % PAGE == 0 or at + len(data) == size
    content = memoryview(segment.content())
    end = FIRST_RECORD
    for nth, (at, data) in enumerate(records, 1):
        header = parse(content, at)
        assert header is not None
        assert (header.sequence, at) == (nth, end)
        assert verifies(content, at, header, segment.seed)
        assert content[at + HEADER_BYTES : at + HEADER_BYTES + len(data)] == data
        end = at + header.size_bytes
    assert not any(content[end:])
    segment.close()


def test_a_log_that_was_read_back_goes_on_in_whole_pages(
    tmp_path: Path, written: list[Write]
) -> None:
    below = MemoryDevice(SIZE_BYTES)
    opened = Opened(tmp_path / "logs", below)
    below.gate = Signal()
    expected = bytearray(SIZE_BYTES)
    chance = random.Random(1)
    for _ in range(6):
        for _ in range(4):
            place, data = (
                chance.randrange(0, 64 * KIB, 64),
                chance.randbytes(chance.randint(1, 5000)),
            )
            opened.write(place, data)
            expected[place : place + len(data)] = data
        opened.begin(opened.device.flush())
        opened.again()
    gate, below.gate = below.gate, None
    assert gate is not None
    gate.fire()
    opened.run(opened.device.drain())
    assert holding(below, 0, SIZE_BYTES) == expected
    assert len(written) >= 24
    assert all(at % PAGE == 0 and len(data) % PAGE == 0 for at, data in written)
    opened.dispose()
