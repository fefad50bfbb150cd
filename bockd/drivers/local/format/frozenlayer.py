"""Frozen layers, of which a process keeps only so many open.

A device reads every layer that its map leads to: the 250th clone of a clone reads 250 of them, and
a process has few descriptors. So layers are closed when there are too many, those first that
nobody has read for longest, and opened again by the next read that waits for a thread anyway.

What closes a layer runs on the owner thread alone, where reads from the page cache run too; reads
in threads hold theirs (`Layer.readers`). So no descriptor is closed under a read: it could be
another file's by then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import closing

from bockd.descriptors import LAYERS_SHARE, portion
from bockd.drivers.local.format.layer import Layer, verify_layer
from bockd.drivers.local.format.layout import Layout
from bockd.model import LayerId

MAX_OPEN_FILES = 4096
"""Of all layers that may be closed. A file costs the kernel about 1 KiB."""

_CLOSED_SHARE = 16
"""One in so many is closed at once, so that not every read has to make room."""


class OpenFiles:
    """Which frozen layers of a pool are open, and how many files they may have together."""

    def __init__(self, limit: int | None) -> None:
        """Allow at most `limit` open files. None is for a process that must keep open what it has
        open, because another process may remove the file."""
        self.limit = limit
        self._open: OrderedDict[FrozenLayer, int] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()
        self.crowded = False
        """A layer found no room: `make_room` is to be called."""

    @classmethod
    def of_process(cls) -> OpenFiles:
        """Allow as many open files as the process's limit of descriptors leaves for layers."""
        return cls(portion(LAYERS_SHARE, MAX_OPEN_FILES))

    @property
    def count(self) -> int:
        """Files that are open now."""
        return self._count

    @property
    def full(self) -> bool:
        """True when there is no room for another layer."""
        return self.limit is not None and self._count >= self.limit

    def admit(self, layer: FrozenLayer, opened: Layer) -> bool:
        """Move the descriptors of `opened` to `layer`. Return False if there is no room, or if
        `layer` has some already. For any thread that has a hold of the layer."""
        with self._lock:
            if layer.is_open:
                return False
            if self.full:
                self.crowded = True
                return False
            layer.nowait_flag = opened.nowait_flag
            layer.adopt(opened.descriptors)
            self._open[layer] = len(layer.descriptors)
            self._count += len(layer.descriptors)
        return True

    def forget(self, layer: FrozenLayer) -> None:
        """Stop counting a layer's files: it is about to be closed."""
        with self._lock:
            self._count -= self._open.pop(layer, 0)

    def make_room(self) -> None:
        """Close what was not read for longest, if a layer found no room. For the owner thread."""
        if not self.crowded or self.limit is None:
            return
        self.crowded = False
        goal = self.limit - max(1, self.limit // _CLOSED_SHARE)
        with self._lock:
            oldest_first = list(self._open)
        # Whoever was used since the last time gets a second chance, at the end of the queue.
        for layer in oldest_first + oldest_first:
            if self._count <= goal:
                return
            if layer.readers or not layer.is_open:
                continue
            if layer.used:
                layer.used = False
                with self._lock:
                    self._open.move_to_end(layer)
            else:
                layer.close()


class FrozenLayer(Layer):
    """A layer that is only read, and open only while there is room for it among `files`."""

    def __init__(
        self,
        layout: Layout,
        layer_id: LayerId,
        file_bytes: int,
        files: OpenFiles,
        *,
        packed: bool = False,
    ) -> None:
        """Create the layer. Nothing is opened yet."""
        super().__init__(layer_id, [], nowait=False, packed=packed)
        self._layout = layout
        self._file_bytes = file_bytes
        self._files = files

    def prepare(self) -> None:
        """Open the files if there is room, so that reads need not wait. Blocks.

        Raises DamagedError if one is missing or too short, whether there is room or not;
        DeviceError, DeniedError.
        """
        if self._files.full:
            self._files.crowded = True
            verify_layer(self._layout, self.id, self._file_bytes)
            return
        opened = self._open_anew()
        if not self._files.admit(self, opened):
            opened.close()

    def read(self, offset: int, into: memoryview) -> None:
        """See Layer.read. The caller has a hold of the layer (`readers`)."""
        if self.is_open:
            super().read(offset, into)
            return
        opened = self._open_anew()
        admitted = self._files.admit(self, opened)
        try:
            opened.read(offset, into)
        finally:
            if not admitted:
                opened.close()

    def prefetch(self, offset: int, length: int) -> None:
        """See Layer.prefetch. The caller has a hold of the layer. Nothing is opened for this."""
        if self.is_open:
            super().prefetch(offset, length)

    def evict(self, offset: int) -> None:
        """See Layer.evict. The caller has a hold of the layer."""
        if self.is_open:
            super().evict(offset)
        else:
            with closing(self._open_anew()) as opened:
                opened.evict(offset)

    def close(self) -> None:
        """Close the files. For the owner thread, while nobody has a hold; a read that comes after
        all opens them again."""
        self._files.forget(self)
        super().close()

    def _open_anew(self) -> Layer:
        return Layer.open(
            self._layout, self.id, self._file_bytes, writable=False, packed=self.packed
        )
