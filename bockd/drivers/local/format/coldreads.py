"""Reading a layer past the page cache: what is verified is what the disk holds, and nothing that
clients use is evicted for it. Where the file system has no O_DIRECT it is read as usual.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Self

from bockd.drivers.local.format.catalogue import LayerRecord
from bockd.drivers.local.format.layer import SEGMENT_BYTES, evict, segment_sizes, verify_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.leaf import LEAF_BYTES
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId

assert SEGMENT_BYTES % LEAF_BYTES == 0  # so that no read lies in two segments


class ColdReader:
    """One layer's files, open for reading from the disk. For one thread; end it with `close`."""

    def __init__(self, layer: LayerId, descriptors: list[int]) -> None:
        self.layer = layer
        self._descriptors = descriptors
        # O_DIRECT wants memory that begins at a page.
        self._buffer = memoryview(mmap.mmap(-1, LEAF_BYTES))

    @classmethod
    def open(cls, layout: Layout, record: LayerRecord) -> Self:
        """Open a layer's files. Raises DamagedError when one is missing or too short, and
        OSError."""
        verify_layer(layout, record.id, record.file_bytes)
        reader = cls(record.id, [])
        try:
            for number in range(len(segment_sizes(record.file_bytes))):
                path = os.fspath(layout.layer_segment(record.id, number))
                reader._descriptors.append(reader._open(path))
        except BaseException:
            reader.close()
            raise
        return reader

    def _open(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags)
        try:
            os.preadv(fd, (self._buffer[:BLOCK_SIZE],), 0)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a disk with larger sectors than blocks
                os.close(fd)
                return os.open(path, flags)
            # Another error is of this block, which may not be wanted.
        return fd

    def read(self, first: int, count: int) -> memoryview:
        """Read `count` blocks from the 4 KiB with number `first` in the layer's files on, at most
        as many as fit between two multiples of 256. The result is valid until the next call. Raises
        OSError, and DamagedError at the end of the file."""
        number, position = divmod(first * BLOCK_SIZE, SEGMENT_BYTES)
        content = self._buffer[: count * BLOCK_SIZE]
        done = 0
        while done < len(content):
            got = os.preadv(self._descriptors[number], (content[done:],), position + done)
            if got == 0:
                raise DamagedError(f"layer {self.layer} ends before byte {position + done}")
            done += got
        return content

    def evict(self, place: int) -> None:
        """Let the page cache forget the 4 KiB with this number."""
        evict(self._descriptors, place * BLOCK_SIZE)

    def close(self) -> None:
        """Close the files."""
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
