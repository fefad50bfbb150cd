"""The design that bockd does not have: block bytes as LMDB values. A baseline, so that the choice
stays measured.

    python -m bench.lmdbvalues DIRECTORY SIZE_BYTES SOCKET

Our own NBD server over one LMDB environment with a 4 KiB value for each block that was written.
It is given every advantage: one write transaction for a batch, no sync at its commit (so that it
promises less than bockd does), reads straight from the map.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import trio

from bockd.model import BLOCK_SIZE, Extent, NodeKind
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.pool.device import BlockDevice
from bockd.unixsocket import listen_unix

_ZEROS = bytes(BLOCK_SIZE)
_SPARE = 4
"""The map is this many times as large as the export: a value of 4 KiB takes two pages."""


def _blocks(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Block number, beginning and end within it, place in the range; for each block of a range."""
    position = offset
    while position < offset + length:
        number, start = divmod(position, BLOCK_SIZE)
        stop = min(BLOCK_SIZE, start + offset + length - position)
        yield number, start, stop, position - offset
        position += stop - start


class LmdbDevice:
    """A `BlockDevice` of LMDB values."""

    read_only = False

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._environment = lmdb.open(
            str(directory), map_size=_SPARE * size_bytes + (64 << 20), sync=False, readahead=False
        )
        self._writing: lmdb.Transaction | None = None

    def _begin(self) -> lmdb.Transaction:
        if self._writing is None:
            self._writing = self._environment.begin(write=True)
        return self._writing

    def try_read(self, offset: int, into: memoryview) -> bool:
        writing = self._writing
        txn = writing or self._environment.begin(buffers=True)
        for number, start, stop, place in _blocks(offset, len(into)):
            value = txn.get(number.to_bytes(8, "big"), _ZEROS)
            into[place : place + stop - start] = value[start:stop]
        if writing is None:
            txn.abort()
        return True

    def try_write(self, offset: int, data: memoryview) -> bool:
        txn = self._begin()
        for number, start, stop, place in _blocks(offset, len(data)):
            key = number.to_bytes(8, "big")
            value = bytes(data[place : place + stop - start])
            if len(value) < BLOCK_SIZE:
                before = bytes(txn.get(key, _ZEROS))
                value = before[:start] + value + before[stop:]
            txn.put(key, value)
        return True

    def try_trim(self, offset: int, length: int) -> bool:
        for number in range(-(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE):
            self._begin().delete(number.to_bytes(8, "big"))
        return True

    def commit(self) -> None:
        if self._writing is not None:
            self._writing.commit()
            self._writing = None

    async def read(self, offset: int, into: memoryview) -> None:
        self.try_read(offset, into)

    async def write(self, offset: int, data: memoryview) -> None:
        self.try_write(offset, data)
        self.commit()

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        await self.write(offset, memoryview(bytes(length)))

    async def trim(self, offset: int, length: int) -> None:
        self.try_trim(offset, length)
        self.commit()

    async def flush(self) -> None:
        self._environment.sync(True)

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        return [Extent(offset, length, hole=False)]

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        return [Extent(offset, length, hole=False)]

    async def cache(self, offset: int, length: int) -> None:
        pass


class _OneExport:
    """The device under every name; both the table and each connection's hold."""

    key = ExportKey(NodeKind.VOLUME, 1)

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.info = ExportInfo("bench", "", device.size_bytes, read_only=False)

    async def list_exports(self) -> Sequence[ExportInfo]:
        return (self.info,)

    async def describe(self, name: str) -> ExportInfo:
        return self.info

    async def open(self, name: str) -> _OneExport:
        return self

    async def close(self) -> None:
        pass


def main(directory: str, size_bytes: str, socket_path: str) -> None:
    """Serve until the process is ended."""
    Path(directory).mkdir()
    device = LmdbDevice(Path(directory), int(size_bytes))
    listener = listen_unix(Path(socket_path))
    trio.run(NbdServer().serve, listener, _OneExport(device))


if __name__ == "__main__":
    main(*sys.argv[1:])
