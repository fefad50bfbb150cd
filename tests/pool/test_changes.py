"""Where two snapshots of any kind of pool differ."""

from __future__ import annotations

from random import Random

import pytest

from bockd.errors import NotFoundError
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from tests.pool.opendriver import OpenDriver

SIZE = 20 * MIB
BLOCKS = SIZE // BLOCK_SIZE


def content(driver: OpenDriver, snapshot: SnapshotId) -> bytes:
    device = driver.run(driver.pool.use(NodeKind.SNAPSHOT, snapshot))
    found = bytearray(device.size_bytes)
    for offset in range(0, len(found), MIB):
        driver.run(device.read(offset, memoryview(found)[offset : offset + MIB]))
    driver.pool.leave(NodeKind.SNAPSHOT, snapshot)
    return bytes(found)


def trim(driver: OpenDriver, volume: VolumeId, offset: int, length: int) -> None:
    device = driver.run(driver.pool.use(NodeKind.VOLUME, volume))
    driver.run(device.trim(offset, length))
    driver.pool.leave(NodeKind.VOLUME, volume)


def check(driver: OpenDriver, older: SnapshotId, newer: SnapshotId) -> int:
    """Outside of what may differ, nothing does, however it is asked for. Return the bytes that
    may."""
    whole = driver.run(driver.pool.changes(older, newer))
    before, after = content(driver, older), content(driver, newer)
    assert whole.end_bytes == len(after)
    patched = bytearray(before.ljust(len(after), b"\0"))
    end = -1
    for offset, length in whole.ranges:
        assert offset > end
        assert length > 0
        end = offset + length
        patched[offset:end] = after[offset:end]
    assert patched == after
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(after):
        part = driver.run(driver.pool.changes(older, newer, at, 1))
        assert at < part.end_bytes
        found += part.ranges
        at = part.end_bytes
    assert tuple(found) == whole.ranges
    return sum(length for _, length in whole.ranges)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_differs_elsewhere(driver: OpenDriver, seed: int) -> None:
    chosen = Random(seed)
    volume = driver.volume("one", SIZE).id
    taken = [driver.run(driver.pool.create_snapshot(volume, "s0")).id]
    touched: list[set[int]] = []
    unit = driver.unit_blocks
    for number in range(1, 5):
        blocks = {chosen.randrange(BLOCKS) for _ in range(number * 2)}
        for block in blocks:
            driver.write(volume, block, chosen.randbytes(8))
        if number > 1:
            at = chosen.randrange(BLOCKS // unit) * unit
            trim(driver, volume, at * BLOCK_SIZE, unit * BLOCK_SIZE)
            blocks.add(at)
        touched.append({block // unit for block in blocks})
        taken.append(driver.run(driver.pool.create_snapshot(volume, f"s{number}")).id)
    for first in range(len(taken)):
        assert check(driver, taken[first], taken[first]) == 0
        for second in range(first + 1, len(taken)):
            units = set().union(*touched[first:second])
            told = check(driver, taken[first], taken[second])
            assert told <= len(units) * unit * BLOCK_SIZE
    # Without those in between, whose layers may be merged.
    for gone in taken[1:-1]:
        driver.run(driver.pool.delete_snapshot(gone))
    check(driver, taken[0], taken[-1])


def test_across_growth_and_a_revert(driver: OpenDriver) -> None:
    volume = driver.volume("one", SIZE).id
    driver.write(volume, 1, b"first")
    first = driver.run(driver.pool.create_snapshot(volume, "first")).id
    driver.run(driver.pool.extend_volume(volume, SIZE + 8 * MIB))
    driver.write(volume, BLOCKS + 1, b"beyond")
    grown = driver.run(driver.pool.create_snapshot(volume, "grown")).id
    assert 0 < check(driver, first, grown) <= driver.unit_blocks * BLOCK_SIZE
    driver.write(volume, 2, b"lost")
    driver.run(driver.pool.close_idle(NodeKind.VOLUME, volume))
    driver.run(driver.pool.revert_volume(volume, first))
    driver.write(volume, 3, b"again")
    back = driver.run(driver.pool.create_snapshot(volume, "back")).id
    check(driver, first, back)
    check(driver, grown, back)


def test_of_what_does_not_exist(driver: OpenDriver) -> None:
    snapshot = driver.run(driver.pool.create_snapshot(driver.volume("one").id, "s")).id
    for pair in ((snapshot, SnapshotId(99)), (SnapshotId(99), snapshot)):
        with pytest.raises(NotFoundError):
            driver.run(driver.pool.changes(*pair))
