"""A device in a file, for tests that end processes: what it was given outlasts them."""

from __future__ import annotations

import os
from pathlib import Path

from bockd.model import Extent


class FileDevice:
    """A `BlockDevice` without holes."""

    read_only = False

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, size_bytes)

    def try_read(self, offset: int, into: memoryview) -> bool:
        return os.preadv(self._fd, (into,), offset) == len(into)

    def try_write(self, offset: int, data: memoryview) -> bool:
        return False

    def try_trim(self, offset: int, length: int) -> bool:
        return False

    def commit(self) -> None:
        """Nothing was written at once."""

    async def read(self, offset: int, into: memoryview) -> None:
        assert self.try_read(offset, into)

    async def write(self, offset: int, data: memoryview) -> None:
        assert os.pwrite(self._fd, data, offset) == len(data)

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        assert os.pwrite(self._fd, bytes(length), offset) == length

    async def trim(self, offset: int, length: int) -> None:
        await self.zero(offset, length, allocate=False)

    async def flush(self) -> None:
        """Processes end here, not machines."""

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        return [Extent(offset, length, hole=False)]

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        return [Extent(offset, length, hole=False)]

    async def cache(self, offset: int, length: int) -> None:
        """There is nothing to read ahead."""
