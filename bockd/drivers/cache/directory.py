"""The directory of the cache: its files, what is kept of devices that are closed, and its bound.

    bockd-cache.lock      held while a daemon uses the directory, and says what it is
    v-NAME.blocks         the cache file of a volume; s-NAME.blocks: of a snapshot
    v-NAME.map            its map, while it is closed (mapfile.py)

A volume's file is kept for the next opening by this directory, if nobody had the volume in
between: its driver counts the times that anybody has taken it (`epoch`), so the next one of ours is
one more than that in which it was closed. A snapshot never changes; all who read it in this process
share one file.

What is not closed in order is dropped at the next start. What is has been synced before its map
was named, so it outlasts a power cut, too.
"""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bockd.directories import claim_directory
from bockd.drivers.cache.blockmap import BlockMap
from bockd.drivers.cache.blocks import CachedBlocks
from bockd.drivers.cache.cachefile import CacheFile, Identity, file_call, identity_of
from bockd.drivers.cache.device import CachedDevice, always, cached
from bockd.drivers.cache.mapfile import (
    NEW_SUFFIX,
    SUFFIX,
    BadMapError,
    Kept,
    leaves_of,
    read_map,
    remove_map,
)
from bockd.drivers.cache.space import Holder, Space
from bockd.errors import NotSupportedError, from_os_error
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.device import BlockDevice
from bockd.pool.figures import Figure
from bockd.runtime.steps import Spawn, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)

MIN_LIMIT_BYTES = 16 * MIB

_LOCK = "bockd-cache.lock"

_BLOCKS_SUFFIX = ".blocks"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")

_EVICTED_LEAVES = 32
"""At once, at most: what is fetched meanwhile finds no room."""

_NO_FILE = Identity(0, 0, 0, 0)


class _Open(NamedTuple):
    """A device that is open."""

    blocks: CachedBlocks
    epoch: int | None
    devices: list[CachedDevice]
    size_bytes: int
    """When it was opened."""


class CacheDirectory:
    """For the owner thread, but for `open`."""

    def __init__(self, path: Path, limit_bytes: int, spawn: Spawn, lock: int) -> None:
        self.path = path
        self.space = Space(limit_bytes)
        self.space.on_crowded = self._begin_eviction
        self._spawn = spawn
        self._lock = lock
        self._open: dict[str, _Open] = {}
        self._kept: OrderedDict[str, int] = OrderedDict()
        """What is closed, with the bytes it takes; the one closed first is first."""
        self._turns: dict[str, Mutex] = {}
        """Of what opens, closes or removes a file."""
        self._evicting = False

    @classmethod
    def open(cls, path: Path, limit_bytes: int, spawn: Spawn) -> CacheDirectory:
        """Make the directory if need be, and drop what was not closed in order. Blocks. Raises
        InUseError (another daemon has it), InvalidRequestError (it has something else),
        NotSupportedError (the file system makes no holes), DeviceError, DeniedError,
        NoSpaceError."""
        lock = claim_directory(path, _LOCK, "the cache")
        try:
            directory = cls(path, limit_bytes, spawn, lock)
            directory._take_stock()
            directory._try_hole()
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise from_os_error(error, f"opening the cache in {path}") from error
            raise
        return directory

    def _take_stock(self) -> None:
        found: list[tuple[int, str, int]] = []
        for blocks in self.path.glob("*" + _BLOCKS_SUFFIX):
            with suppress(FileNotFoundError):
                closed = self._path(blocks.stem, SUFFIX).stat().st_mtime_ns
                found.append((closed, blocks.stem, blocks.stat().st_blocks * 512))
        self._kept.update((stem, taken) for _, stem, taken in sorted(found))
        for one in self.path.iterdir():
            ours = one.suffix in (_BLOCKS_SUFFIX, SUFFIX, NEW_SUFFIX)
            if ours and (one.stem not in self._kept or one.suffix == NEW_SUFFIX):
                one.unlink()
        self.space.used_bytes = sum(self._kept.values())

    def _try_hole(self) -> None:
        file = CacheFile.create(self.path / ("trial" + _BLOCKS_SUFFIX), MIB)
        try:
            file.fill([(0, b"x" * BLOCK_SIZE)])
            file.punch([(0, BLOCK_SIZE)])
        except NotImplementedError:
            raise NotSupportedError(
                f"the file system of {self.path} makes no holes in files: the cache needs that"
            ) from None
        finally:
            file.close()
            self._path("trial", _BLOCKS_SUFFIX).unlink()

    def figures(self) -> list[Figure]:
        """Return what the files take, and how many reads found too little in them."""
        space = self.space
        return [
            Figure("cache_used_bytes", "What the cache's files take.", space.used_bytes),
            Figure("cache_limit_bytes", "The most that they may take.", space.limit_bytes),
            Figure(
                "cache_missed_reads_total",
                "Reads of which not all was in the cache. All other reads were hits.",
                space.missed_reads,
            ),
            Figure(
                "cache_missed_bytes_total",
                "Bytes that were read of the cluster for them, in whole blocks.",
                space.missed_bytes,
            ),
        ]

    def release(self) -> None:
        """Give the directory up. No device is open."""
        assert not self._open
        os.close(self._lock)

    # -- devices -----------------------------------------------------------------------------

    async def open_volume(
        self, below: BlockDevice, name: str, epoch: int, held: Callable[[], bool] = always
    ) -> CachedDevice | None:
        """Put a cache in front of a volume that this process has just taken. `epoch` is one more
        with each taking, whoever's it is; `name` is that of what the volume's content is in. None
        if there can be no cache, or an earlier one of it is just being opened, closed or removed,
        for which nobody waits: why is in the log."""
        stem = _stem("v", name)
        if self._in_turn(stem):
            return None
        if (left := self._open.get(stem)) is not None:  # not closed yet since it was lost
            left.blocks.turn_off("it was opened anew")
            return None
        async with self._turn(stem):
            return await self._join(stem, name, below, epoch, held)

    async def open_snapshot(self, below: BlockDevice, name: str) -> CachedDevice | None:
        """Put the cache that all share in front of something that never changes. Otherwise as
        `open_volume`."""
        stem = _stem("s", name)
        if self._in_turn(stem):
            return None
        async with self._turn(stem):
            return await self._join(stem, name, below, None, always)

    async def _join(
        self,
        stem: str,
        name: str,
        below: BlockDevice,
        epoch: int | None,
        held: Callable[[], bool],
    ) -> CachedDevice | None:
        one = self._open.get(stem)
        if one is None:
            blocks = await self._open_blocks(stem, name, below.size_bytes, epoch)
            if blocks is None:
                return None
            one = self._open[stem] = _Open(blocks, epoch, [], below.size_bytes)
        device = cached(below, one.blocks, held)
        one.devices.append(device)
        return device

    async def _open_blocks(
        self, stem: str, name: str, size_bytes: int, epoch: int | None
    ) -> CachedBlocks | None:
        self.space.give_back(self._kept.pop(stem, 0))
        try:
            file, blockmap, taken = await file_call(self._prepare, stem, name, size_bytes, epoch)
        except OSError as error:
            log.warning("there is no cache of %s: %s", name, error)
            await file_call(self._unlink, stem)
            return None
        self.space.count(taken)
        path = self._path(stem, _BLOCKS_SUFFIX)
        return CachedBlocks(name, path, file, blockmap, taken, self.space, self._spawn)

    def _prepare(
        self, stem: str, name: str, size_bytes: int, epoch: int | None
    ) -> tuple[CacheFile, BlockMap, int]:
        """Open the file of a device, and the map if it is valid, which is removed in any case.
        Returns what the file takes, too."""
        path, map_path = self._path(stem, _BLOCKS_SUFFIX), self._path(stem, SUFFIX)
        blockmap = BlockMap()
        kept: Kept | None = None
        try:
            kept, leaves = read_map(map_path)
            if self._is_valid(kept, path, name, size_bytes, epoch):
                for leaf in leaves_of(leaves):
                    blockmap.load(*leaf)
            else:
                kept = None
        except FileNotFoundError:
            pass
        except (OSError, BadMapError) as error:
            log.warning("what was cached of %s is dropped: %s", name, error)
            kept, blockmap = None, BlockMap()
        # Before the file changes: else a map might be found beside it that is not its own.
        remove_map(map_path)
        if kept is None:
            return CacheFile.create(path, size_bytes), blockmap, 0
        return CacheFile.open(path, size_bytes), blockmap, kept.allocated_bytes

    def _is_valid(
        self, kept: Kept, path: Path, name: str, size_bytes: int, epoch: int | None
    ) -> bool:
        before = None if epoch is None else epoch - 1
        return (
            (kept.name, kept.epoch) == (name, before)
            and kept.size_bytes <= size_bytes
            and kept.file == identity_of(os.stat(path))
        )

    async def close_device(self, device: BlockDevice) -> None:
        """Close the cache in front of a device, of which nothing is under way. It is kept, if
        nothing has gone wrong. Before or after the device itself is closed. Doing so again does
        nothing."""
        for stem, one in self._open.items():
            if device in one.devices:
                async with self._turn(stem):
                    if device in one.devices:
                        one.devices.remove(device)
                        if not one.devices:
                            await self._close(stem, one)
                return

    async def close_all(self) -> None:
        """Close all caches that are open, and wait for those that others close."""
        for stem in list(self._open):
            async with self._turn(stem):
                if (one := self._open.get(stem)) is not None:
                    await self._close(stem, one)

    async def _close(self, stem: str, one: _Open) -> None:
        one.devices.clear()
        as_far = Kept(one.blocks.name, one.epoch, one.size_bytes, 0, _NO_FILE)
        try:
            kept = await one.blocks.close(self._path(stem, SUFFIX), as_far)
        finally:
            del self._open[stem]
        if kept is not None:
            self._kept[stem] = kept.allocated_bytes

    async def forget_volume(self, name: str) -> None:
        """Drop what is kept of a volume that is no more. It is not in use."""
        await self._forget(_stem("v", name))

    async def forget_snapshot(self, name: str) -> None:
        """Drop what is kept of a snapshot that is no more. It is not in use."""
        await self._forget(_stem("s", name))

    async def _forget(self, stem: str) -> None:
        if (one := self._open.get(stem)) is not None:
            one.blocks.drop()  # it is not closed yet
        await self._remove_kept(stem)

    def _in_turn(self, stem: str) -> bool:
        """Return whether a file is just being opened, closed or removed: that lasts as long as the
        local disk likes, and whoever opens a volume has taken it from others."""
        if stem in self._turns:
            log.info("there is no cache of %s until it is opened again: its file is busy", stem)
            return True
        return False

    @asynccontextmanager
    async def _turn(self, stem: str) -> AsyncIterator[None]:
        """Have no other one open, close or remove a file meanwhile."""
        turn = self._turns.setdefault(stem, Mutex())
        try:
            async with turn:
                yield
        finally:
            if not turn.held:
                self._turns.pop(stem, None)

    # -- the bound ---------------------------------------------------------------------------

    def _begin_eviction(self) -> None:
        if not self._evicting:
            self._evicting = try_spawn(self._spawn, self._evict())

    async def _evict(self) -> None:
        """Make room: what is closed goes first, then the oldest leaves."""
        leaves = max(1, min(_EVICTED_LEAVES, self.space.limit_bytes // MIB // 16))
        try:
            while not self.space.roomy:
                if self._kept:
                    await self._remove_kept(next(iter(self._kept)))
                    continue
                by_holder: dict[Holder, list[int]] = {}
                for holder, number in self.space.oldest(leaves):
                    by_holder.setdefault(holder, []).append(number)
                if not by_holder:
                    return
                for holder, numbers in by_holder.items():
                    await holder.evict(numbers)
        finally:
            self._evicting = False

    async def _remove_kept(self, stem: str) -> None:
        async with self._turn(stem):
            taken = self._kept.pop(stem, None)
            if taken is not None:
                await file_call(self._unlink, stem)
                self.space.give_back(taken)

    def _unlink(self, stem: str) -> None:
        for suffix in (SUFFIX, _BLOCKS_SUFFIX):
            try:
                self._path(stem, suffix).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s stays in the cache: %s", stem, error)

    def _path(self, stem: str, suffix: str) -> Path:
        return self.path / (stem + suffix)


def _stem(kind: str, name: str) -> str:
    assert _NAME.fullmatch(name), name
    return f"{kind}-{name}"
