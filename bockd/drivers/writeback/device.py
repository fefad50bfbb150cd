"""A volume with write-back: the volume contract over another device, and a log in front of it.

Reads find in the log what is dirty, and all else below. Nothing is answered once the volume was
taken (`lose`), has failed, or was closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from bockd.drivers.writeback.log import BrokenLogError
from bockd.drivers.writeback.overlay import LONGEST_BYTES, Run, merged, runs_of
from bockd.drivers.writeback.reading import AT_ONCE_PARTS, Part, fill, try_fill
from bockd.drivers.writeback.records import Kind
from bockd.drivers.writeback.segment import Place
from bockd.drivers.writeback.way import Way
from bockd.errors import DamagedError, VolumeTakenError, from_os_error
from bockd.model import BLOCK_SIZE, GIB, Extent
from bockd.pool.caches import LogReach
from bockd.pool.device import BlockDevice
from bockd.publictexts import UNREADABLE_LOG, concealed
from bockd.runtime.steps import Signal, Steps

MOST_PARTS = 1000
"""Of what is dirty, that one step of a read looks up: a millisecond of work."""

LONGEST_ZEROS = 4 * GIB
"""What one record makes zeros, at most: the work it makes in the map is done at once."""


class WriteBackDevice:
    """A `BlockDevice`. For the owner thread."""

    def __init__(self, below: BlockDevice, way: Way) -> None:
        self.below = below
        self.way = way

    @property
    def size_bytes(self) -> int:
        return self.below.size_bytes

    @property
    def read_only(self) -> bool:
        return self.below.read_only

    # -- for the driver --------------------------------------------------------------------------

    def dirty(self) -> tuple[int, float | None]:
        """See Way.dirty."""
        return self.way.dirty()

    def carried_out(self) -> int:
        """Return how many requests the device below has carried out of what is written back: it
        changes as long as that goes on, also within an epoch. For any thread."""
        current = self.way.log
        return 0 if current is None else current.carried_out

    def reach(self) -> LogReach | None:
        """Return how far the log has come that the driver knows to be dirty; None if it knows of
        none, or the log has failed. Who commits that from time to time recognizes an older log in
        its place."""
        current = self.way.log
        if current is None or not current.announced or current.broken:
            return None
        return LogReach(current.id, current.noted, current.synced)

    async def note_known(self, reach: LogReach) -> None:
        """Keep in the log how far it has come as the driver has committed it: a record that says
        less later is older than the log. That a disk does not take it is left to the next write."""
        current = self.way.log
        if current is not None and current.id == reach.log:
            with suppress(BrokenLogError):
                await current.note_known(reach.done, reach.synced)

    @property
    def trouble(self) -> str | None:
        """See Way.trouble."""
        return self.way.trouble

    def write_through(self) -> None:
        """See Way.write_through."""
        self.way.write_through()

    def write_back(self) -> None:
        """See Way.write_back."""
        self.way.write_back()

    def hold(self, *, held: bool) -> None:
        """See Way.hold."""
        self.way.hold(held=held)

    async def drain(self) -> None:
        """See Way.drain."""
        await self.way.drain()

    def lose(self) -> None:
        """See Way.lose."""
        self.way.lose()

    def retire(self) -> None:
        """Put nothing into the log any more: the volume is given back, in order."""
        self.way.write_through()

    async def close(self) -> None:
        """See Way.close."""
        await self.way.close()

    # -- the immediate forms ---------------------------------------------------------------------

    def try_read(self, offset: int, into: memoryview) -> bool:
        self.way.check()
        if self.way.log is None:
            return self.below.try_read(offset, into)
        dirty: list[Part] = []
        done = 0
        pieces = self.way.log.dirty.find(offset, offset + len(into), AT_ONCE_PARTS + 1)
        for start, end, record in pieces:
            part, done = into[start - offset : end - offset], end - offset
            if record is not None:
                dirty.append((record, start, part))
            elif not self.below.try_read(start, part):
                return False
        if done < len(into) or (dirty and self.way.held):
            return False
        try:
            return not dirty or try_fill(dirty)
        except OSError:
            return False  # `read` has the time to look what it is

    def try_write(self, offset: int, data: memoryview) -> bool:
        current = self.way.log_open()
        if current is None or not current.has_room(len(data)) or len(data) > current.longest_data:
            return False
        try:
            current.append(Kind.WRITE, offset, len(data), data)
        except BrokenLogError:
            return False
        current.foresee()
        return True

    def try_trim(self, offset: int, length: int) -> bool:
        current = self.way.log_open()
        first, count = _whole_blocks(offset, length)
        if current is None or not current.has_room(0) or count > LONGEST_ZEROS:
            return False
        try:
            if count:
                current.append(Kind.TRIM, first, count)
        except BrokenLogError:
            return False
        return True

    def commit(self) -> None:
        self.way.check()

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        self.way.check()
        if self.way.log is None:
            return self.below.try_extents(offset, length, limit)
        length = min(length, LONGEST_BYTES)
        below = self.below.try_extents(offset, length, limit)
        return None if below is None else merged(self._runs(offset, length), below, limit)

    # -- the forms that wait ---------------------------------------------------------------------

    async def read(self, offset: int, into: memoryview) -> None:
        self.way.check()
        done = 0
        while done < len(into):
            done += await self._read_some(offset + done, into[done:])
            self.way.check()

    async def _read_some(self, offset: int, into: memoryview) -> int:
        """Read as much as is found at once. Return how much that was."""
        while self.way.held and self._is_dirty(offset, len(into)):
            # Somebody may have given it up, and have written there.
            await self.way.clean_or_pass()
            self.way.check()
        if self.way.log is None:
            await self.below.read(offset, into)
            return len(into)
        dirty, clean, done = list[Part](), list[Place](), 0
        pieces = self.way.log.dirty.find(offset, offset + len(into), MOST_PARTS)
        for start, end, record in pieces:
            part, done = into[start - offset : end - offset], end - offset
            if record is None:
                clean.append((start, part))
            else:
                dirty.append((record, start, part))
        if dirty:
            await self._read_log(dirty)
            self.way.check()
        for start, part in clean:
            await self.below.read(start, part)
            self.way.check()
        return done

    def _is_dirty(self, offset: int, length: int) -> bool:
        """Return whether any of a range is in the log."""
        if (current := self.way.log) is None:
            return False
        return any(True for _ in current.dirty.overlapping(offset, offset + length))

    async def _read_log(self, parts: list[Part]) -> None:
        try:
            await fill(parts)
        except DamagedError as error:
            self.way.fail(error)
            self.way.check()
        except OSError as error:
            doing = f"reading the write-back log of {self.way.image}"
            raise concealed(from_os_error(error, doing), UNREADABLE_LOG) from error

    async def write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            longest = BLOCK_SIZE if self.way.log is None else self.way.log.longest_data
            current = await self.way.choose(min(longest, len(data) - done))
            rest = data[done:]
            if current is None:
                await self._through_to(self.below.write(offset + done, rest))
                break
            piece = rest[: current.longest_data]
            if not current.has_room(len(piece)):
                continue
            with suppress(BrokenLogError):
                current.append(Kind.WRITE, offset + done, len(piece), piece)
                current.foresee()
                done += len(piece)
        self.way.check()

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        kind = Kind.ALLOCATE if allocate else Kind.ZERO
        await self._make_zeros(
            kind, offset, length, lambda at, n: self.below.zero(at, n, allocate=allocate)
        )

    async def trim(self, offset: int, length: int) -> None:
        await self._make_zeros(Kind.TRIM, *_whole_blocks(offset, length), self.below.trim)

    async def _make_zeros(
        self, kind: Kind, offset: int, length: int, below: Callable[[int, int], Steps[None]]
    ) -> None:
        end = offset + length
        while offset < end:
            current = await self.way.choose(0)
            if current is None:
                await self._through_to(below(offset, end - offset))
                break
            count = min(LONGEST_ZEROS, end - offset)
            with suppress(BrokenLogError):
                current.append(kind, offset, count)
                current.foresee()
                offset += count
        self.way.check()

    async def _through_to(self, change: Steps[None]) -> None:
        try:
            await change
        except VolumeTakenError:
            self.lose()
            raise
        finally:
            self.way.passed()

    async def flush(self) -> None:
        self.way.check()
        await self.way.flush()
        self.way.check()

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        self.way.check()
        if self.way.log is None:
            return await self.below.extents(offset, length, limit)
        length = min(length, LONGEST_BYTES)
        # Before the device below is asked: what is dirty now may be below, and clean, after that.
        over = list(self._runs(offset, length))
        return merged(over, await self.below.extents(offset, length, limit), limit)

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        assert self.way.log is not None
        return runs_of(self.way.log.dirty.overlapping(offset, offset + length), offset)

    async def cache(self, offset: int, length: int) -> None:
        self.way.check()
        await self.below.cache(offset, length)


class SharedWriteBackDevice(WriteBackDevice):
    """A `SharedDevice`: one over a device that another gateway may take."""

    lost: Signal


def _whole_blocks(offset: int, length: int) -> tuple[int, int]:
    """Return what a trim gives back: where it begins, and its length."""
    first = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
    return first, max(0, (offset + length) // BLOCK_SIZE * BLOCK_SIZE - first)
