"""Trouble with the local disk and with what is below: requests go on, nothing wrong is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.drivers.cache import blocks, cachefile
from bockd.drivers.cache.cachefile import CacheFile
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.memory.device import FailedError
from bockd.errors import DeviceError, NotSupportedError, VolumeTakenError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Blocking, Signal, blocking, run_inline

from .opened import CountingDevice, Opened, content_of, is_hit

SIZE = 2 * MIB
CONTENT = content_of(SIZE)


@pytest.fixture
def below() -> CountingDevice:
    device = CountingDevice(SIZE)
    device.hold(CONTENT)
    return device


def raising(number: int) -> Callable[..., int]:
    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def goes_on_without(opened: Opened, device: CachedDevice, caplog: pytest.LogCaptureFixture) -> None:
    """The cache is off: that was said once, nothing is cached, and all is read and written."""
    for _ in range(3):
        assert opened.read(device, BLOCK_SIZE) == CONTENT[BLOCK_SIZE : 2 * BLOCK_SIZE]
        opened.write(device, 0, CONTENT[:BLOCK_SIZE])
    assert not any(is_hit(device, block) for block in range(4))
    assert len([r for r in caplog.records if "is off until" in r.getMessage()]) == 1
    assert opened.directory.space.used_bytes == 0
    assert list(opened.path.glob("*.blocks")) == []
    opened.close(device)
    assert sorted(os.listdir(opened.path)) == ["bockd-cache.lock"]
    opened.release()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_of_the_file_that_fails_turns_it_off(
    tmp_path: Path,
    below: CountingDevice,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device, 8 * BLOCK_SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", raising(number))
        opened.read(device, 0)
    goes_on_without(opened, device, caplog)


def test_a_write_back_that_fails_turns_it_off(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was written is a hit by then."""
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", raising(errno.EIO))
        opened.read(device)
    goes_on_without(opened, device, caplog)


def test_a_write_back_that_fails_while_it_is_closed_keeps_nothing(
    tmp_path: Path, below: CountingDevice
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    run_inline(device.read(0, memoryview(bytearray(BLOCK_SIZE))))
    fill = opened.background._waiting.pop()
    run_inline(fill)
    sync = opened.background._waiting.pop()
    assert is_hit(device)
    assert isinstance(sync.send(None), Blocking)
    closing = opened.directory.close_device(device)
    assert isinstance(closing.send(None), Signal)
    with pytest.raises(StopIteration):
        sync.throw(OSError(errno.EIO, "for a test"))
    removing = closing.send(None)
    assert isinstance(removing, Blocking)
    with pytest.raises(StopIteration):
        closing.send(removing.call())
    opened.background.run()
    assert os.listdir(tmp_path) == ["bockd-cache.lock"]
    opened.release()


def test_a_read_of_the_file_that_fails_is_made_below(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", raising(errno.EIO))
        assert opened.read(device) == CONTENT[:BLOCK_SIZE]
    goes_on_without(opened, device, caplog)


def test_a_read_in_a_thread_that_fails_is_made_below(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    into = memoryview(bytearray(BLOCK_SIZE))
    with monkeypatch.context() as patch:
        patch.setattr(CacheFile, "read", raising(errno.EIO))
        run_inline(device.read(0, into))
    assert into == CONTENT[:BLOCK_SIZE]
    goes_on_without(opened, device, caplog)


def test_a_read_of_the_lane_that_fails_turns_it_off(
    tmp_path: Path, below: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """The server reads each of them again then, by itself."""
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    into = memoryview(bytearray(BLOCK_SIZE))
    with pytest.raises(DeviceError):
        run_inline(
            device.read_files([(1, 0, 0, BLOCK_SIZE, 0)], into, blocking(raising(errno.EIO)))  # type: ignore[arg-type]
        )
    goes_on_without(opened, device, caplog)


def test_a_file_that_others_have_cut_is_not_zeros(
    tmp_path: Path, below: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device, MIB)
    os.truncate(tmp_path / "v-one.blocks", MIB)
    assert opened.read(device, MIB) == CONTENT[MIB : MIB + BLOCK_SIZE]
    goes_on_without(opened, device, caplog)


def test_a_punch_that_fails_turns_it_off(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    monkeypatch.setattr(cachefile, "punch_range", raising(errno.EIO))
    run_inline(device.blocks.evict([0]))
    opened.background.run()
    goes_on_without(opened, device, caplog)


def test_a_file_system_without_holes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def punch(*_arguments: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(cachefile, "punch_range", punch)
    with pytest.raises(NotSupportedError):
        Opened(tmp_path)
    monkeypatch.undo()
    Opened(tmp_path).release()


def test_what_cannot_be_synced_is_not_kept(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    monkeypatch.setattr(CacheFile, "sync", raising(errno.EIO))
    opened.close(device)
    assert sorted(os.listdir(tmp_path)) == ["bockd-cache.lock"]
    assert opened.directory.space.used_bytes == 0
    assert "is not kept" in caplog.text
    opened.release()


def test_without_a_file_there_is_no_cache(
    tmp_path: Path,
    below: CountingDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Opened(tmp_path)
    monkeypatch.setattr(os, "ftruncate", raising(errno.EFBIG))
    assert run_inline(opened.directory.open_volume(below, "one", 1)) is None
    assert "there is no cache of one" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["bockd-cache.lock"]
    opened.release()


def test_a_volume_that_was_taken_is_not_read_from_the_cache(
    tmp_path: Path, below: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    below.failures["write"] = VolumeTakenError("taken")
    with pytest.raises(VolumeTakenError):
        opened.write(device, MIB, b"x" * BLOCK_SIZE)
    below.failures.clear()
    goes_on_without(opened, device, caplog)


def test_nothing_is_a_hit_while_the_volume_may_be_anothers(
    tmp_path: Path, below: CountingDevice
) -> None:
    opened = Opened(tmp_path)
    held = True
    device = run_inline(opened.directory.open_volume(below, "one", 1, lambda: held))
    assert device is not None
    opened.read(device)
    assert is_hit(device)
    held = False
    assert not is_hit(device)
    below.failures["read"] = VolumeTakenError("taken")
    with pytest.raises(VolumeTakenError):
        opened.read(device)
    opened.release(device)


def test_a_write_that_fails_leaves_misses(tmp_path: Path, below: CountingDevice) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    below.failures["write"] = FailedError("for a test")
    with pytest.raises(FailedError):
        opened.write(device, 0, b"x" * BLOCK_SIZE)
    assert not is_hit(device)
    below.failures.clear()
    opened.read(device)
    assert is_hit(device)
    opened.release(device)


def test_a_write_that_was_given_up_is_under_way_for_ever(
    tmp_path: Path, below: CountingDevice
) -> None:
    """It may still be carried out below, whenever it likes."""
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    below.gate = Signal()
    steps = device.write(0, memoryview(b"x" * BLOCK_SIZE))
    steps.send(None)
    steps.close()
    below.gate = None
    for _ in range(2):
        assert opened.read(device) == CONTENT[:BLOCK_SIZE]
        assert not is_hit(device, 0)
    opened.read(device, BLOCK_SIZE)
    assert is_hit(device, 1)
    opened.release(device)


def test_more_than_the_queue_holds_is_not_cached(
    tmp_path: Path, below: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "QUEUED_BYTES", 3 * BLOCK_SIZE)
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    into = memoryview(bytearray(BLOCK_SIZE))
    for block in range(5):
        run_inline(device.read(block * BLOCK_SIZE, into))
    opened.background.run()
    assert [is_hit(device, block) for block in range(5)] == [True] * 3 + [False] * 2
    assert not device.blocks._operations
    opened.release(device)
