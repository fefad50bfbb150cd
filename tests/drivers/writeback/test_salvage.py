"""Of a damaged log, what is before the damage is written below when the rest is given up."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from bockd.drivers.memory.device import FailedError, MemoryDevice
from bockd.drivers.writeback import recovery
from bockd.drivers.writeback.progress import SLOT_BYTES, Progress, ProgressFile
from bockd.drivers.writeback.records import parse
from bockd.drivers.writeback.segment import FIRST_RECORD, Segment
from bockd.errors import DamagedError, NoSpaceError, UnreadableError
from bockd.model import BLOCK_SIZE
from bockd.pool.caches import LogReach

from .opened import IMAGE, SIZE_BYTES, Opened, holding
from .salvaging import salvage

BLOCKS = 64


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """One of which nothing gets below until `end`."""
    below = MemoryDevice(SIZE_BYTES)
    below.failures["write"] = NoSpaceError("for a test")
    one = Opened(tmp_path / "logs", below)
    yield one
    one.dispose()


def write(opened: Opened, *values: int) -> None:
    """Write a block for each value, at its own place, as one epoch."""
    for value in values:
        opened.write(value * BLOCK_SIZE, bytes([value]) * BLOCK_SIZE)
    opened.flush()


def end(opened: Opened) -> None:
    """Have the process killed, and the device below work."""
    opened.die()
    opened.directory = opened._directory()
    below = opened.below
    assert isinstance(below, MemoryDevice)
    below.failures.clear()


def below(opened: Opened) -> list[int]:
    """Return the values that are below."""
    content = holding(opened.below, 0, BLOCKS * BLOCK_SIZE)
    blocks = [content[at : at + BLOCK_SIZE] for at in range(0, len(content), BLOCK_SIZE)]
    assert all(one == one[:1] * BLOCK_SIZE for one in blocks)
    return [one[0] for one in blocks if one[0]]


def segments(opened: Opened) -> list[Path]:
    return sorted(opened.log_path().glob("*.seg"))


def places(path: Path) -> dict[int, int]:
    """Return where the records of a segment lie, by their sequences."""
    content, at, found = memoryview(path.read_bytes()), FIRST_RECORD, dict[int, int]()
    while (header := parse(content, at)) is not None:
        found[header.sequence] = at
        at += header.size_bytes
    return found


def flip(path: Path, at: int) -> None:
    """Change a byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def damage(opened: Opened, sequence: int) -> None:
    """Damage the data of a record."""
    for path in segments(opened):
        if (at := places(path).get(sequence)) is not None:
            flip(path, at + 100)
            return
    raise AssertionError(sequence)


def refused(opened: Opened) -> None:
    """The log is damaged for whoever opens it."""
    with pytest.raises(DamagedError):
        opened.open()


def given_up(opened: Opened) -> list[Path]:
    """Give the log up. Return what is put aside of it."""
    opened.record = None
    opened.run(opened.directory.discard(IMAGE, keep=True))
    return opened.directory.aside()


def test_what_is_before_the_damage_gets_below_and_the_rest_aside(opened: Opened) -> None:
    write(opened, 1, 2)  # records 1 to 3
    write(opened, 3, 4)
    write(opened, 5, 6)
    write(opened, 7)
    end(opened)
    damage(opened, 7)
    refused(opened)
    result = salvage(opened)
    assert below(opened) == [1, 2, 3, 4]
    record = BLOCK_SIZE + 64
    assert result == (4 * record, 3 * record + 2 * 64)
    refused(opened)
    _, progress = ProgressFile.open(opened.log_path())
    assert (progress.done, progress.drained, progress.broken) == (6, False, "")
    (aside,) = given_up(opened)
    assert (aside / "00000001.seg").exists()
    opened.open()
    assert opened.read(5 * BLOCK_SIZE) == bytes(BLOCK_SIZE)


def test_a_repeated_salvage_writes_nothing_again(opened: Opened) -> None:
    write(opened, 1)
    write(opened, 2)
    end(opened)
    damage(opened, 3)
    first, second = salvage(opened), salvage(opened)
    assert first is not None
    assert second is not None
    assert (first.written_bytes > 0, second.written_bytes) == (True, 0)
    assert first.given_up_bytes == second.given_up_bytes > 0
    assert below(opened) == [1]


def test_what_follows_the_last_barrier_is_left_out(opened: Opened) -> None:
    """All of that epoch may be below, and some of the next one: half of it would undo that."""
    write(opened, 1)  # records 1 and 2
    write(opened, 2, 3, 4)
    end(opened)
    damage(opened, 5)
    salvage(opened)
    assert below(opened) == [1]


def test_what_is_behind_the_damage_is_left_out(opened: Opened) -> None:
    write(opened, 1)
    write(opened, 2)
    write(opened, 3)
    end(opened)
    damage(opened, 3)
    salvage(opened)
    assert below(opened) == [1]


def first_record(opened: Opened) -> None:
    damage(opened, 1)


def first_header(opened: Opened) -> None:
    flip(segments(opened)[0], 0)


def first_missing(opened: Opened) -> None:
    segments(opened)[0].unlink()


@pytest.mark.parametrize("harm", [first_record, first_header, first_missing])
def test_of_a_log_that_is_damaged_from_the_beginning_all_is_given_up(
    opened: Opened, harm: Callable[[Opened], None]
) -> None:
    for value in range(1, 33):
        write(opened, value)
    end(opened)
    harm(opened)
    refused(opened)
    result = salvage(opened)
    assert result is not None
    assert result.written_bytes == 0
    assert result.given_up_bytes > BLOCK_SIZE
    assert below(opened) == []
    refused(opened)
    assert given_up(opened)


def middle_header(opened: Opened) -> None:
    flip(segments(opened)[1], 5)


def middle_missing(opened: Opened) -> None:
    segments(opened)[1].unlink()


def middle_short(opened: Opened) -> None:
    os.truncate(segments(opened)[1], 100)


@pytest.mark.parametrize("harm", [middle_header, middle_missing, middle_short])
def test_what_is_before_a_damaged_segment_gets_below(
    opened: Opened, harm: Callable[[Opened], None]
) -> None:
    for value in range(1, 33):
        write(opened, value)
    first = len(places(segments(opened)[0])) // 2
    assert len(segments(opened)) >= 3
    end(opened)
    harm(opened)
    refused(opened)
    result = salvage(opened)
    assert result is not None
    assert result.given_up_bytes > BLOCK_SIZE
    assert below(opened) == list(range(1, first + 1))
    refused(opened)
    assert given_up(opened)


def test_segments_that_are_below_are_removed_and_the_damage_is_found(opened: Opened) -> None:
    for value in range(1, 33):
        write(opened, value)
    whole = segments(opened)
    end(opened)
    damage(opened, max(places(whole[1])) - 1)
    before = len(os.listdir("/proc/self/fd"))
    salvage(opened)
    assert len(os.listdir("/proc/self/fd")) == before
    assert segments(opened) == whole[1:]
    refused(opened)
    assert opened.directory.space.used_bytes == sum(one.stat().st_size for one in whole[1:])


def test_damage_is_found_after_a_part_was_written_below_in_another_boot(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sectors are zeros of what was synced, and the progress alone says that it was."""
    write(opened, 1)
    write(opened, 2)
    opened.close()
    end(opened)
    path = segments(opened)[0]
    content = bytearray(path.read_bytes())
    at = places(path)[3]
    content[at : at + 1536] = bytes(1536)
    path.write_bytes(content)
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    refused(opened)
    salvage(opened)
    assert below(opened) == [1]
    refused(opened)


def test_of_a_log_whose_disk_has_failed_what_is_whole_gets_below(opened: Opened) -> None:
    """It is still one that nothing may be appended to, and is not called drained."""
    write(opened, 1)
    write(opened, 2)
    write(opened, 3)
    assert opened.device.way.log is not None
    opened.device.way.log.fail("for a test")
    opened.close()
    end(opened)
    damage(opened, 5)
    refused(opened)
    salvage(opened)
    assert below(opened) == [1, 2]
    _, progress = ProgressFile.open(opened.log_path())
    assert (progress.done, progress.broken, progress.drained) == (4, "for a test", False)
    refused(opened)


def test_an_older_log_is_not_written_below(opened: Opened) -> None:
    """One that was restored from a backup: newer data may be there."""
    write(opened, 1)
    write(opened, 2)
    end(opened)
    damage(opened, 3)
    assert opened.record is not None
    for reach in (LogReach(opened.record, 3, 3), LogReach(opened.record, 0, 5)):
        assert opened.run(opened.directory.salvage(opened.below, IMAGE, reach)) is None
    assert below(opened) == []
    reach = LogReach(opened.record, 0, 4)  # record 4 is behind the damage, and shows its age
    begun = opened.run(opened.directory.salvage(opened.below, IMAGE, reach))
    assert begun is not None
    opened.run(begun.close())


def test_a_log_that_is_newer_than_the_pool_is_not_written_below(opened: Opened) -> None:
    write(opened, 1)
    write(opened, 2)
    opened.note()
    end(opened)
    damage(opened, 3)
    opened.noted = None
    assert salvage(opened) is None
    assert below(opened) == []


@pytest.mark.parametrize("missing", [True, False])
def test_a_log_that_does_not_say_how_much_is_below_is_not_written_below(
    opened: Opened, missing: bool
) -> None:
    write(opened, 1)
    end(opened)
    path = opened.log_path() / "progress"
    if missing:
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    assert salvage(opened) is None
    assert below(opened) == []
    assert given_up(opened)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("noted", [1, 2])
def test_an_older_progress_is_not_relied_on(opened: Opened, noted: int, zeros: bool) -> None:
    """The epoch that it says is next is older than what is below of the next but one."""
    for value in range(1, 5):  # an epoch each, of two writes
        opened.write(0, bytes([value]) * BLOCK_SIZE)
        write(opened, value)
    end(opened)
    file, progress = ProgressFile.open(opened.log_path())
    for epochs in range(1, noted + 1):
        progress = replace(progress, count=progress.count + 1, done=3 * epochs)
        file.write(progress)
    file.close()
    # The epoch behind what is noted is below, and some of the one after that.
    there = [noted + 1, *range(1, noted + 3)]
    for block, value in enumerate(there):
        opened.run(opened.below.write(block * BLOCK_SIZE, memoryview(bytes([value]) * BLOCK_SIZE)))
    path, at = opened.log_path() / "progress", progress.count % 2 * SLOT_BYTES
    if zeros:
        content = path.read_bytes()
        path.write_bytes(content[:at] + bytes(SLOT_BYTES) + content[at + SLOT_BYTES :])
    else:
        flip(path, at + 40)
    damage(opened, 3 * noted + 1)
    refused(opened)
    assert salvage(opened) is None
    assert below(opened) == there
    assert given_up(opened)


def test_if_the_disk_takes_no_progress_nothing_is_sent_without(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what may be there anyway: at most two epochs more than the progress says."""
    for value in range(1, 9):
        write(opened, value)
    end(opened)
    damage(opened, 13)
    noted, written = list[int](), ProgressFile.write

    def refusing(file: ProgressFile, progress: Progress) -> None:
        if progress.done > 4:
            raise OSError(errno.EIO, "for a test")
        written(file, progress)
        noted.append(progress.done)

    monkeypatch.setattr(ProgressFile, "write", refusing)
    reach = opened._reach()
    assert reach is not None
    begun = opened.run(opened.directory.salvage(opened.below, IMAGE, reach))
    assert begun is not None
    for _ in range(2):
        with pytest.raises(UnreadableError, match="is not noted"):
            opened.run(begun.drain())
    opened.run(begun.close())
    assert noted[-1] == 4
    assert below(opened) == [1, 2, 3, 4]
    _, progress = ProgressFile.open(opened.log_path())
    assert (progress.done, progress.drained) == (4, False)
    monkeypatch.undo()
    salvage(opened)
    assert below(opened) == [1, 2, 3, 4, 5, 6]


def test_if_the_disk_refuses_at_once_nothing_is_sent(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(opened, 1)
    write(opened, 2)
    end(opened)
    damage(opened, 3)

    def refusing(_file: ProgressFile, _progress: object) -> None:
        raise OSError(errno.EIO, "for a test")

    monkeypatch.setattr(ProgressFile, "write", refusing)
    result = salvage(opened)
    assert result is not None
    assert result.written_bytes == 0
    assert below(opened) == []


def test_if_the_disk_cannot_sync_what_was_synced_earlier_gets_below(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a progress would say that more is below than the log has after a power cut."""
    write(opened, 1)
    write(opened, 2)
    write(opened, 3)
    opened.write(4 * BLOCK_SIZE, b"4" * BLOCK_SIZE)  # says that all before was synced
    end(opened)
    damage(opened, 7)
    content = segments(opened)[0].read_bytes()
    at = places(segments(opened)[0])[7]
    segments(opened)[0].write_bytes(content[:at] + content[at:].replace(b"4", b"5"))

    def refusing(_segment: Segment) -> None:
        raise OSError(errno.EIO, "for a test")

    monkeypatch.setattr(Segment, "sync", refusing)
    salvage(opened)
    # Record 5 says that all up to 4 was synced; what has said it of 6 is damaged.
    assert below(opened) == [1, 2]


@pytest.mark.parametrize("broken", ["", "for a test"])
def test_a_progress_that_may_be_in_memory_only_is_not_relied_on_after_a_restart(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The process before may have ended when the disk had refused it, and before it said so."""
    for value in range(1, 9):
        write(opened, value)
    end(opened)
    file, progress = ProgressFile.open(opened.log_path())
    file.write(replace(progress, count=progress.count + 1, broken=broken, synced=16))
    file.close()

    def refusing(_file: ProgressFile, _progress: object) -> None:
        raise OSError(errno.EIO, "for a test")

    monkeypatch.setattr(ProgressFile, "write", refusing)
    opened.refusing_unnotable = True
    opened.open()
    assert isinstance(opened.begin(opened.device.drain())[0], FailedError)
    opened.look()
    assert below(opened) == []
    opened.refusing_unnotable = False
    opened.look()
    assert opened.commits[-1] is None, "all is below"
    assert below(opened) == list(range(1, 9))


@pytest.mark.parametrize("broken", ["", "for a test"])
def test_a_progress_that_the_disk_takes_again_needs_no_commit_after_a_restart(
    opened: Opened, broken: str
) -> None:
    for value in range(1, 4):
        write(opened, value)
    end(opened)
    file, progress = ProgressFile.open(opened.log_path())
    file.write(replace(progress, count=progress.count + 1, broken=broken, synced=6))
    file.close()
    opened.refusing_unnotable = True
    opened.open()
    opened.run(opened.device.drain())
    assert below(opened) == [1, 2, 3]


def test_before_more_is_below_than_the_log_says_the_driver_commits_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(1, 9):
        write(opened, value)

    def refusing(_file: ProgressFile, _progress: object) -> None:
        raise OSError(errno.EIO, "for a test")

    monkeypatch.setattr(ProgressFile, "write", refusing)
    opened.refusing_unnotable = True
    below_device = opened.below
    assert isinstance(below_device, MemoryDevice)
    below_device.failures.clear()
    assert isinstance(opened.begin(opened.device.drain())[0], FailedError)
    opened.look()
    assert len(below(opened)) <= 2, "all of one epoch, and some of the next one"
    assert not opened.unnotable
    opened.refusing_unnotable = False
    opened.look()
    assert opened.commits[-1] is None, "all is below"
    assert below(opened) == list(range(1, 9))
