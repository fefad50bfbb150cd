"""How the files of layers are made and removed. What a layer does with them is in format.layer."""

from __future__ import annotations

import os
from typing import NoReturn

from bockd.drivers.local.format.layer import SEGMENT_BYTES, Layer, close_all, segment_sizes
from bockd.drivers.local.format.layout import Layout
from bockd.durable import sync_directory
from bockd.errors import DamagedError
from bockd.failpoints import Failpoint, hit
from bockd.model import MIB, LayerId


def create_layer(layout: Layout, layer_id: LayerId, size_bytes: int) -> None:
    """Make the files of an empty layer, durably. The index does not name it yet.

    A file that is there already and holds nothing but zeros is what is left of a creation that no
    transaction followed, and is used. (A tool that copied the pool may have filled its hole.)

    Raises:
        DamagedError: a file holds data, so the index is older than the layers.
        OSError: as the system has it.
    """
    descriptors: list[int] = []
    sizes = segment_sizes(size_bytes)
    try:
        for number, size in enumerate(sizes):
            path = layout.layer_segment(layer_id, number)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            descriptors.append(fd)
            os.ftruncate(fd, size)
        layer = Layer(layer_id, descriptors, nowait=False)
        if not layer.is_empty():
            if not _is_blank(layer):
                _refuse_foreign_data(layout, layer_id)
            for fd, size in zip(descriptors, sizes, strict=True):
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
        hit(Failpoint.LAYER_CREATED)
        for fd in descriptors:
            os.fsync(fd)
    finally:
        close_all(descriptors)
    sync_directory(layout.layers)
    hit(Failpoint.LAYER_SYNCED)


def _is_blank(layer: Layer) -> bool:
    """Return whether a layer holds nothing but zeros, however they are stored."""
    for start, end in layer.data_ranges(0, len(layer.descriptors) * SEGMENT_BYTES):
        for offset in range(start, end, MIB):
            piece = bytearray(min(MIB, end - offset))
            layer.read(offset, memoryview(piece))
            if any(piece):
                return False
    return True


def _refuse_foreign_data(layout: Layout, layer_id: LayerId) -> NoReturn:
    raise DamagedError(
        f"{layout.layer_segment(layer_id, 0)} holds data, but the index does not know it: "
        "the index is older than the layers; restore both from the same backup"
    )


def unlink_layer(layout: Layout, layer_id: LayerId) -> None:
    """Remove the files of a layer that the index has forgotten. May be called again. Raises
    OSError."""
    number = 0
    while True:
        try:
            os.unlink(layout.layer_segment(layer_id, number))
        except FileNotFoundError:
            if number:
                return
        else:
            hit(Failpoint.LAYER_UNLINKED)
        number += 1
        if number > 2:
            return
