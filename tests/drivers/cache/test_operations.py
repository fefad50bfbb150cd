"""Which operations are stale, and the map, each against something simple."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.drivers.cache.blockmap import FILE_SLOT, HOLE_SLOT, LEAF_BLOCKS, MISS_SLOT, BlockMap
from bockd.drivers.cache.operations import Operation, Operations
from bockd.model import BLOCK_SIZE
from tests.drivers.cache.opened import allocated_blocks

WIDE = 100 * LEAF_BLOCKS
"""Blocks of an operation that is not entered in each leaf."""

RANGES = st.tuples(
    st.sampled_from([0, 1, LEAF_BLOCKS - 1, LEAF_BLOCKS, 3 * LEAF_BLOCKS, WIDE]),
    st.sampled_from([1, 2, LEAF_BLOCKS, 5 * LEAF_BLOCKS, WIDE]),
).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "change", "end", "answer", "covering"]),
            RANGES,
            st.integers(0, 50),
        ),
        max_size=25,
    )
)
def test_operations_are_stale_exactly_when_a_change_meets_them(
    steps: list[tuple[str, tuple[int, int], int]],
) -> None:
    operations = Operations()
    open_ones: list[Operation] = []
    stale: set[Operation] = set()
    for kind, (first, end), number in steps:
        meets = [one for one in open_ones if one.first < end and first < one.end]
        one = open_ones[number % len(open_ones)] if open_ones else None
        if kind == "read":
            made = operations.read(first, end)
            if any(other.changing for other in meets):
                stale.add(made)
            open_ones.append(made)
        elif kind == "change":
            if any(other.changing for other in meets):
                stale.add(made := operations.change(first, end))
            else:
                made = operations.change(first, end)
            stale.update(meets)
            open_ones.append(made)
        elif kind == "end" and one is not None:
            operations.close(one)
            operations.close(one)
            open_ones.remove(one)
        elif kind == "answer" and one is not None and not one.answered.fired:
            data = bytes((one.end - one.first) * BLOCK_SIZE) if number % 2 else None
            operations.answer(one, data if one.end < WIDE else None, one.first)
        elif kind == "covering":
            found = operations.covering(first, end)
            fresh = [
                other
                for other in open_ones
                if not (other in stale or other.changing)
                and other.first <= first
                and end <= other.end
            ]
            assert (found is None) == (not fresh)
            assert found is None or found in fresh
        for other in open_ones:
            assert other.stale == (other in stale)
        assert len(operations) == len(open_ones)
    for other in open_ones:
        operations.close(other)
    assert not operations._by_leaf
    assert not operations._wide


def test_a_change_is_under_way_until_it_is_answered() -> None:
    operations = Operations()
    change = operations.change(0, 4)
    assert operations.covering(0, 1) is None
    assert operations.read(2, 3).stale
    operations.answer(change, bytes(2 * BLOCK_SIZE), 1)
    assert operations.covering(1, 3) is change
    assert operations.covering(0, 1) is None, "it has nothing of a block that was written in part"
    assert operations.covering(3, 4) is None
    assert not operations.read(3, 4).stale
    assert not operations.change(3, 5).stale
    assert change.stale


PARTS = st.tuples(st.integers(0, 4 * LEAF_BLOCKS), st.integers(1, 3 * LEAF_BLOCKS))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "clear", "drop", "cool", "warm", "keep"]), PARTS),
        max_size=20,
    )
)
def test_the_map_says_what_a_dictionary_would(steps: list[tuple[str, tuple[int, int]]]) -> None:
    blockmap = BlockMap()
    slots: dict[int, int] = {}
    taken: set[int] = set()
    for kind, (first, count) in steps:
        leaf = first // LEAF_BLOCKS
        of_leaf = range(leaf * LEAF_BLOCKS, (leaf + 1) * LEAF_BLOCKS)
        if kind == "add":
            zeros = bytes(block % 3 == 0 for block in range(first, first + count))
            written = {first + at for at, zero in enumerate(zeros) if not zero}
            blocks = range(first, first + count)
            assert blockmap.unallocated(first, first + count) == count - len(taken & {*blocks})
            assert blockmap.note_written(first, zeros) == len(written - taken)
            taken |= written
            numbers = list(blockmap.add(first, zeros))
            assert all(number in blockmap.leaves for number in numbers)
            assert numbers == sorted({block // LEAF_BLOCKS for block in blocks})
            slots |= {block: FILE_SLOT if block in written else HOLE_SLOT for block in blocks}
        elif kind == "clear":
            blockmap.clear(first, first + count)
            for block in range(first, first + count):
                slots.pop(block, None)
        elif kind == "drop":
            blockmap.drop(leaf)
            assert blockmap.punched(leaf) == len(taken & {*of_leaf})
            taken -= {*of_leaf}
            for block in of_leaf:
                slots.pop(block, None)
        elif kind == "cool":
            blockmap.cool(leaf)
            assert leaf not in blockmap.leaves
        elif kind == "warm":
            blockmap.warm(leaf)
            assert not blockmap.is_cool(leaf)
        else:
            kept = list(blockmap.kept_leaves())
            blockmap = BlockMap()
            for one in kept:
                blockmap.load(*one)
        assert allocated_blocks(blockmap) == len(taken)
        for block in (0, first, first + count - 1, first + count, *slots):
            found = blockmap.find(block // LEAF_BLOCKS)
            slot = MISS_SLOT if found is None else found[block % LEAF_BLOCKS]
            assert slot == slots.get(block, MISS_SLOT)
        runs = blockmap.runs(first, first + count)
        cached = all(block in slots for block in range(first, first + count))
        assert (runs is not None) == cached
        if runs is not None:
            flat = [slot for start, end, slot in runs for _ in range(start, end)]
            assert flat == [slots[block] for block in range(first, first + count)]
            assert all(one[2] != other[2] for one, other in pairwise(runs))


@pytest.mark.parametrize("number", [0, 3])
def test_a_trim_of_everything_looks_at_the_leaves_there_are(number: int) -> None:
    blockmap = BlockMap()
    list(blockmap.add(number * LEAF_BLOCKS, bytes(4)))
    blockmap.cool(number)
    blockmap.clear(number * LEAF_BLOCKS + 1, 1 << 32)
    assert blockmap.runs(number * LEAF_BLOCKS, number * LEAF_BLOCKS + 1) is not None
    assert blockmap.runs(number * LEAF_BLOCKS + 1, number * LEAF_BLOCKS + 2) is None
