"""Frozen layers beyond what may be open: read all the same, and closed in the right order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.frozenlayer import FrozenLayer, OpenFiles
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId

SIZE = 16 * BLOCK_SIZE
COUNT = 6
LIMIT = 4


def content(number: int) -> bytes:
    return bytes([64 + number]) * BLOCK_SIZE


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of COUNT layers, whose first blocks differ."""
    layout = Layout(tmp_path)
    layout.layers.mkdir()
    for number in range(1, COUNT + 1):
        create_layer(layout, LayerId(number), SIZE)
        written = Layer.open(layout, LayerId(number), SIZE, writable=True)
        written.write(0, memoryview(content(number)))
        written.close()
    return layout


def layers(layout: Layout, files: OpenFiles) -> list[FrozenLayer]:
    return [FrozenLayer(layout, LayerId(n), SIZE, files) for n in range(1, COUNT + 1)]


def read(layer: Layer) -> bytes:
    """As a reader in a thread does it."""
    buffer = bytearray(BLOCK_SIZE)
    layer.readers += 1
    layer.read(0, memoryview(buffer))
    layer.readers -= 1
    return bytes(buffer)


def opened(among: list[FrozenLayer]) -> list[int]:
    return [layer.id for layer in among if layer.is_open]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_all_are_read_and_no_more_are_open_than_may_be(layout: Layout) -> None:
    before = descriptors()
    files = OpenFiles(LIMIT)
    among = layers(layout, files)
    for _ in range(3):
        for layer in among:
            assert read(layer) == content(layer.id)
            assert files.count == len(opened(among)) <= LIMIT
            assert descriptors() == before + files.count
            files.make_room()
    for layer in among:
        layer.close()
    assert files.count == 0
    assert descriptors() == before


def test_the_layer_unused_for_longest_is_closed(layout: Layout) -> None:
    files = OpenFiles(LIMIT)
    among = layers(layout, files)
    for layer in among[:LIMIT]:
        layer.prepare()
    assert opened(among) == [1, 2, 3, 4]
    buffer = memoryview(bytearray(BLOCK_SIZE))
    assert among[0].try_read(0, buffer)
    assert bytes(buffer) == content(1)
    assert not among[4].try_read(0, buffer)
    assert read(among[4]) == content(5)
    files.make_room()
    assert opened(among) == [1, 3, 4]
    assert read(among[4]) == content(5)
    assert opened(among) == [1, 3, 4, 5]


def test_one_that_is_being_read_stays_open(layout: Layout) -> None:
    files = OpenFiles(1)
    among = layers(layout, files)
    among[0].prepare()
    among[0].readers += 1
    assert read(among[1]) == content(2)
    files.make_room()
    assert opened(among) == [1]
    among[0].readers -= 1
    assert read(among[1]) == content(2)
    files.make_room()
    assert opened(among) == []


def test_nothing_is_closed_where_another_process_may_remove_the_file(layout: Layout) -> None:
    files = OpenFiles(None)
    among = layers(layout, files)
    for layer in among:
        layer.prepare()
        os.unlink(layout.layer_segment(layer.id, 0))
    files.make_room()
    assert [read(layer) for layer in among] == [content(layer.id) for layer in among]


@pytest.mark.parametrize("room", [True, False], ids=["room", "no room"])
def test_a_missing_or_short_file_is_noticed(layout: Layout, room: bool) -> None:
    files = OpenFiles(LIMIT if room else 1)
    among = layers(layout, files)
    among[0].prepare()
    os.unlink(layout.layer_segment(LayerId(2), 0))
    os.truncate(layout.layer_segment(LayerId(3), 0), BLOCK_SIZE)
    for layer, said in ((among[1], "is missing"), (among[2], "is truncated")):
        with pytest.raises(DamagedError, match=said):
            layer.prepare()
        with pytest.raises(DamagedError, match=said):
            read(layer)
