"""What of a log a crash may have left, and what is damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import recovery
from bockd.drivers.writeback.segment import Segment
from bockd.errors import DamagedError, NoSpaceError
from bockd.model import BLOCK_SIZE

from .disk import DeathError
from .machine import Made
from .opened import SEGMENT_BYTES, SIZE_BYTES, Opened

RECORD = 64 + BLOCK_SIZE
FIRST = 4096


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    below = MemoryDevice(SIZE_BYTES)
    below.failures["write"] = NoSpaceError("for a test")  # nothing ever gets below
    one = Opened(tmp_path / "logs", below)
    yield one
    one.dispose()


def block(value: int) -> bytes:
    return bytes([value]) * BLOCK_SIZE


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def segment(opened: Opened) -> Path:
    return opened.log_path() / "00000001.seg"


def test_a_killed_process_loses_nothing(opened: Opened) -> None:
    for value in range(1, 6):
        opened.write(value * BLOCK_SIZE, block(value))
    opened.again()
    for value in range(1, 6):
        assert opened.read(value * BLOCK_SIZE) == block(value)


def test_a_record_that_is_cut_off_ends_the_log(opened: Opened) -> None:
    opened.write(0, block(1))
    opened.write(BLOCK_SIZE, block(2))
    change(segment(opened), FIRST + RECORD + 1024, bytes(RECORD - 1024))
    opened.again()
    assert opened.read(0) == block(1)
    assert opened.read(BLOCK_SIZE) == bytes(BLOCK_SIZE)
    opened.write(BLOCK_SIZE, block(3))
    opened.again()
    assert opened.read(BLOCK_SIZE) == block(3)


def test_after_a_power_cut_a_gap_ends_the_log(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(1, 4):
        opened.write(value * BLOCK_SIZE, block(value))
    change(segment(opened), FIRST + RECORD, bytes(512))
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    opened.again()
    assert opened.read(1 * BLOCK_SIZE) == block(1)
    assert opened.read(2 * BLOCK_SIZE) == bytes(BLOCK_SIZE)
    assert opened.read(3 * BLOCK_SIZE) == bytes(BLOCK_SIZE)


def test_without_a_power_cut_a_gap_is_damage(opened: Opened) -> None:
    for value in range(1, 4):
        opened.write(value * BLOCK_SIZE, block(value))
    change(segment(opened), FIRST + RECORD, bytes(512))
    with pytest.raises(DamagedError, match="others behind it"):
        opened.again()


def test_a_gap_in_what_was_flushed_is_damage(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, block(1))
    opened.write(BLOCK_SIZE, block(2))
    opened.flush()
    opened.write(2 * BLOCK_SIZE, block(3))
    change(segment(opened), FIRST + RECORD, bytes(512))
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    with pytest.raises(DamagedError, match=r"was flushed.*discard-cache"):
        opened.again()


@pytest.mark.parametrize("at", [0, 8, 40, 63, 64, 64 + BLOCK_SIZE - 1])
def test_a_record_of_which_no_sector_is_missing_is_damage(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the end of the log, too, of which nobody has said that it was synced."""
    opened.write(0, block(1))
    opened.flush()
    opened.write(BLOCK_SIZE, block(2))
    path, place = segment(opened), FIRST + RECORD + 64 + at
    found = path.read_bytes()[place]
    change(path, place, bytes([found ^ 0x55]))
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    if 4 <= at < 16:  # its kind or sequence: nothing says that it is a record
        opened.again()
        assert opened.read(BLOCK_SIZE) == bytes(BLOCK_SIZE)
        return
    with pytest.raises(DamagedError, match="fails its checksum"):
        opened.again()


def test_all_of_a_log_that_was_closed_is_judged(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, block(1))
    path = segment(opened)
    opened.close()
    change(path, FIRST, bytes(512))
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    with pytest.raises(DamagedError, match="was flushed"):
        opened.open()


class _Held:
    """Counts the contents of segments that are in memory at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        content, held = Segment.content, self

        class Content(bytes):
            def __del__(self) -> None:
                held.now -= 1

        def counted(segment: Segment) -> bytes:
            held.now += 1
            held.most = max(held.most, held.now)
            return Content(content(segment))

        patch.setattr(Segment, "content", counted)


@pytest.mark.parametrize("ends", ["at its last record", "at its first segment"])
def test_of_a_long_log_three_segments_are_in_memory_at_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    opened.close()
    opened.directory.release()
    monkeypatch.setattr("tests.drivers.writeback.opened.BOUND_BYTES", 16 * SEGMENT_BYTES)
    opened.directory = opened._directory()
    opened.open()
    for at in range(120):
        opened.write(at * BLOCK_SIZE, block(at + 1))
    assert len(list(opened.log_path().glob("*.seg"))) > 8
    held = _Held()
    held.install(monkeypatch)
    if ends == "at its last record":
        opened.again()
        assert opened.read(119 * BLOCK_SIZE) == block(120)
    else:
        change(segment(opened), FIRST, bytes(512))
        with pytest.raises(DamagedError, match="was flushed"):
            opened.again()
    assert 2 <= held.most <= 3


def test_a_missing_segment_is_damage(opened: Opened) -> None:
    for at in range(40):
        opened.write(at * BLOCK_SIZE, block(at))
    path = segment(opened)
    assert path.with_name("00000002.seg").exists()
    path.unlink()
    with pytest.raises(DamagedError, match=r"00000001\.seg is missing"):
        opened.again()


@pytest.mark.parametrize("ends", ["at a sync", "at a removal"])
def test_an_end_of_recovery_leaves_no_gap_behind_the_log(
    machine: Made, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Two segments behind the end are removed. Power fails at a sync, and some of what was not
    synced is there again; or the process is killed at a removal, and power fails in the next one.
    """
    unlink, done = Path.unlink, 0
    for seed in range(48):
        one = machine(seed)
        one.refuse_below()
        while len(names := sorted(p.name for p in one.opened.log_path().glob("*.seg"))) < 3:
            one.opened.write(0, block(1))
        lost = one.opened.log_path() / names[1]
        one.opened.die()
        one.disk.leave(lost, lost.read_bytes()[:FIRST].ljust(SEGMENT_BYTES, b"\0"))
        one.boot += 1
        one.opened.directory = one.opened._directory()
        moment, left = seed % 8, [seed // 8 % 2]

        def removing(self: Path, *args: bool, left: list[int] = left) -> None:
            if self.suffix == ".seg":
                left[0] -= 1
                if left[0] < 0:
                    raise DeathError
            unlink(self, *args)

        with monkeypatch.context() as patch:
            if ends == "at a removal":
                patch.setattr(Path, "unlink", removing)
                with pytest.raises(DeathError):
                    one.opened.open()
                one.opened.die()
                one.opened.directory = one.opened._directory()
        one.disk.dies_in = moment
        try:
            one.opened.open()
        except DeathError:
            one.disk.dies_in = -1
            one.cut()
            one.opened.open()
        else:
            done += 1
        assert one.opened.read(0) == block(1)
        one.opened.dispose()
    assert done, "the last moment is not the last one of recovery"


def test_what_was_opened_of_a_damaged_log_is_closed(opened: Opened) -> None:
    """Each client that tries again opens it again; a long log has a thousand segments."""
    for at in range(40):
        opened.write(at * BLOCK_SIZE, block(at))
    second = segment(opened).with_name("00000002.seg")
    opened.close()
    change(second, 0, bytes(512))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DamagedError):
        opened.open()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_log_whose_last_segment_is_gone_is_damage(opened: Opened) -> None:
    for at in range(40):
        opened.write(at * BLOCK_SIZE, block(at))
    opened.close()
    last = max(one for one in opened.log_path().glob("*.seg"))
    while not last.read_bytes()[FIRST:].strip(b"\0"):
        last.unlink()
        last = max(one for one in opened.log_path().glob("*.seg"))
    last.unlink()
    with pytest.raises(DamagedError, match="was flushed"):
        opened.open()


def test_a_broken_slot_of_the_progress_leaves_the_other_one(opened: Opened) -> None:
    opened.write(0, block(1))
    opened.flush()
    opened.again()
    change(opened.log_path() / "progress", 4096 + 40, b"xx")
    opened.again()
    assert opened.read() == block(1)
    for slot in range(2):
        change(opened.log_path() / "progress", slot * 4096 + 40, b"yy")
    with pytest.raises(DamagedError, match="neither slot"):
        opened.again()


def test_a_log_of_another_image_is_refused(opened: Opened) -> None:
    opened.write(0, block(1))
    opened.close()
    other = "fedcba9876543210"
    opened.log_path().rename(opened.path / f"one.{other}")
    opened.record = other
    with pytest.raises(DamagedError, match="another volume"):
        opened.open()
