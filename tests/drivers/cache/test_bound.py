"""The cache stays within its bound: the oldest leaves go, and nothing that is read of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.cache.space import Space
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Steps, run_inline

from .opened import CountingDevice, Opened, content_of, is_hit

LIMIT = 16 * MIB
SIZE = 24 * MIB
CONTENT = content_of(SIZE)


@pytest.fixture
def below() -> CountingDevice:
    device = CountingDevice(SIZE)
    device.hold(CONTENT)
    return device


def taken(path: Path) -> int:
    """What the files take of the disk."""
    return sum(one.stat().st_blocks * 512 for one in path.iterdir())


def test_it_never_takes_more_than_its_limit(tmp_path: Path, below: CountingDevice) -> None:
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(below, 1)
    for _ in range(2):
        for offset in range(0, SIZE, MIB):
            assert opened.read(device, offset, MIB) == CONTENT[offset : offset + MIB]
            assert opened.directory.space.used_bytes <= LIMIT
            # The file system's own blocks come on top: where the file's are.
            assert taken(tmp_path) <= opened.directory.space.used_bytes + 64 * 1024
    assert opened.directory.space.used_bytes > LIMIT // 2
    opened.release(device)
    assert taken(tmp_path) <= LIMIT


def test_the_oldest_leaf_goes_first(tmp_path: Path, below: CountingDevice) -> None:
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(below, 1)
    for offset in range(0, SIZE, MIB):
        opened.read(device, offset, MIB)
    found = [number in device.blocks.map.numbers() for number in range(24)]
    assert not found[0]
    assert found[23]
    assert found == sorted(found)
    opened.release(device)


def test_what_is_read_again_stays(tmp_path: Path, below: CountingDevice) -> None:
    """By a client that the lane serves: it is asked for once its leaf has been hidden."""
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(below, 1)
    for offset in range(0, SIZE, MIB):
        opened.read(device, offset, MIB)
        if not is_hit(device, 0):  # the lane asks
            opened.read(device, 0)
    below.reads.clear()
    opened.read(device, 0)
    assert below.reads == []
    opened.release(device)


def test_a_leaf_that_was_evicted_is_no_hit_and_takes_nothing(
    tmp_path: Path, below: CountingDevice
) -> None:
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(below, 1)
    opened.read(device, 0, 2 * MIB)
    run_inline(device.blocks.evict([0]))
    assert not is_hit(device, 0)
    assert is_hit(device, 256)
    assert opened.directory.space.used_bytes == MIB
    assert os.stat(tmp_path / "v-one.blocks").st_blocks * 512 <= MIB + 64 * 1024
    assert opened.read(device, 0) == CONTENT[:BLOCK_SIZE]
    opened.release(device)


def test_what_is_closed_goes_before_what_is_open(tmp_path: Path, below: CountingDevice) -> None:
    opened = Opened(tmp_path, LIMIT)
    for name in ("first", "second"):
        device = opened.volume(below, 1, name)
        opened.read(device, 0, 3 * MIB)
        opened.close(device)
    device = opened.volume(below, 1)
    for offset in range(0, 11 * MIB, MIB):
        opened.read(device, offset, MIB)
    kept = {one.stem for one in tmp_path.glob("*.map")}
    assert kept == {"v-second"}
    assert 0 in device.blocks.map.numbers()
    opened.release(device)


def test_what_is_kept_counts_at_the_next_start(tmp_path: Path, below: CountingDevice) -> None:
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(below, 1)
    opened.read(device, 0, 3 * MIB)
    opened.release(device)
    opened = Opened(tmp_path, LIMIT)
    assert 3 * MIB <= opened.directory.space.used_bytes <= 3 * MIB + 64 * 1024
    device = opened.volume(below, 9)  # others had it
    assert opened.directory.space.used_bytes == 0
    opened.release(device)


def test_zeros_take_no_space(tmp_path: Path) -> None:
    opened = Opened(tmp_path, LIMIT)
    device = opened.volume(CountingDevice(SIZE), 1)
    assert opened.read(device, 0, MIB) == bytes(MIB)
    assert is_hit(device, 7)
    assert opened.directory.space.used_bytes == 0
    opened.release(device)


class _Leaves:
    """Notes which of its leaves were made cool."""

    def __init__(self) -> None:
        self.cooled: list[int] = []

    def cool(self, number: int) -> None:
        self.cooled.append(number)

    def evict(self, numbers: list[int]) -> Steps[None]:
        raise AssertionError


def test_a_cool_leaf_that_is_used_is_the_newest_again() -> None:
    space, leaves = Space(64 * MIB), _Leaves()
    for number in range(8):
        space.use(leaves, number)
    space._cool_some(2)
    assert leaves.cooled == [0, 1]
    space.use(leaves, 0)
    assert [number for _, number in space.oldest(3)] == [1, 2, 3]
    assert [number for _, number in space.oldest(9)] == [4, 5, 6, 7, 0]


def test_leaves_cool_before_the_space_is_full() -> None:
    space, leaves = Space(64 * MIB), _Leaves()
    for number in range(64):
        space.count(MIB)
        space.use(leaves, number)
        if number < 47:
            assert leaves.cooled == []
    assert len(leaves.cooled) > 10
