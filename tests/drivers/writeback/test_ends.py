"""A volume is closed or taken while something is awaited: nothing is begun after that."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import directory
from bockd.errors import UnavailableError, VolumeTakenError
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Signal

from .disk import DeathError
from .opened import SEGMENT_BYTES, SIZE_BYTES, Opened, holding

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


def begin_write(opened: Opened, data: bytes = ONE) -> list[BaseException | None]:
    return opened.begin(opened.device.write(0, memoryview(data)))


def fire(gate: Signal | None, opened: Opened) -> None:
    assert gate is not None
    gate.fire()
    opened.settle()


def go_on_below(below: MemoryDevice, opened: Opened) -> None:
    gate, below.gate = below.gate, None
    fire(gate, opened)


@pytest.mark.parametrize("after", range(4))
def test_a_log_that_is_removed_in_part_is_not_put_aside(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """All of it is below, and the process is killed when some of its files are gone."""
    unlink, left = os.unlink, [after]

    def removing(*arguments: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise DeathError
        unlink(*arguments, **more)

    for number in range(SEGMENT_BYTES // BLOCK_SIZE * 7 // 4):
        opened.write(number * BLOCK_SIZE, ONE)
    opened.flush()
    files = sorted(one.name for one in opened.log_path().iterdir())
    assert files == ["00000002.seg", "00000003.seg", "progress"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", removing)
        if after == len(files):
            opened.run(opened.device.drain())
        else:
            with pytest.raises(DeathError):
                opened.run(opened.device.drain())
    assert opened.record is None
    opened.again()
    assert opened.directory.aside() == []
    assert opened.directory.images() == []


@pytest.mark.parametrize("taken", [False, True])
def test_no_log_is_made_after_the_end(opened: Opened, below: MemoryDevice, taken: bool) -> None:
    """A log is about to be made: what went below before is flushed first, which takes long."""
    opened.device.write_through()
    opened.write(0, TWO)
    opened.device.write_back()
    below.gate = Signal()
    came = begin_write(opened)
    assert came == []
    if taken:
        opened.device.lose()
    opened.close()
    go_on_below(below, opened)
    assert isinstance(came[0], VolumeTakenError if taken else UnavailableError)
    assert opened.commits == []
    assert opened.directory.images() == []
    assert holding(below, 0, BLOCK_SIZE) == TWO


def during(
    opened: Opened, patch: pytest.MonkeyPatch, where: Any, name: str
) -> tuple[list[bool], list[bool]]:
    """Close the volume within a call. Return whether that ended before the call did, and whether
    it has ended."""
    real: Callable[..., Any] = getattr(where, name)
    early, ended = list[bool](), list[bool]()

    def call(*arguments: Any, **more: Any) -> Any:
        if not early:

            async def close() -> None:
                await opened.device.close()
                ended.append(True)

            opened.begin(close())
            early.append(bool(ended))
        return real(*arguments, **more)

    patch.setattr(where, name, call)
    return early, ended


@pytest.mark.parametrize("room", [True, False])
def test_closing_waits_for_a_log_that_is_made_and_removes_it(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """The next opening removes logs that no record names: both would give their room back. If
    there is no room for a log, the write does not go below either."""
    early, ended = during(opened, monkeypatch, directory, "create")
    if not room:
        made = getattr(directory, "create")  # noqa: B009 - as it is now

        def fails(*arguments: Any) -> Any:
            made(*arguments)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(directory, "create", fails)
    came = begin_write(opened)
    assert early == [False]
    assert ended == [True]
    assert isinstance(came[0], UnavailableError)
    assert opened.commits == []
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == 0
    assert "write" not in below.calls


def test_closing_waits_for_a_log_that_is_removed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    early, ended = during(opened, monkeypatch, shutil, "rmtree")
    with pytest.raises(UnavailableError):
        opened.run(opened.device.drain())
    assert opened.record is None
    assert early == [False]
    assert ended == [True]
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == 0
    opened.open()


def test_a_second_close_waits_for_the_first(opened: Opened) -> None:
    opened.write(0, ONE)
    still_open = list[bool]()

    async def close() -> None:
        await opened.device.close()
        still_open.append(bool(opened.directory._open))

    for _ in range(2):
        opened.scheduler.start(close(), lambda: None)
    opened.settle()
    assert still_open == [False, False]


def test_who_waited_for_a_log_that_is_removed_waits_for_no_other(opened: Opened) -> None:
    """Two drains: the second is to sync the log, and is resumed only when the first has had the log
    removed."""
    opened.write(0, ONE)
    ended = list[str]()
    tasks = [opened.scheduler.start(opened.device.drain(), lambda: ended.append("first"))]
    late = opened.scheduler.start(opened.device.drain(), lambda: ended.append("second"))
    while opened.scheduler.tasks:
        ready = [
            one for one in opened.scheduler.tasks if one.resume is not None or one.call is not None
        ]
        others = [one for one in ready if one is not late]
        began = inspect.getcoroutinestate(late.steps) != inspect.CORO_CREATED
        early = others and (began or tasks[0].call is None)
        opened.scheduler.advance(others[0] if early else late)
        assert opened.scheduler.errors == []
    assert ended == ["first", "second"]
    assert opened.record is None


def test_a_log_that_is_noted_after_the_end_takes_nothing(opened: Opened) -> None:
    opened.gate = Signal()
    came = begin_write(opened)
    opened.close()
    gate, opened.gate = opened.gate, None
    fire(gate, opened)
    assert isinstance(came[0], UnavailableError)
    assert opened.record is not None
    opened.open()
    assert opened.read() == bytes(BLOCK_SIZE)
    opened.write(0, TWO)
    opened.run(opened.device.drain())
    assert opened.record is None


def test_what_is_read_from_the_log_and_below_ends_with_the_volume(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    below.gate = Signal()
    opened.flush()
    monkeypatch.setattr("bockd.drivers.writeback.segment.Segment.try_read", lambda *_: False)
    began = list[str]()
    real = MemoryDevice.read

    async def read(self: MemoryDevice, offset: int, into: memoryview) -> None:
        began.append("read")
        await real(self, offset, into)

    monkeypatch.setattr(MemoryDevice, "read", read)
    into = memoryview(bytearray(2 * BLOCK_SIZE))
    task: list[BaseException | None] = []

    async def whole() -> None:
        try:
            await opened.device.read(0, into)
        except UnavailableError as error:
            task.append(error)

    ended = list[bool]()

    async def close() -> None:
        await opened.device.close()
        ended.append(True)

    opened.scheduler.start(whole(), lambda: None)
    opened.scheduler.advance(opened.scheduler.tasks[-1])  # it waits for the log
    opened.scheduler.start(close(), lambda: None)
    opened.scheduler.advance(opened.scheduler.tasks[-1])  # it has begun
    opened.settle()
    assert ended == [True]
    assert isinstance(task[0], UnavailableError)
    assert began == []
    below.gate = None
