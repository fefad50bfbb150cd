"""The volume contract in memory: what tests put in a local volume's place.

Sparse, in blocks of 4 KiB; nothing is kept but what was written. The switches make it behave as a
device in trouble or in a hurry: refuse the immediate forms, keep operations waiting until a signal
fires, run them as blocking calls, or raise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE, Extent
from bockd.runtime.steps import Signal, blocking

_ZEROES = bytes(BLOCK_SIZE)


def _blocks(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """For each block of a range: its number, where the range begins and ends in it, and where that
    lies in the range."""
    end = offset + length
    position = offset
    while position < end:
        number, start = divmod(position, BLOCK_SIZE)
        stop = min(BLOCK_SIZE, start + end - position)
        yield number, start, stop, position - offset
        position += stop - start


class MemoryDevice:
    """A `BlockDevice` in memory."""

    def __init__(self, size_bytes: int, *, read_only: bool = False) -> None:
        self._size_bytes = size_bytes
        self._read_only = read_only
        self._blocks: dict[int, bytearray] = {}
        self.immediate = True
        """Switch: False makes the immediate forms say that they would have to wait."""
        self.blocking = False
        """Switch: True makes operations do their work in a blocking call."""
        self.gate: Signal | None = None
        """Switch: operations wait for this signal before they do anything."""
        self.failures: dict[str, Exception] = {}
        """Switch: method name to the error it raises ("read", "write", "commit", "flush", ...);
        "read", "write", "trim" and "extents" cover the immediate forms, too."""
        self.calls: list[str] = []
        """Names of the operations that took effect, in order, without the immediate reads."""
        self.uncommitted = 0
        """Immediate writes and trims since the last commit."""
        self.modified_at = 0.0
        """When its content last changed, in seconds since the epoch."""

    def differences(self, other: MemoryDevice) -> Iterator[tuple[int, int]]:
        """Yield offset and length of each run of blocks that hold something else than those of
        another device."""
        begin = end = 0
        for number in sorted(self._blocks.keys() | other._blocks.keys()):
            one, two = (device._blocks.get(number, _ZEROES) for device in (self, other))
            if one == two:
                continue
            if number != end:
                if begin < end:
                    yield begin * BLOCK_SIZE, (end - begin) * BLOCK_SIZE
                begin = number
            end = number + 1
        if begin < end:
            yield begin * BLOCK_SIZE, (end - begin) * BLOCK_SIZE

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def stored_bytes(self) -> int:
        """What has been written, in whole blocks."""
        return len(self._blocks) * BLOCK_SIZE

    def grow(self, size_bytes: int) -> None:
        """Make the device larger; what is new reads as zeros."""
        assert size_bytes >= self._size_bytes
        self._size_bytes = size_bytes

    def show(self, other: MemoryDevice) -> None:
        """Take over what another device, which is no larger, holds now."""
        self._blocks = {number: bytearray(block) for number, block in other._blocks.items()}
        self.modified_at = time.time()

    # The immediate forms.

    def try_read(self, offset: int, into: memoryview) -> bool:
        if not self.immediate:
            return False
        self._check("read")
        self._read(offset, into)
        return True

    def try_write(self, offset: int, data: memoryview) -> bool:
        if not self.immediate:
            return False
        self._check("write")
        self._write(offset, data)
        self.uncommitted += 1
        return True

    def try_trim(self, offset: int, length: int) -> bool:
        if not self.immediate or self.blocking or self.gate is not None:
            return False
        self._check("trim")
        self._trim(offset, length)
        self.uncommitted += 1
        return True

    def commit(self) -> None:
        self._check("commit")
        if self.uncommitted:
            self.calls.append("commit")
        self.uncommitted = 0

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        if not self.immediate:
            return None
        self._check("extents")
        return self._extents(offset, length, limit)

    # The forms that may wait.

    async def read(self, offset: int, into: memoryview) -> None:
        await self._pause("read")
        self._read(offset, into)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._pause("write")
        self._write(offset, data)

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        await self._pause("zero")
        for number, start, stop, _ in _blocks(offset, length):
            if allocate:
                block = self._blocks.setdefault(number, bytearray(BLOCK_SIZE))
                block[start:stop] = _ZEROES[start:stop]
            elif stop - start == BLOCK_SIZE:
                self._blocks.pop(number, None)
            elif number in self._blocks:
                self._blocks[number][start:stop] = _ZEROES[start:stop]
        self.modified_at = time.time()
        self.calls.append("zero")

    async def trim(self, offset: int, length: int) -> None:
        await self._pause("trim")
        self._trim(offset, length)

    async def flush(self) -> None:
        assert not self.uncommitted, "a flush began while writes were staged"
        await self._pause("flush")
        self.calls.append("flush")

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        await self._pause("extents")
        return self._extents(offset, length, limit)

    async def cache(self, offset: int, length: int) -> None:
        await self._pause("cache")
        self.calls.append("cache")

    # What they share.

    def _check(self, operation: str) -> None:
        if operation in self.failures:
            raise self.failures[operation]

    async def _pause(self, operation: str) -> None:
        if self.gate is not None:
            await self.gate
        if self.blocking:
            await blocking(lambda: None)
        self._check(operation)

    def _read(self, offset: int, into: memoryview) -> None:
        if len(into) == BLOCK_SIZE and not offset % BLOCK_SIZE:  # what benchmarks of the server do
            into[:] = self._blocks.get(offset // BLOCK_SIZE, _ZEROES)
            return
        for number, start, stop, position in _blocks(offset, len(into)):
            block = self._blocks.get(number, _ZEROES)
            into[position : position + stop - start] = block[start:stop]

    def _write(self, offset: int, data: memoryview) -> None:
        for number, start, stop, position in _blocks(offset, len(data)):
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = bytearray(BLOCK_SIZE)
            block[start:stop] = data[position : position + stop - start]
        self.modified_at = time.time()
        self.calls.append("write")

    def _extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        found: list[Extent] = []
        for number, start, stop, position in _blocks(offset, length):
            hole = number not in self._blocks
            if found and found[-1].hole == hole:
                last = found.pop()
                found.append(Extent(last.offset_bytes, last.length_bytes + stop - start, hole))
            elif len(found) == limit:
                break
            else:
                found.append(Extent(offset + position, stop - start, hole))
        return found

    def _trim(self, offset: int, length: int) -> None:
        for number, start, stop, _ in _blocks(offset, length):
            if stop - start == BLOCK_SIZE:
                self._blocks.pop(number, None)
        self.modified_at = time.time()
        self.calls.append("trim")


class FailedError(BockdError):
    """What tests let a device fail with."""

    code = "test"
