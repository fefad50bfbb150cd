"""What the engine does for one block of 4 KiB, in a pool on the disk; all data is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cli import DEFAULT_DIRECTORY
from bench.snapshotcost import OpenPool, open_pool
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, MIB, VolumeId

SIZE_BYTES = 64 * MIB
BLOCKS = SIZE_BYTES // BLOCK_SIZE
DATA = memoryview(bytes(range(256)) * (BLOCK_SIZE // 256))


@pytest.fixture
def pool() -> Iterator[OpenPool]:
    with TemporaryDirectory(dir=DEFAULT_DIRECTORY) as directory, open_pool(Path(directory)) as pool:
        yield pool


@pytest.fixture
def volume(pool: OpenPool) -> Volume:
    """Create a volume that is written in full by single blocks, with its map in memory."""
    volume = pool.volume("v", SIZE_BYTES)
    for block in range(BLOCKS):
        pool.write(volume, block * BLOCK_SIZE, DATA)
    return volume


class Blocks:
    """Offsets of blocks in a scattered order, for ever."""

    def __init__(self) -> None:
        self._at = 0

    def next(self) -> int:
        self._at = (self._at + 7919) % BLOCKS  # a prime, so that all come in turn
        return self._at * BLOCK_SIZE


def test_try_read(benchmark: BenchmarkFixture, volume: Volume) -> None:
    blocks, into = Blocks(), memoryview(bytearray(BLOCK_SIZE))

    assert benchmark(lambda: volume.try_read(blocks.next(), into))
    assert into == DATA


def test_try_write_in_place(benchmark: BenchmarkFixture, volume: Volume) -> None:
    blocks = Blocks()

    assert benchmark(lambda: volume.try_write(blocks.next(), DATA))


def test_redirects_and_their_commit(
    benchmark: BenchmarkFixture, pool: OpenPool, volume: Volume
) -> None:
    """Time a batch of 32 first writes after a snapshot, and the journal's append for them."""
    owner = VolumeId(volume.durability.record.id)
    blocks, numbers = Blocks(), iter(range(1 << 20))

    def snapshot() -> None:
        pool.run(pool.pool.create_snapshot(owner, f"s{next(numbers)}"))
        for block in range(BLOCKS):  # brings the leaves back into memory
            volume.try_read(block * BLOCK_SIZE, memoryview(bytearray(BLOCK_SIZE)))

    def batch() -> None:
        for _ in range(32):
            assert volume.try_write(blocks.next(), DATA)
        volume.commit()

    benchmark.pedantic(batch, setup=snapshot, rounds=20)  # type: ignore[no-untyped-call]
