"""A cache in front of devices in memory, for tests with one thread."""

from __future__ import annotations

import os
from pathlib import Path

from bockd.drivers.cache.blockmap import LEAF_BLOCKS, BlockMap
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.memory.device import MemoryDevice
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Background, run_inline

LIMIT_BYTES = 16 * MIB


class CountingDevice(MemoryDevice):
    """Counts what is read of it, and answers nothing at once."""

    def __init__(self, size_bytes: int, *, read_only: bool = False) -> None:
        super().__init__(size_bytes, read_only=read_only)
        self.immediate = False
        self.reads: list[tuple[int, int]] = []
        """Offset and length of each."""

    def hold(self, data: bytes, offset: int = 0) -> None:
        """Have data in it."""
        self._write(offset, memoryview(data))

    async def read(self, offset: int, into: memoryview) -> None:
        self.reads.append((offset, len(into)))
        await super().read(offset, into)


class Opened:
    """A directory, and what is open of it."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self.background = Background()
        self.directory = CacheDirectory.open(path, limit_bytes, self.background.spawn)

    def volume(self, below: BlockDevice, epoch: int, name: str = "one") -> CachedDevice:
        device = run_inline(self.directory.open_volume(below, name, epoch))
        assert device is not None
        return device

    def snapshot(self, below: BlockDevice, name: str = "one") -> CachedDevice:
        device = run_inline(self.directory.open_snapshot(below, name))
        assert device is not None
        return device

    def read(self, device: CachedDevice, offset: int = 0, length: int = BLOCK_SIZE) -> bytes:
        """Read as a frontend does, and let the cache be filled."""
        into = memoryview(bytearray(b"?" * length))
        if not device.try_read(offset, into):
            run_inline(device.read(offset, into))
        self.background.run()
        return bytes(into)

    def write(self, device: CachedDevice, offset: int, data: bytes) -> None:
        run_inline(device.write(offset, memoryview(data)))
        self.background.run()

    def close(self, *devices: CachedDevice) -> None:
        for device in devices:
            run_inline(self.directory.close_device(device))
        self.background.run()

    def release(self, *devices: CachedDevice) -> None:
        """Close devices, and the directory."""
        self.close(*devices)
        self.directory.release()

    def die(self, *devices: CachedDevice) -> None:
        """End as a process does that is killed."""
        for device in devices:
            device.blocks.file.close()
        os.close(self.directory._lock)


def is_hit(device: CachedDevice, block: int = 0) -> bool:
    """Return whether the fast lane is shown a block."""
    view = device.fast_view()
    leaf = view.leaves.get(block // LEAF_BLOCKS)
    if leaf is None:
        return False
    layer = view.slots[leaf[block % LEAF_BLOCKS]]
    return layer is None or layer.first_descriptor >= 0


def content_of(length: int) -> bytes:
    """Return data of which each block says where it belongs, and none is zeros."""
    blocks = range(length // BLOCK_SIZE)
    return b"".join((block + 1).to_bytes(8, "big") * (BLOCK_SIZE // 8) for block in blocks)


def allocated_blocks(blockmap: BlockMap) -> int:
    """Return how many blocks take space in the file, as a map says."""
    return sum(mask.bit_count() for mask in blockmap.allocated.values())
