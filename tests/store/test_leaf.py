"""The leaf codec: what goes in comes out, in little space, and nothing else is taken for a leaf."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.errors import DamagedError
from bockd.model import LayerId
from bockd.store.leaf import (
    LEAF_BLOCKS,
    MAX_LAYER_ID,
    decode_leaf,
    encode_leaf,
    leaf_runs,
    runs_of,
    uniform,
)

layers = st.integers(0, MAX_LAYER_ID)


@st.composite
def leaves(draw: st.DrawFn) -> array[int]:
    """From one layer for all blocks to a different one for each."""
    palette = draw(st.lists(layers, min_size=1, max_size=LEAF_BLOCKS, unique=True))
    run = draw(st.integers(1, LEAF_BLOCKS))
    choices = draw(st.lists(st.sampled_from(palette), min_size=1, max_size=LEAF_BLOCKS))
    return array("I", [choices[(i // run) % len(choices)] for i in range(LEAF_BLOCKS)])


@given(leaves())
def test_decoding_gives_back_what_was_encoded_within_the_bound(entries: array[int]) -> None:
    payload = encode_leaf(entries)
    assert len(payload) <= 1281
    assert decode_leaf(payload) == entries


def test_the_worst_leaf_is_as_long_as_documented() -> None:
    payload = encode_leaf(array("I", range(LEAF_BLOCKS)))
    assert len(payload) == 1281
    assert decode_leaf(payload) == array("I", range(LEAF_BLOCKS))


def test_a_uniform_leaf_is_one_value() -> None:
    assert len(encode_leaf(uniform(LayerId(7)))) == 5


@given(leaves())
def test_runs_cover_the_leaf_and_neighbours_differ(entries: array[int]) -> None:
    runs = leaf_runs(encode_leaf(entries))
    assert runs == runs_of(entries, 0, LEAF_BLOCKS)
    assert runs[0][0] == 0
    assert runs[-1][1] == LEAF_BLOCKS
    for (_, end, layer), (first, _, following) in itertools.pairwise(runs):
        assert end == first
        assert layer != following


@given(st.binary(max_size=1500))
def test_arbitrary_bytes_are_a_leaf_or_refused(payload: bytes) -> None:
    try:
        runs = leaf_runs(payload)
    except DamagedError:
        return
    assert runs[0][0] == 0
    assert runs[-1][1] == LEAF_BLOCKS


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_truncated_leaf_is_refused(cut: int) -> None:
    for entries in (uniform(LayerId(9)), array("I", range(LEAF_BLOCKS))):
        with pytest.raises(DamagedError):
            leaf_runs(encode_leaf(entries)[:-cut])
