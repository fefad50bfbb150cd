"""The leaf codec: what goes in comes out, in little space, and nothing else is taken for a leaf."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.local.format.leaf import (
    LEAF_BLOCKS,
    MAX_LAYER_ID,
    Leaf,
    Numbering,
    runs_of,
)
from bockd.errors import DamagedError
from bockd.model import LayerId

layers = st.integers(0, MAX_LAYER_ID)


@st.composite
def leaves(draw: st.DrawFn) -> list[int]:
    """From one layer for all blocks to a different one for each."""
    palette = draw(st.lists(layers, min_size=1, max_size=LEAF_BLOCKS, unique=True))
    run = draw(st.integers(1, LEAF_BLOCKS))
    choices = draw(st.lists(st.sampled_from(palette), min_size=1, max_size=LEAF_BLOCKS))
    return [choices[(i // run) % len(choices)] for i in range(LEAF_BLOCKS)]


@given(leaves())
def test_decoding_gives_back_what_was_encoded_within_the_bound(entries: list[int]) -> None:
    payload = Leaf.of(entries).encode()
    assert len(payload) <= 1281
    assert Leaf.decode(payload).layers() == entries


def test_the_worst_leaf_is_as_long_as_documented() -> None:
    payload = Leaf.of(range(LEAF_BLOCKS)).encode()
    assert len(payload) == 1281
    assert Leaf.decode(payload).layers() == list(range(LEAF_BLOCKS))


def test_a_uniform_leaf_is_one_value() -> None:
    assert len(Leaf.uniform(LayerId(7)).encode()) == 5


@given(leaves())
def test_runs_cover_the_leaf_and_neighbours_differ(entries: list[int]) -> None:
    runs = Leaf.decode(Leaf.of(entries).encode()).runs()
    assert runs == runs_of(entries, 0, LEAF_BLOCKS)
    assert runs[0][0] == 0
    assert runs[-1][1] == LEAF_BLOCKS
    for (_, end, layer), (first, _, following) in itertools.pairwise(runs):
        assert end == first
        assert layer != following


@given(st.binary(max_size=1500))
def test_arbitrary_bytes_are_a_leaf_or_refused(payload: bytes) -> None:
    try:
        runs = Leaf.decode(payload).runs()
    except DamagedError:
        return
    assert runs[0][0] == 0
    assert runs[-1][1] == LEAF_BLOCKS


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_truncated_leaf_is_refused(cut: int) -> None:
    for leaf in (Leaf.uniform(LayerId(9)), Leaf.of(range(LEAF_BLOCKS))):
        with pytest.raises(DamagedError):
            Leaf.decode(leaf.encode()[:-cut])


spans = st.tuples(st.integers(0, LEAF_BLOCKS - 1), st.integers(1, LEAF_BLOCKS), st.integers(0, 300))


@given(leaves(), st.lists(spans, max_size=40))
def test_assigning_is_as_in_a_list(entries: list[int], changes: list[tuple[int, int, int]]) -> None:
    leaf = Leaf.of(entries)
    for first, count, layer in changes:
        end = min(first + count, LEAF_BLOCKS)
        leaf.assign(first, end, LayerId(layer))
        entries[first:end] = [layer] * (end - first)
        assert leaf.layers() == entries
        assert Leaf.decode(leaf.encode()).layers() == entries
        assert leaf.is_hole() == (not any(entries))


def test_a_full_palette_makes_room() -> None:
    entries = list(range(LEAF_BLOCKS))
    leaf = Leaf.of(entries)
    for block in range(LEAF_BLOCKS):
        leaf.assign(block, block + 1, LayerId(1000 + block))
    assert leaf.layers() == list(range(1000, 1000 + LEAF_BLOCKS))


@given(leaves(), st.data())
def test_numbering_gives_each_block_the_number_of_its_layer(
    entries: list[int], data: st.DataObject
) -> None:
    leaf = Leaf.of(entries)
    number = st.integers(0, data.draw(st.sampled_from([0xFF, 0xFFFF])))
    size = len(leaf.palette)
    numbers = data.draw(st.lists(number, min_size=size, max_size=size))
    of = dict(zip(leaf.palette, numbers, strict=True))
    assert leaf.numbered(Numbering.of(numbers)).tolist() == [of[layer] for layer in entries]
