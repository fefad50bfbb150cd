"""Layers: sparse files of any size, across segments, checked when they are opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format import layer as layer_module
from bockd.drivers.local.format.layer import SEGMENT_BYTES, Layer, segment_sizes, verify_layer
from bockd.drivers.local.format.layerfiles import create_layer, unlink_layer
from bockd.drivers.local.format.layout import Layout
from bockd.errors import DamagedError
from bockd.model import MIB, TIB, LayerId

LAYER = LayerId(5)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    os.makedirs(layout.layers)
    return layout


def test_sixteen_tebibytes_cost_nothing_and_work_across_the_segments(layout: Layout) -> None:
    create_layer(layout, LAYER, 16 * TIB)
    files = sorted(os.listdir(layout.layers))
    assert files == ["5.0", "5.1"]
    assert sum((layout.layers / name).stat().st_blocks for name in files) * 512 < MIB
    layer = Layer.open(layout, LAYER, 16 * TIB, writable=True)
    data = os.urandom(300_000)
    start = SEGMENT_BYTES - 100_000
    layer.write(start, memoryview(data))
    layer.write(16 * TIB - 4096, memoryview(data[:4096]))
    found = bytearray(len(data))
    layer.read(start, memoryview(found))
    assert found == data
    again = bytearray(len(data))
    assert layer.try_read(start, memoryview(again))
    assert again == data
    ranges = list(layer.data_ranges(0, 16 * TIB))
    assert ranges[0][0] <= start < ranges[0][1]
    assert ranges[-1] == (16 * TIB - 4096, 16 * TIB)
    layer.punch(0, 16 * TIB)
    assert layer.is_empty()
    layer.close()
    unlink_layer(layout, LAYER)
    assert os.listdir(layout.layers) == []


def test_segments_add_up() -> None:
    assert segment_sizes(0) == [0]
    assert segment_sizes(MIB) == [MIB]
    assert segment_sizes(SEGMENT_BYTES) == [SEGMENT_BYTES]
    assert segment_sizes(SEGMENT_BYTES + MIB) == [SEGMENT_BYTES, MIB]


def test_growing_keeps_the_data_and_adds_segments(layout: Layout) -> None:
    create_layer(layout, LAYER, MIB)
    layer = Layer.open(layout, LAYER, MIB, writable=True)
    layer.write(0, memoryview(b"x" * 4096))
    layer.grow(layout, 9 * TIB)
    found = bytearray(4096)
    layer.read(0, memoryview(found))
    assert found == b"x" * 4096
    layer.write(9 * TIB - 1, memoryview(b"y"))
    layer.close()
    verify_layer(layout, LAYER, 9 * TIB)


def test_a_missing_or_short_file_is_refused_by_name(layout: Layout) -> None:
    create_layer(layout, LAYER, 2 * MIB)
    path = layout.layer_segment(LAYER, 0)
    os.truncate(path, MIB)
    with pytest.raises(DamagedError, match=r"5\.0 is truncated"):
        Layer.open(layout, LAYER, 2 * MIB, writable=False)
    os.unlink(path)
    with pytest.raises(DamagedError, match=r"5\.0 is missing"):
        Layer.open(layout, LAYER, 2 * MIB, writable=False)
    with pytest.raises(DamagedError, match=r"5\.0 is missing"):
        verify_layer(layout, LAYER, 2 * MIB)


def test_what_a_file_has_beyond_its_segment_is_not_in_the_layer(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old code could write there. `check` walks all of the layer, and says so."""
    monkeypatch.setattr(layer_module, "SEGMENT_BYTES", MIB)
    descriptors = []
    for number, size in enumerate((MIB + 8192, MIB)):
        fd = os.open(layout.layers / f"overlong.{number}", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, size)
        descriptors.append(fd)
    os.pwrite(descriptors[0], b"lost", MIB)
    os.pwrite(descriptors[1], b"data", 8192)
    layer = Layer(LayerId(1), descriptors, nowait=False)
    assert list(layer.data_ranges(0, layer.length_bytes())) == [(MIB + 8192, MIB + 12288)]
    layer.close()
