"""Files of layers: what is there already when one is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.layer import Layer, verify_layer
from bockd.drivers.local.format.layerfiles import create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.errors import DamagedError
from bockd.model import MIB, LayerId

LAYER = LayerId(5)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    os.makedirs(layout.layers)
    return layout


def test_files_left_by_a_creation_that_never_was_are_taken_over(layout: Layout) -> None:
    create_layer(layout, LAYER, MIB)
    create_layer(layout, LAYER, 3 * MIB)
    verify_layer(layout, LAYER, 3 * MIB)


def test_data_that_the_index_does_not_know_is_never_overwritten(layout: Layout) -> None:
    create_layer(layout, LAYER, MIB)
    layer = Layer.open(layout, LAYER, MIB, writable=True)
    layer.write(0, memoryview(b"precious"))
    layer.close()
    with pytest.raises(DamagedError, match="older"):
        create_layer(layout, LAYER, MIB)


def test_zeros_that_a_copy_has_put_into_such_a_file_are_no_data(layout: Layout) -> None:
    """A tool that knows no holes writes them."""
    create_layer(layout, LAYER, 3 * MIB)
    path = layout.layer_segment(LAYER, 0)
    path.write_bytes(bytes(3 * MIB))
    create_layer(layout, LAYER, MIB)
    assert path.stat().st_size == MIB
    assert path.stat().st_blocks == 0
    path.write_bytes(bytes(MIB - 1) + b"p")
    with pytest.raises(DamagedError, match="older"):
        create_layer(layout, LAYER, MIB)
    assert path.read_bytes()[-1:] == b"p"
