"""What is cached is kept for the next opening, and only if it is what the device holds then."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.drivers.cache import mapfile
from bockd.drivers.cache.blockmap import LEAF_BLOCKS, BlockMap
from bockd.drivers.cache.cachefile import Identity
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.mapfile import BadMapError, Kept, leaves_of, read_map, write_map
from bockd.errors import InUseError, InvalidRequestError, VolumeTakenError
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Blocking, Steps, run_inline
from tests.crash.failpoints.run import OF_THE_CACHE
from tests.drivers.local.schedule import Scheduler

from .opened import CountingDevice, Opened, allocated_blocks, content_of, is_hit

SIZE = 2 * MIB
CONTENT = content_of(SIZE)


@pytest.fixture
def below() -> CountingDevice:
    device = CountingDevice(SIZE)
    device.hold(CONTENT)
    return device


def filled(path: Path, below: CountingDevice, epoch: int = 5) -> Opened:
    """A cache that has been closed with a block in it, and one of zeros."""
    below.hold(bytes(BLOCK_SIZE), BLOCK_SIZE)
    opened = Opened(path)
    device = opened.volume(below, epoch)
    opened.read(device, 0, 2 * BLOCK_SIZE)
    opened.release(device)
    return opened


def test_what_was_cached_is_there_at_the_next_opening(
    tmp_path: Path, below: CountingDevice
) -> None:
    filled(tmp_path, below)
    opened = Opened(tmp_path)
    assert opened.directory.space.used_bytes == BLOCK_SIZE
    device = opened.volume(below, 6)
    below.reads.clear()
    assert opened.read(device, 0, 2 * BLOCK_SIZE) == CONTENT[:BLOCK_SIZE] + bytes(BLOCK_SIZE)
    assert below.reads == []
    assert is_hit(device, 0)
    assert is_hit(device, 1)
    assert not is_hit(device, 2)
    assert opened.directory.space.used_bytes == BLOCK_SIZE
    opened.release(device)


@pytest.mark.parametrize("epoch", [0, 4, 5, 7, 100])
def test_nothing_is_kept_when_others_had_the_volume(
    tmp_path: Path, below: CountingDevice, epoch: int
) -> None:
    filled(tmp_path, below)
    opened = Opened(tmp_path)
    device = opened.volume(below, epoch)
    below.reads.clear()
    opened.read(device)
    assert below.reads == [(0, BLOCK_SIZE)]
    opened.release(device)


def _written(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"rot")


def _copied(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def _cut(path: Path) -> None:
    os.truncate(path, MIB)


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [_written, _copied, _cut, _gone])
def test_a_file_that_is_another_one_is_dropped(
    tmp_path: Path, below: CountingDevice, change: Callable[[Path], None]
) -> None:
    filled(tmp_path, below)
    change(tmp_path / "v-one.blocks")
    opened = Opened(tmp_path)
    device = opened.volume(below, 6)
    assert not is_hit(device, 0)
    assert opened.read(device) == CONTENT[:BLOCK_SIZE]
    opened.release(device)


def test_a_damaged_map_is_dropped(
    tmp_path: Path, below: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, below)
    path = tmp_path / "v-one.map"
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content)
    opened = Opened(tmp_path)
    device = opened.volume(below, 6)
    below.reads.clear()
    opened.read(device)
    assert len(below.reads) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "what was cached of one is dropped: its checksum is wrong"
    ]
    opened.release(device)


def test_a_device_that_has_grown_keeps_what_was_cached(
    tmp_path: Path, below: CountingDevice
) -> None:
    filled(tmp_path, below)
    below.grow(2 * SIZE)
    opened = Opened(tmp_path)
    device = opened.volume(below, 6)
    below.reads.clear()
    assert opened.read(device) == CONTENT[:BLOCK_SIZE]
    assert below.reads == []
    assert opened.read(device, SIZE) == bytes(BLOCK_SIZE)
    below.hold(CONTENT[:BLOCK_SIZE], 2 * SIZE - BLOCK_SIZE)
    for _ in range(2):
        assert opened.read(device, 2 * SIZE - BLOCK_SIZE) == CONTENT[:BLOCK_SIZE]
    assert len(below.reads) == 2
    opened.release(device)


def test_a_device_that_grows_is_cached_to_its_new_end(
    tmp_path: Path, below: CountingDevice
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    below.grow(2 * SIZE)
    device.follow_size()
    opened.background.run()
    below.hold(CONTENT[:BLOCK_SIZE], 2 * SIZE - BLOCK_SIZE)
    opened.read(device, 2 * SIZE - BLOCK_SIZE)
    assert is_hit(device, 2 * SIZE // BLOCK_SIZE - 1)
    assert device.blocks.file.window(2 * SIZE - 1) is not None
    opened.release(device)


def test_what_ends_without_being_closed_leaves_nothing(
    tmp_path: Path, below: CountingDevice
) -> None:
    filled(tmp_path, below)
    opened = Opened(tmp_path)
    device = opened.volume(below, 6)
    opened.die(device)
    opened = Opened(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["bockd-cache.lock"]
    assert opened.directory.space.used_bytes == 0
    opened.directory.release()


def test_what_is_no_more_is_forgotten(tmp_path: Path, below: CountingDevice) -> None:
    filled(tmp_path, below)
    opened = Opened(tmp_path)
    snapshot = opened.snapshot(below, "two")
    opened.read(snapshot)
    opened.close(snapshot)
    assert opened.directory.space.used_bytes == 2 * BLOCK_SIZE
    run_inline(opened.directory.forget_volume("one"))
    assert sorted(os.listdir(tmp_path)) == ["bockd-cache.lock", "s-two.blocks", "s-two.map"]
    run_inline(opened.directory.forget_snapshot("two"))
    assert sorted(os.listdir(tmp_path)) == ["bockd-cache.lock"]
    assert opened.directory.space.used_bytes == 0
    opened.release()


def test_what_is_forgotten_before_it_is_closed_is_not_kept(
    tmp_path: Path, below: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """As when both are begun in the background."""
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    run_inline(opened.directory.forget_volume("one"))
    opened.close(device)
    assert os.listdir(tmp_path) == ["bockd-cache.lock"]
    assert opened.directory.space.used_bytes == 0
    assert caplog.text == ""
    opened.release()


def test_a_volume_that_is_opened_before_it_was_closed_keeps_nothing(
    tmp_path: Path, below: CountingDevice
) -> None:
    """It was lost, and its end takes longer than to take it again."""
    opened = Opened(tmp_path)
    lost = opened.volume(below, 1)
    opened.read(lost)
    assert run_inline(opened.directory.open_volume(below, "one", 2)) is None
    assert not is_hit(lost)
    below.hold(b"x" * BLOCK_SIZE)
    assert opened.read(lost) == b"x" * BLOCK_SIZE
    opened.close(lost)
    assert os.listdir(tmp_path) == ["bockd-cache.lock"]
    device = opened.volume(below, 3)
    assert opened.read(device) == b"x" * BLOCK_SIZE
    opened.release(device)


@pytest.mark.parametrize("kind", ["volume", "snapshot"])
def test_opening_waits_for_no_file_that_is_being_closed(
    tmp_path: Path, below: CountingDevice, kind: str
) -> None:
    """The local disk may take long to sync it, and the volume is taken by then."""
    opened = Opened(tmp_path)
    directory = opened.directory

    def opening(epoch: int) -> Steps[CachedDevice | None]:
        if kind == "snapshot":
            return directory.open_snapshot(below, "one")
        return directory.open_volume(below, "one", epoch)

    device = run_inline(opening(1))
    assert device is not None
    opened.read(device)
    closing = directory.close_device(device)
    step = closing.send(None)
    assert isinstance(step, Blocking)
    assert run_inline(opening(2)) is None
    with pytest.raises(StopIteration):
        closing.send(step.call())
    again = run_inline(opening(2))
    assert again is not None
    reads = len(below.reads)
    opened.read(again)
    assert len(below.reads) == reads
    opened.release(again)


def test_a_volume_that_is_given_back_shows_nothing_and_is_kept(
    tmp_path: Path, below: CountingDevice
) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    device.retire()
    assert not is_hit(device)
    assert not device.try_read(0, memoryview(bytearray(BLOCK_SIZE)))
    below.failures["read"] = VolumeTakenError("given back")
    with pytest.raises(VolumeTakenError):
        opened.read(device)
    opened.close(device)
    assert is_kept(opened, below)
    opened.release()


def is_kept(opened: Opened, below: CountingDevice) -> bool:
    """Return whether block 0 is a hit at the next opening."""
    below.failures.clear()
    device = opened.volume(below, 2)
    found = device.try_read(0, memoryview(bytearray(BLOCK_SIZE)))
    opened.close(device)
    return found


def test_all_are_closed_before_the_directory_is_given_up(
    tmp_path: Path, below: CountingDevice
) -> None:
    """Also what somebody else has begun to close."""
    opened = Opened(tmp_path)
    device = opened.volume(below, 1)
    opened.read(device)
    scheduler = Scheduler(random.Random(1))
    closing = scheduler.start(opened.directory.close_device(device), lambda: None)
    while closing.call is None:
        scheduler.advance(closing)
    ended: list[None] = []
    scheduler.start(opened.directory.close_all(), lambda: ended.append(None))
    scheduler.advance(scheduler.tasks[-1])
    assert not ended
    scheduler.run()
    assert ended
    opened.release()
    assert len(list(tmp_path.glob("*.map"))) == 1


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "v-roads.map").touch()
    with pytest.raises(InvalidRequestError, match="not empty"):
        Opened(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["lost+found", "v-roads.map"]
    (tmp_path / "v-roads.map").unlink()
    Opened(tmp_path).release()


def test_another_daemon_is_refused(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    with pytest.raises(InUseError):
        Opened(tmp_path)
    opened.release()
    Opened(tmp_path).release()


# -- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", sorted(OF_THE_CACHE))
def test_killed_at_a_step_nothing_stale_is_found(
    tmp_path: Path, below: CountingDevice, point: Failpoint
) -> None:
    """The second life opens what the first one kept, changes it, and closes it again."""
    filled(tmp_path, below)
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.cache.dying", tmp_path],
        env={**os.environ, VARIABLE: point},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"nothing comes to {point}"
    written = point is not Failpoint.CACHE_MAP_REMOVED
    if written:
        below.hold(b"w" * BLOCK_SIZE)
    opened = Opened(tmp_path)
    device = opened.volume(below, 7 if written else 6)
    kept = device.try_read(0, memoryview(bytearray(BLOCK_SIZE)))
    assert kept == (point is Failpoint.CACHE_MAP_NAMED)
    assert opened.read(device) == below_now(below)
    opened.release(device)


def below_now(below: CountingDevice) -> bytes:
    into = memoryview(bytearray(BLOCK_SIZE))
    below._read(0, into)
    return bytes(into)


# -- the map's file ------------------------------------------------------------------------------

KEPT = Kept("name", 3, SIZE, BLOCK_SIZE, Identity(1, 2, 3, 4))


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "one.map"
    leaves = [
        (0, bytes([2]) * LEAF_BLOCKS, 0),
        (7, bytes([0, 1] * (LEAF_BLOCKS // 2)), 1 << 255 | 5),
        (1 << 40, bytes([1]) * LEAF_BLOCKS, (1 << LEAF_BLOCKS) - 1),
    ]
    write_map(path, KEPT, leaves)
    kept, content = read_map(path)
    assert kept == KEPT
    assert list(leaves_of(content)) == leaves
    assert os.listdir(tmp_path) == ["one.map"]


def test_a_map_with_a_wrong_byte_or_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.map"
    write_map(path, KEPT, [(0, bytes([2]) * LEAF_BLOCKS, 0)])
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(BadMapError):
            read_map(path)
        path.write_bytes(content[:at])
        with pytest.raises(BadMapError):
            read_map(path)


def test_a_leaf_with_an_unknown_slot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.map"
    write_map(path, KEPT, [(0, bytes([3]) * LEAF_BLOCKS, 0)])
    with pytest.raises(BadMapError):
        list(leaves_of(read_map(path)[1]))


def test_all_that_takes_space_is_in_the_map() -> None:
    """Also what is a miss: it is punched with its leaf some day."""
    kept = BlockMap()
    kept.note_written(3, bytes([0, 1, 0]))
    assert list(kept.kept_leaves()) == [(0, bytes([2]) * LEAF_BLOCKS, 0b101000)]
    loaded = BlockMap()
    for leaf in kept.kept_leaves():
        loaded.load(*leaf)
    assert allocated_blocks(loaded) == 2
    assert loaded.runs(3, 4) is None


def test_the_map_is_synced_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "one.map", list[str]()

    def fsync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        assert not path.exists()

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(mapfile, "sync_directory", lambda _path: synced.append("directory"))
    write_map(path, KEPT, [])
    assert synced == ["one.new", "directory"]
