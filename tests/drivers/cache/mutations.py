"""What goes wrong when one rule of the cache is left out, for the world to notice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.cache import blocks, directory
from bockd.drivers.cache.blockmap import LEAF_BYTES, BlockMap
from bockd.drivers.cache.blocks import CachedBlocks
from bockd.drivers.cache.cachefile import CacheFile
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.cache.hits import touched
from bockd.drivers.cache.mapfile import Kept
from bockd.drivers.cache.operations import Operation, Operations
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import blocking

Mutation = Callable[[pytest.MonkeyPatch], None]


def nothing(_patch: pytest.MonkeyPatch) -> None:
    """Leave no rule out."""


def _clears_late(patch: pytest.MonkeyPatch) -> None:
    """Blocks become misses when a change has ended, not before it is sent."""
    changing = CachedBlocks.changing

    @contextmanager
    def late(self: CachedBlocks, offset: int, length: int) -> Iterator[Operation]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self.map, "clear", lambda _first, _end: None)
            entered = changing(self, offset, length)
            change = entered.__enter__()
        error: BaseException | None = None
        try:
            yield change
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.map.clear(*touched(offset, length))
            entered.__exit__(type(error) if error else None, error, None)

    patch.setattr(CachedBlocks, "changing", late)


def _clears_whole_blocks_only(patch: pytest.MonkeyPatch) -> None:
    """A block that is changed in part stays a hit."""
    changing = CachedBlocks.changing

    def some(self: CachedBlocks, offset: int, length: int) -> Any:
        first = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
        whole = (offset + length) // BLOCK_SIZE * BLOCK_SIZE - first
        return changing(self, first, whole) if whole > 0 else changing(self, 1 << 40, 1)

    patch.setattr(CachedBlocks, "changing", some)


def _change_spares_others(patch: pytest.MonkeyPatch) -> None:
    """A change that begins leaves what is open as it is."""

    def change(self: Operations, first: int, end: int) -> Operation:
        change = Operation(first, end, changing=True)
        change.stale = any(other.changing for other in self._overlapping(first, end))
        self._enter(change)
        return change

    patch.setattr(Operations, "change", change)


def _read_under_a_change(patch: pytest.MonkeyPatch) -> None:
    """A read that begins while a change is under way may fill."""

    def read(self: Operations, first: int, end: int) -> Operation:
        read = Operation(first, end, changing=False)
        self._enter(read)
        return read

    patch.setattr(Operations, "read", read)


def _two_writes_at_once(patch: pytest.MonkeyPatch) -> None:
    """A write that begins while another one is under way may fill."""
    change = Operations.change

    def fresh(self: Operations, first: int, end: int) -> Operation:
        made = change(self, first, end)
        made.stale = False
        return made

    patch.setattr(Operations, "change", fresh)


def _failed_write_fills(patch: pytest.MonkeyPatch) -> None:
    """What a write has not written fills the cache."""
    write = CachedDevice.write

    async def careless(self: CachedDevice, offset: int, data: memoryview) -> None:
        try:
            await write(self, offset, data)
        except Exception:
            first, end = offset // BLOCK_SIZE, (offset + len(data)) // BLOCK_SIZE
            if offset % BLOCK_SIZE == 0 and first < end:
                whole = bytes(data)[: (end - first) * BLOCK_SIZE]
                self.blocks.fill(self.blocks.begin_read(first, end), first, whole)
            raise

    patch.setattr(CachedDevice, "write", careless)


def _fills_edges(patch: pytest.MonkeyPatch) -> None:
    """A write fills blocks that it covers in part, with zeros where it does not."""
    fill = CachedBlocks.fill

    async def write(self: CachedDevice, offset: int, data: memoryview) -> None:
        with self.blocks.changing(offset, len(data)) as change:
            await self.below.write(offset, data)
            first, end = touched(offset, len(data))
            whole = bytes(offset - first * BLOCK_SIZE) + bytes(data)
            fill(self.blocks, change, first, whole.ljust((end - first) * BLOCK_SIZE, b"\0"))

    patch.setattr(CachedDevice, "write", write)


def _shares_stale_data(patch: pytest.MonkeyPatch) -> None:
    """A read is given what another one brings, whatever was changed since that began."""

    def covering(self: Operations, first: int, end: int) -> Operation | None:
        for one in self._all():
            if not one.changing and one.covers(first, end):
                return one
        return None

    patch.setattr(Operations, "covering", covering)


def _keeps_the_buffer(patch: pytest.MonkeyPatch) -> None:
    """What fills the cache is the writer's own buffer."""

    async def write(self: CachedDevice, offset: int, data: memoryview) -> None:
        with self.blocks.changing(offset, len(data)) as change:
            await self.below.write(offset, data)
            if not (offset | len(data)) % BLOCK_SIZE:
                self.blocks.fill(change, offset // BLOCK_SIZE, data)  # type: ignore[arg-type]

    patch.setattr(CachedDevice, "write", write)
    real = CacheFile.fill
    patch.setattr(
        CacheFile, "fill", lambda self, pieces: real(self, [(at, bytes(d)) for at, d in pieces])
    )


class _NoTurn:
    """Lets everybody in."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_raised: object) -> None:
        pass


def _fills_side_by_side(patch: pytest.MonkeyPatch) -> None:
    """Every fill has a call of its own, and they take no turns. Some calls take very long."""
    fill, count = CachedBlocks.fill, itertools.count()

    async def slowly(function: Callable[..., Any], *arguments: Any) -> Any:
        for _ in range(0 if next(count) % 4 else 25):
            await blocking(lambda: None)
        return await blocking(function, *arguments)

    def spawning(self: CachedBlocks, operation: Operation, first: int, data: bytes) -> None:
        self._turn = _NoTurn()  # type: ignore[assignment]
        self._filling = False
        fill(self, operation, first, data)

    patch.setattr(blocks, "file_call", slowly)
    patch.setattr(CachedBlocks, "fill", spawning)


def _punches_first(patch: pytest.MonkeyPatch) -> None:
    """A leaf is punched before its map is cleared."""
    evict = CachedBlocks.evict

    async def early(self: CachedBlocks, numbers: list[int]) -> None:
        if not (self.off or self._closing):
            ranges = [(number * LEAF_BYTES, LEAF_BYTES) for number in numbers]
            await blocking(self.file.punch, ranges)
        await evict(self, numbers)

    patch.setattr(CachedBlocks, "evict", early)


def _punches_at_once(patch: pytest.MonkeyPatch) -> None:
    """Reads that have begun are not waited for."""

    async def drain(self: CachedBlocks) -> None:
        pass

    patch.setattr(CachedBlocks, "_drain_reads", drain)


def _evicts_what_is_filled(patch: pytest.MonkeyPatch) -> None:
    """What fills a leaf meanwhile is not stale."""
    evict = CachedBlocks.evict

    async def careless(self: CachedBlocks, numbers: list[int]) -> None:
        nobody = Operation(0, 1, changing=False)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._operations, "change", lambda _first, _end: nobody)
            steps = evict(self, numbers)
            try:
                step = steps.send(None)
            except StopIteration:
                return
        while True:
            try:
                result = await _as_is(step)
                step = steps.send(result)
            except StopIteration:
                return

    patch.setattr(CachedBlocks, "evict", careless)


class _as_is:  # noqa: N801 - a function, but for its form
    def __init__(self, step: Any) -> None:
        self._step = step

    def __await__(self) -> Any:
        return (yield self._step)


def _any_epoch(patch: pytest.MonkeyPatch) -> None:
    """What was kept is used, whoever has had the volume since."""
    is_valid = CacheDirectory._is_valid

    def valid(
        self: CacheDirectory, kept: Kept, path: Path, name: str, size_bytes: int, epoch: int | None
    ) -> bool:
        epoch = None if kept.epoch is None else kept.epoch + 1
        return is_valid(self, kept, path, name, size_bytes, epoch)

    patch.setattr(CacheDirectory, "_is_valid", valid)


def _map_stays(patch: pytest.MonkeyPatch) -> None:
    """The map is not removed before the file is used."""
    patch.setattr(directory, "remove_map", lambda _path: None)


def _map_comes_back(patch: pytest.MonkeyPatch) -> None:
    """It is removed, but not durably."""
    patch.setattr(directory, "remove_map", lambda path: path.unlink(missing_ok=True))


def _map_before_data(patch: pytest.MonkeyPatch) -> None:
    """The map is written though the file is not synced."""
    patch.setattr(CacheFile, "sync", lambda _self: None)


def _kept_while_it_changes(patch: pytest.MonkeyPatch) -> None:
    """Every block that was ever written to the file is taken for a hit when it is kept."""
    kept_leaves = BlockMap.kept_leaves

    def all_of_it(self: BlockMap) -> Iterator[tuple[int, bytes, int]]:
        for number, slots, allocated in kept_leaves(self):
            more = bytes(
                1 if allocated >> at & 1 and slot == 2 else slot for at, slot in enumerate(slots)
            )
            yield number, more, allocated

    patch.setattr(BlockMap, "kept_leaves", all_of_it)


MUTATIONS: dict[str, Mutation] = {
    one.__name__.strip("_"): one
    for one in (
        _clears_late,
        _clears_whole_blocks_only,
        _change_spares_others,
        _read_under_a_change,
        _two_writes_at_once,
        _failed_write_fills,
        _fills_edges,
        _shares_stale_data,
        _keeps_the_buffer,
        _fills_side_by_side,
        _punches_first,
        _punches_at_once,
        _evicts_what_is_filled,
        _any_epoch,
        _map_stays,
        _map_comes_back,
        _map_before_data,
        _kept_while_it_changes,
    )
}
