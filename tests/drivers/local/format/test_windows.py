"""Windows: a file's bytes in the address space, as many as there may be, for as long as needed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.windows import MAX_WINDOWS, WINDOW_BYTES, Window, Windows
from bockd.model import MIB, LayerId

LAYER = LayerId(3)


def mappings(path: Path) -> int:
    """How often a file is mapped in this process."""
    return Path("/proc/self/maps").read_text().count(os.fspath(path))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "file"
    with path.open("w+b") as opened:
        opened.truncate((MAX_WINDOWS + 3) * WINDOW_BYTES + 5 * MIB)
        yield path, opened.fileno()


def content(window: Window, offset: int, length: int) -> bytes:
    return ctypes.string_at(window.address + offset - window.start, length)


def test_a_window_shows_what_is_written(file: tuple[Path, int]) -> None:
    _, fd = file
    windows, offset = Windows(), WINDOW_BYTES + 12_345
    window = windows.find(fd, offset)
    assert window is not None
    assert (window.start, window.length) == (WINDOW_BYTES, WINDOW_BYTES)
    assert content(window, offset, 4) == bytes(4)
    os.pwrite(fd, b"here", offset)
    assert content(window, offset, 4) == b"here"
    assert windows.find(fd, 2 * WINDOW_BYTES - 1) is window
    assert windows.find(fd, 2 * WINDOW_BYTES) is not window


def test_the_last_window_ends_with_the_file(file: tuple[Path, int]) -> None:
    _, fd = file
    window = Windows().find(fd, (MAX_WINDOWS + 3) * WINDOW_BYTES)
    assert window is not None
    assert window.length == 5 * MIB
    assert Windows().find(fd, (MAX_WINDOWS + 4) * WINDOW_BYTES) is None


def test_a_window_is_made_anew_for_what_the_file_has_gained(file: tuple[Path, int]) -> None:
    path, fd = file
    windows, start = Windows(), (MAX_WINDOWS + 3) * WINDOW_BYTES
    first, others = windows.find(fd, start), [windows.find(fd, 0), windows.find(fd, WINDOW_BYTES)]
    assert windows.find(fd, start + 5 * MIB) is None
    assert windows.find(fd, start) is first, "the file has not grown"
    os.truncate(path, start + 6 * MIB)
    assert windows.find(fd, start) is first, "it contains this byte"
    del first
    longer = windows.find(fd, start + 5 * MIB)
    assert longer is not None
    assert (longer.start, longer.length) == (start, 6 * MIB)
    assert windows.find(fd, start) is longer
    assert [windows.find(fd, 0), windows.find(fd, WINDOW_BYTES)] == others
    assert mappings(path) == 3, "the shorter one is kept"


def test_the_windows_unused_for_longest_are_unmapped(file: tuple[Path, int]) -> None:
    path, fd = file
    windows = Windows()
    first = windows.find(fd, 0)
    for number in range(1, MAX_WINDOWS):
        windows.find(fd, number * WINDOW_BYTES)
    assert mappings(path) == MAX_WINDOWS
    assert windows.find(fd, 1) is first
    windows.find(fd, MAX_WINDOWS * WINDOW_BYTES)
    assert mappings(path) == MAX_WINDOWS
    assert windows.find(fd, 1) is first, "the one used last went"


def test_a_window_in_use_outlives_the_file(file: tuple[Path, int]) -> None:
    path, fd = file
    os.pwrite(fd, b"here", 0)
    windows = Windows()
    window = windows.find(fd, 0)
    assert window is not None
    windows.forget()
    path.unlink()
    assert content(window, 0, 4) == b"here"
    del window
    assert mappings(path) == 0


def test_where_nothing_can_be_mapped_there_is_none() -> None:
    read, write = os.pipe()
    try:
        assert Windows().find(read, 0) is None
        with pytest.raises(OSError, match="No such device"):
            Window(read, 0, 4096)
    finally:
        os.close(read)
        os.close(write)


def test_a_layer_that_grows_has_larger_windows(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    os.makedirs(layout.layers)
    create_layer(layout, LAYER, 4 * MIB)
    layer = Layer.open(layout, LAYER, 4 * MIB, writable=True)
    window = layer.window(MIB)
    assert window is not None
    assert window.length == 4 * MIB
    assert layer.window(5 * MIB) is None
    layer.grow(layout, 6 * MIB)
    window = layer.window(5 * MIB)
    assert window is not None
    assert window.length == 6 * MIB
    del window
    path = layout.layer_segment(LAYER, 0)
    assert mappings(path) == 1
    layer.evict(0)
    assert mappings(path) == 0, "what is mapped cannot be evicted"
    layer.window(0)
    layer.close()
    assert mappings(path) == 0
