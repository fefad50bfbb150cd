"""A volume with write-back, as its driver and its clients see it."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import way
from bockd.drivers.writeback.segment import Segment
from bockd.errors import (
    DeviceError,
    NoSpaceError,
    UnavailableError,
    VolumeFailedError,
    VolumeTakenError,
)
from bockd.model import BLOCK_SIZE, KIB
from bockd.nbd.protocol.errors import answer
from bockd.pool.device import SharedDevice
from bockd.publictexts import UNREADABLE_LOG, discretion
from bockd.runtime.steps import Signal, Step

from .opened import IMAGE, SEGMENT_BYTES, SIZE_BYTES, Opened, holding

ONE = b"1" * BLOCK_SIZE
TWO = b"2" * BLOCK_SIZE


@pytest.fixture
def below() -> MemoryDevice:
    return MemoryDevice(SIZE_BYTES)


@pytest.fixture
def opened(tmp_path: Path, below: MemoryDevice) -> Iterator[Opened]:
    one = Opened(tmp_path / "logs", below)
    yield one
    one.dispose()


def stuck(below: MemoryDevice) -> None:
    """Have requests below wait."""
    below.gate = Signal()


def go_on(below: MemoryDevice, opened: Opened) -> None:
    gate, below.gate = below.gate, None
    assert gate is not None
    gate.fire()
    opened.settle()


# -- the volume contract -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_reads_and_what_is_below_are_what_was_written(
    tmp_path: Path, below: MemoryDevice, seed: int
) -> None:
    chance, expected = random.Random(seed), bytearray(SIZE_BYTES)
    opened = Opened(tmp_path / "logs", below)
    for _ in range(120):
        offset = chance.randrange(0, 64 * KIB, 512)
        length = chance.randrange(512, 20 * KIB, 512)
        kind = chance.randrange(6)
        if kind < 3:
            data = chance.randbytes(length)
            opened.write(offset, data)
            expected[offset : offset + length] = data
        elif kind == 3:
            opened.run(opened.device.zero(offset, length, allocate=chance.random() < 0.5))
            expected[offset : offset + length] = bytes(length)
        elif kind == 4:
            opened.run(opened.device.trim(offset, length))
            first, end = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
            for block in range(first, end):
                expected[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = bytes(BLOCK_SIZE)
        elif chance.random() < 0.5:
            opened.flush()
        else:
            opened.look()
        assert opened.read(0, 96 * KIB) == expected[: 96 * KIB]
        for extent in opened.run(opened.device.extents(0, 96 * KIB, 100)):
            part = expected[extent.offset_bytes : extent.offset_bytes + extent.length_bytes]
            assert not extent.hole or not any(part)
    opened.run(opened.device.drain())
    assert holding(below, 0, SIZE_BYTES) == expected
    opened.dispose()


def test_extents_cover_the_range_and_alternate(opened: Opened, below: MemoryDevice) -> None:
    below.try_write(0, memoryview(ONE * 8))
    stuck(below)
    opened.write(2 * BLOCK_SIZE + 512, TWO)
    opened.run(opened.device.trim(5 * BLOCK_SIZE, BLOCK_SIZE))
    found = opened.device.try_extents(0, 10 * BLOCK_SIZE, 10)
    assert found is not None
    blocks = [
        (one.offset_bytes // BLOCK_SIZE, one.length_bytes // BLOCK_SIZE, one.hole) for one in found
    ]
    assert blocks == [(0, 5, False), (5, 1, True), (6, 2, False), (8, 2, True)]
    limited = opened.device.try_extents(0, 10 * BLOCK_SIZE, 2)
    assert limited == found[:2]
    go_on(below, opened)


def test_a_write_larger_than_a_segment_is_whole(opened: Opened) -> None:
    data = random.Random(1).randbytes(2 * SEGMENT_BYTES)
    opened.write(512, data)
    assert opened.read(512, len(data)) == data


# -- what the driver is told ---------------------------------------------------------------------


def test_the_driver_has_committed_before_a_write_is_answered(
    tmp_path: Path, opened: Opened, below: MemoryDevice
) -> None:
    stuck(below)
    opened.write(0, ONE)
    assert opened.commits == [opened.record]
    assert opened.log_path().is_dir()
    assert holding(below, 0, BLOCK_SIZE) == bytes(BLOCK_SIZE)
    opened.write(0, TWO)
    assert len(opened.commits) == 1
    go_on(below, opened)


def test_a_write_goes_through_if_the_driver_cannot_commit(
    opened: Opened, below: MemoryDevice
) -> None:
    opened.refusing = True
    opened.write(0, ONE)
    assert holding(below, 0, BLOCK_SIZE) == ONE
    assert opened.device.trouble is not None
    assert "does not answer" in opened.device.trouble
    opened.refusing = False
    opened.look()
    stuck(below)
    came = opened.begin(opened.device.write(0, memoryview(TWO)))
    assert not came, "what went below was not flushed before the log begins"
    go_on(below, opened)
    assert came == [None]
    assert opened.record is not None
    assert opened.device.trouble is None


def test_what_is_quiet_and_clean_is_told_and_removed(opened: Opened, below: MemoryDevice) -> None:
    opened.write(0, ONE)
    path = opened.log_path()
    for _ in range(2):
        opened.look()
    assert opened.device.dirty() == (0, None)
    assert holding(below, 0, BLOCK_SIZE) == ONE
    assert opened.record is not None
    for _ in range(2):
        opened.look()
    assert opened.commits[-1] is None
    assert not path.exists()
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == 0


def test_a_new_log_has_a_new_id(opened: Opened) -> None:
    opened.write(0, ONE)
    opened.run(opened.device.drain())
    opened.write(0, TWO)
    first, cleaned, second = opened.commits
    assert cleaned is None
    assert first != second


def test_what_is_held_is_answered_when_it_is_below(opened: Opened, below: MemoryDevice) -> None:
    """Somebody may have given up what is dirty."""
    stuck(below)
    opened.write(0, ONE)
    opened.flush()
    opened.device.hold(held=True)
    assert "does not answer" in (opened.device.trouble or "")
    assert not opened.device.try_write(0, memoryview(TWO))
    written = opened.begin(opened.device.write(0, memoryview(TWO)))
    flushed = opened.begin(opened.device.flush())
    into = memoryview(bytearray(BLOCK_SIZE))
    assert not opened.device.try_read(0, into)
    read = opened.begin(opened.device.read(0, into))
    assert (written, flushed, read) == ([], [], [])
    elsewhere = memoryview(bytearray(BLOCK_SIZE))
    assert opened.device.try_read(8 * BLOCK_SIZE, elsewhere), "it is not in the log"
    go_on(below, opened)
    assert (written, flushed, read) == ([None], [None], [None])
    assert bytes(into) in (ONE, TWO)
    assert holding(below, 0, BLOCK_SIZE) == TWO
    assert opened.record is None
    opened.device.hold(held=False)
    opened.flush()
    stuck(below)
    opened.write(0, ONE)
    opened.flush()
    go_on(below, opened)


def test_what_is_held_does_not_fail_where_only_the_driver_cannot_commit(
    opened: Opened, below: MemoryDevice
) -> None:
    """The index is silent, and the image answers: a guest's journal would end by an error."""
    opened.write(0, ONE)
    opened.device.hold(held=True)
    opened.refusing = True
    opened.flush()
    assert holding(below, 0, BLOCK_SIZE) == ONE
    flushes = below.calls.count("flush")
    opened.write(0, TWO)
    opened.flush()
    assert holding(below, 0, BLOCK_SIZE) == TWO
    assert below.calls.count("flush") > flushes
    opened.refusing = False
    opened.device.hold(held=False)
    opened.write(0, ONE)
    opened.again()
    assert opened.read() == ONE, "the log that could not be ended is not replayed over it"


def test_what_may_go_below_does_not_wait_for_the_commit_that_nothing_is_dirty(
    opened: Opened, below: MemoryDevice
) -> None:
    """While the index does not answer, each attempt lasts, and the next one follows."""
    opened.write(0, ONE)
    opened.flush()
    opened.device.hold(held=True)
    opened.refusing = True
    for _ in range(3):
        gate = opened.gate = Signal()
        opened.look()
        opened.look()
        opened.write(0, TWO)
        assert holding(below, 0, BLOCK_SIZE) == TWO
        opened.gate = None
        gate.fire()
        opened.settle()
    opened.refusing = False
    opened.device.hold(held=False)
    gate = opened.gate = Signal()
    opened.look()
    again = opened.begin(opened.device.write(0, memoryview(ONE)))
    opened.gate = None
    gate.fire()
    opened.settle()
    assert again == [None]
    opened.flush()
    opened.again()
    assert opened.read() == ONE


def test_too_few_descriptors_are_no_failed_disk(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is too little memory: there is no room for another segment, for now."""

    def fails(*_arguments: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    stuck(below)
    for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        opened.write(0, ONE)
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", fails)
            waiting = [
                opened.begin(opened.device.write(at * BLOCK_SIZE, memoryview(ONE)))
                for at in range(20)
            ]
            assert waiting[-1] == []
            current = opened.device.way.log
            assert current is not None
            assert os.strerror(code) in current.no_room
            assert not current.broken
        go_on(below, opened)
        assert waiting[-1] == [None]
        opened.run(opened.device.drain())
        stuck(below)
    go_on(below, opened)


def test_who_writes_now_and_then_keeps_the_log(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle guest: each new log would be two commits and a segment of zeros."""
    monkeypatch.setattr(way, "QUIET_LOOKS", 5)
    for number in range(6):
        opened.write(number * BLOCK_SIZE, ONE)
        for _ in range(5):
            opened.look()
        assert opened.device.dirty() == (0, None)
        assert holding(below, number * BLOCK_SIZE, BLOCK_SIZE) == ONE
    assert len(opened.commits) == 1
    for _ in range(5):
        opened.look()
    assert len(opened.commits) == 2
    assert opened.record is None


def test_a_log_that_the_driver_may_call_clean_later_is_not_used_again(opened: Opened) -> None:
    """It would be void, with what was answered from it since."""
    opened.write(0, ONE)
    opened.flush()
    first, path = opened.record, opened.log_path()
    opened.refusing = True
    for _ in range(2):
        opened.look()
    opened.refusing = False
    opened.write(0, TWO)
    assert opened.commits == [first, None, opened.record]
    assert opened.record not in (first, None)
    assert opened.directory.images() == [IMAGE]
    assert not path.exists()
    assert opened.read() == TWO


def test_while_the_driver_cannot_call_a_log_clean_writes_go_through(
    opened: Opened, below: MemoryDevice
) -> None:
    opened.write(0, ONE)
    opened.flush()
    opened.refusing = True
    for _ in range(2):
        opened.look()
    opened.write(0, TWO)
    assert holding(below, 0, BLOCK_SIZE) == TWO
    assert "cannot note that nothing is dirty" in (opened.device.trouble or "")
    opened.refusing = False
    opened.look()
    assert opened.record is None
    assert opened.directory.images() == []
    assert opened.device.trouble is None


@pytest.mark.parametrize("taken", [True, False])
def test_a_log_that_ends_before_the_next_ends_with_the_volume(
    opened: Opened, below: MemoryDevice, taken: bool
) -> None:
    opened.write(0, ONE)
    opened.flush()
    path = opened.log_path()
    opened.refusing = True
    for _ in range(2):
        opened.look()
    opened.refusing, opened.gate = False, Signal()
    came = opened.begin(opened.device.write(0, memoryview(TWO)))
    assert came == []
    if taken:
        opened.device.lose()
    opened.close()
    gate, opened.gate = opened.gate, None
    gate.fire()
    opened.settle()
    assert isinstance(came[0], VolumeTakenError if taken else UnavailableError)
    assert path.exists()
    assert holding(below, 0, BLOCK_SIZE) == ONE
    opened.open()
    assert opened.read() == ONE
    assert not path.exists()


def test_dirty_says_how_much_and_since_when_also_after_a_death(
    opened: Opened, below: MemoryDevice
) -> None:
    stuck(below)
    began = opened.now
    opened.write(0, ONE)
    opened.now += 10
    opened.write(0, TWO)
    dirty, since = opened.device.dirty()
    assert 2 * BLOCK_SIZE < dirty < 3 * BLOCK_SIZE
    assert since == began
    opened.again()
    assert opened.device.dirty() == (dirty, since)
    assert opened.read() == TWO
    below.gate = None


def test_write_through_is_answered_behind_what_is_dirty(
    opened: Opened, below: MemoryDevice
) -> None:
    stuck(below)
    opened.write(0, ONE)
    opened.device.write_through()
    came = opened.begin(opened.device.write(0, memoryview(TWO)))
    assert not came
    go_on(below, opened)
    assert came == [None]
    assert opened.record is None
    assert holding(below, 0, BLOCK_SIZE) == TWO
    assert below.calls == ["flush", "write", "flush", "write"]
    opened.device.write_back()
    stuck(below)
    assert opened.begin(opened.device.drain()) == []
    go_on(below, opened)
    opened.write(0, ONE)
    assert opened.record is not None


def test_closed_it_keeps_what_is_dirty_and_ends_a_drain(
    opened: Opened, below: MemoryDevice
) -> None:
    stuck(below)
    opened.write(0, ONE)
    drained = opened.begin(opened.device.drain())
    assert not drained
    opened.close()
    assert isinstance(drained[0], UnavailableError)
    with pytest.raises(UnavailableError):
        opened.write(0, TWO)
    go_on(below, opened)
    assert below.calls == ["flush", "write"], "something was sent below after the end"
    opened.open()
    opened.run(opened.device.drain())
    assert holding(below, 0, BLOCK_SIZE) == ONE
    assert opened.record is None


def test_taken_nothing_is_answered_and_the_log_stays(tmp_path: Path) -> None:
    class Shared(MemoryDevice):
        lost = Signal()

    below = Shared(SIZE_BYTES)
    opened = Opened(tmp_path / "logs", below)
    stuck(below)
    opened.write(0, ONE)
    assert isinstance(opened.device, SharedDevice)
    flushed = opened.begin(opened.device.drain())
    below.lost.fire()
    opened.settle()
    assert isinstance(flushed[0], VolumeTakenError)
    for steps in (
        opened.device.write(0, memoryview(TWO)),
        opened.device.read(0, memoryview(bytearray(512))),
        opened.device.flush(),
    ):
        with pytest.raises(VolumeTakenError):
            opened.run(steps)
    assert not opened.device.try_write(0, memoryview(TWO))
    opened.close()
    assert opened.directory.images() == [IMAGE]
    below.gate = None
    opened.dispose()


# -- logs that end -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "drain"])
def test_a_log_ends_when_no_segment_of_it_is_being_made(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """The next opening would make one of the same name, and a log that is removed gives back all
    that it has taken."""
    opened.write(0, ONE)
    create = Segment.create
    ends: list[list[object]] = []
    ended: list[bool] = []

    def during(directory: Path, number: int, size_bytes: int, log_id: str) -> Segment:
        if not ends:
            ends.append(opened.begin(getattr(opened.device, end)()))
            ended.append(bool(ends[0]))
        return create(directory, number, size_bytes, log_id)

    monkeypatch.setattr(Segment, "create", during)
    for block in range(1, 10):
        if not ends:
            opened.write(block * BLOCK_SIZE, ONE)
    opened.settle()
    assert ended == [False]
    assert ends == [[None]]
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    if end == "close":
        opened.open()
        assert opened.read(BLOCK_SIZE) == ONE
        opened.run(opened.device.drain())
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == 0


def test_a_segment_that_cannot_be_named_takes_no_other_away(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = opened.path / "00000007.seg"
    path.write_bytes(b"of another opening")
    monkeypatch.setattr(os, "rename", _fails)
    with pytest.raises(OSError, match="Input/output error"):
        Segment.create(opened.path, 7, SEGMENT_BYTES, "0" * 16)
    assert path.read_bytes() == b"of another opening"
    assert not path.with_suffix(".new").exists()
    path.unlink()


# -- trouble -------------------------------------------------------------------------------------


def test_writes_fail_as_the_device_below_when_the_log_is_full(
    opened: Opened, below: MemoryDevice
) -> None:
    below.failures["write"] = NoSpaceError("the pool is full")
    written = 0
    with pytest.raises(NoSpaceError):  # noqa: PT012 - how many fit is not the point
        for _ in range(100):
            opened.write(written * BLOCK_SIZE, ONE)
            written += 1
    assert written > 20
    assert opened.device.trouble is not None
    assert "the pool is full" in opened.device.trouble
    assert opened.read((written - 1) * BLOCK_SIZE) == ONE
    below.failures.clear()
    opened.write(written * BLOCK_SIZE, ONE)
    opened.run(opened.device.drain())
    assert holding(below, 0, (written + 1) * BLOCK_SIZE) == ONE * (written + 1)
    assert opened.device.trouble is None


def test_an_error_that_is_none_of_ours_ends_an_attempt_as_ours_do(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no memory for what is to be sent. A drain begins no other attempt at once."""
    attempts = []

    async def no_memory(_offset: int, _data: memoryview) -> None:
        attempts.append(1)
        raise MemoryError if len(attempts) < 100 else DeviceError("tried again and again")

    monkeypatch.setattr(below, "write", no_memory)
    opened.write(0, ONE)
    with pytest.raises(DeviceError, match="MemoryError"):
        opened.run(opened.device.drain())
    assert "MemoryError" in (opened.device.trouble or "")
    monkeypatch.undo()
    opened.run(opened.device.drain())
    assert holding(below, 0, BLOCK_SIZE) == ONE
    assert opened.device.trouble is None


def test_a_full_local_disk_fails_nothing(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)

    def full(*_arguments: object) -> Segment:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Segment, "create", full)
    for block in range(60):
        opened.write(block * BLOCK_SIZE, ONE)
    assert opened.read(59 * BLOCK_SIZE) == ONE
    opened.run(opened.device.drain())
    assert holding(below, 0, 60 * BLOCK_SIZE) == ONE * 60


def _fails(*_arguments: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_failed_sync_is_answered_when_all_is_below(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck(below)
    opened.write(0, ONE)
    monkeypatch.setattr(os, "fdatasync", _fails)
    flushed = opened.begin(opened.device.flush())
    assert not flushed
    go_on(below, opened)
    assert flushed == [None]
    assert holding(below, 0, BLOCK_SIZE) == ONE
    assert opened.record is None
    monkeypatch.undo()
    opened.write(0, TWO)
    assert holding(below, 0, BLOCK_SIZE) == TWO, "nothing goes into a log on that disk"
    assert opened.device.trouble is not None
    assert "Input/output error" in opened.device.trouble


def test_a_failed_append_is_no_failed_write(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    monkeypatch.setattr(Segment, "_write", _fails)
    opened.write(BLOCK_SIZE, TWO)
    assert holding(below, 0, 2 * BLOCK_SIZE) == ONE + TWO
    assert opened.record is None


def test_what_gets_below_is_told_within_an_epoch(opened: Opened, below: MemoryDevice) -> None:
    """What is dirty does not get less before all of it is below."""

    class Gates(Signal):
        """Lets one request below after the other go on."""

        def __init__(self) -> None:
            super().__init__()
            self.waiting: list[Signal] = []

        def __await__(self) -> Generator[Step, None, None]:
            one = Signal()
            self.waiting.append(one)
            yield one

    gates = below.gate = Gates()
    for number in range(3):
        opened.write(number * SEGMENT_BYTES, ONE)
    came = opened.begin(opened.device.drain())
    dirty, told = opened.device.dirty(), [opened.device.carried_out()]
    for one in gates.waiting[:3]:
        assert opened.device.dirty() == dirty
        one.fire()
        opened.settle()
        told.append(opened.device.carried_out())
    assert (told, came) == ([0, 1, 2, 3], [])
    gates.waiting[3].fire()
    opened.settle()
    assert opened.device.dirty()[0] == 0


_REFUSED = r"00000001.seg.*bock volume reopen.* reads the log again.*Only if .*discard-cache"


def test_what_cannot_be_read_back_fails_the_volume(opened: Opened, below: MemoryDevice) -> None:
    stuck(below)
    opened.write(0, ONE)
    segment = next(opened.log_path().glob("*.seg"))
    with segment.open("r+b") as file:
        file.seek(4096 + 64 + 100)
        file.write(b"x")
    go_on(below, opened)
    flushed = opened.begin(opened.device.drain())
    assert isinstance(flushed[0], VolumeFailedError)
    with pytest.raises(VolumeFailedError, match=_REFUSED) as caught:
        opened.read()
    for told in (answer(caught.value)[1], discretion.text(caught.value)):
        assert told == UNREADABLE_LOG, "no path, and no command of the operator's"
    with pytest.raises(VolumeFailedError):
        opened.write(0, TWO)
    assert opened.record is not None
    assert holding(below, 0, BLOCK_SIZE) == bytes(BLOCK_SIZE)
    opened.close()
