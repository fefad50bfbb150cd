"""What is measured of the logs."""

from __future__ import annotations

from pathlib import Path

from bockd.drivers.memory.device import FailedError, MemoryDevice

from .opened import BOUND_BYTES, SEGMENT_BYTES, SIZE_BYTES, Opened

ONE = b"1" * 4096


def figures(opened: Opened) -> dict[str, float]:
    return {one.name.removeprefix("write_back_"): one.value for one in opened.directory.figures()}


def test_what_waits_and_why_is_measured(tmp_path: Path) -> None:
    below = MemoryDevice(SIZE_BYTES)
    opened = Opened(tmp_path / "logs", below)
    nothing = {
        "used_bytes": 0,
        "limit_bytes": BOUND_BYTES,
        "oldest_seconds": 0,
        "troubled_volumes": 0,
        "logs_aside": 0,
    }
    assert figures(opened) == nothing
    below.failures["write"] = FailedError("for a test")
    opened.write(0, ONE)
    opened.now += 30
    opened.write(4096, ONE)
    waiting = {**nothing, "used_bytes": SEGMENT_BYTES, "oldest_seconds": 30}
    assert figures(opened) == waiting
    opened.flush()
    opened.now += 30
    assert figures(opened) == {**waiting, "oldest_seconds": 60, "troubled_volumes": 1}
    opened.close()
    opened.record = None
    opened.open()
    assert figures(opened) == {**nothing, "used_bytes": SEGMENT_BYTES, "logs_aside": 1}
    opened.dispose()


def test_a_volume_with_nothing_dirty_is_no_trouble(tmp_path: Path) -> None:
    """It is merely written through: for lack of room, and after its log has failed."""
    opened = Opened(tmp_path / "logs", MemoryDevice(SIZE_BYTES))
    others = opened.path / "others"
    opened.directory.space.set(others, BOUND_BYTES)
    opened.write(0, ONE)
    assert opened.device.trouble is not None
    assert figures(opened)["troubled_volumes"] == 0
    opened.directory.space.set(others, 0)
    opened.look()
    opened.write(0, ONE)
    assert opened.device.way.log is not None
    opened.device.way.log.fail("for a test")
    assert figures(opened)["troubled_volumes"] == 1, "it is not below yet"
    opened.flush()
    assert opened.record is None
    assert opened.device.trouble is not None
    assert figures(opened)["troubled_volumes"] == 0
    opened.dispose()


def test_a_volume_that_cannot_be_opened_is_trouble(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "logs", MemoryDevice(SIZE_BYTES))
    left = {one.name: one.value for one in opened.directory.figures([opened.now - 7, opened.now])}
    assert left["write_back_troubled_volumes"] == 2
    assert left["write_back_oldest_seconds"] == 7
    opened.dispose()


def test_a_clock_that_went_back_is_no_negative_age(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "logs", MemoryDevice(SIZE_BYTES))
    opened.write(0, ONE)
    opened.now -= 3600
    assert figures(opened)["oldest_seconds"] == 0
    opened.dispose()
