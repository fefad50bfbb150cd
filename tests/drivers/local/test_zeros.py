"""Blocks of zeros are found wherever a write begins and ends."""

from __future__ import annotations

import random

import pytest

from bockd.drivers.local.volume.zeros import zero_blocks, zero_pieces
from bockd.model import BLOCK_SIZE

SEEDS = range(40)


def by_definition(offset: int, data: bytes) -> list[int]:
    """The blocks whose bytes in the write are all zeros, one byte after another."""
    dirty = {(offset + at) // BLOCK_SIZE for at, byte in enumerate(data) if byte}
    touched = range(offset // BLOCK_SIZE, (offset + len(data) - 1) // BLOCK_SIZE + 1)
    return [block for block in touched if block not in dirty]


@pytest.mark.parametrize("seed", SEEDS)
def test_zero_blocks_are_those_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    offset = rng.randrange(3 * BLOCK_SIZE)
    data = bytearray(rng.randrange(1, 9 * BLOCK_SIZE))
    for _ in range(rng.randrange(12)):
        # Also blocks that begin with a zero and are not zeros.
        data[rng.randrange(len(data))] = rng.randrange(1, 256)
    assert zero_pieces(offset, memoryview(data)) == by_definition(offset, bytes(data))


def test_a_partial_block_is_zeros_only_if_its_rest_is() -> None:
    data = memoryview(bytes(2 * BLOCK_SIZE))
    clean, dirty = memoryview(bytes(512)), memoryview(b"\1" * 512)
    offset = BLOCK_SIZE + 512
    assert zero_blocks(offset, data, clean, clean) == [1, 2, 3]
    assert zero_blocks(offset, data, dirty, clean) == [2, 3]
    assert zero_blocks(offset, data, clean, dirty) == [1, 2]
