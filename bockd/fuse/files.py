"""Open files: reads, writes and flushes of one volume or snapshot, and their counters.

The kernel caches nothing of these files (direct I/O), so every read and write arrives here and goes
to the engine that the NBD server uses: both views always agree. A write is answered when the
engine's contract says so, after `commit`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from time import perf_counter_ns
from typing import Any, Final, TypeVar

from pyfuse3 import FUSEError

from bockd.fuse.delays import Delays
from bockd.fuse.errors import fuse_errno
from bockd.fuse.limits import MAX_INLINE_READ_BYTES, MAX_REQUEST_BYTES, MIN_ZERO_BYTES
from bockd.model import DeviceOperation
from bockd.nbd.server.durations import Operation
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.statistics import ExportStatistics
from bockd.runtime.steprunner import StepRunner
from bockd.throttle.gates import Gate

T = TypeVar("T")

_ZEROS: Final = bytes(MAX_REQUEST_BYTES)

_ANSWER: Final = memoryview(bytearray(MAX_INLINE_READ_BYTES))
"""Where inline reads are put. pyfuse3 hands an answer to the kernel before anything else runs."""


class OpenFile:
    """One open file: a hold on its node. All methods raise FUSEError only."""

    def __init__(
        self,
        export: OpenExport,
        runner: StepRunner,
        statistics: ExportStatistics,
        gate: Gate,
        delays: Delays,
        flags: int,
    ) -> None:
        self.export = export
        self._gate = gate
        self._delays = delays
        self._device = export.device
        self._runner = runner
        self._statistics = statistics
        # O_SYNC contains O_DSYNC's bit.
        self._durable = bool(flags & os.O_DSYNC)

    def read_now(self, offset: int, length: int) -> memoryview | bytes | None:
        """Read as `read` does if that needs no waiting; None if it would. The caller must hand the
        data on before anything else is read."""
        started = perf_counter_ns()
        length = min(length, self._device.size_bytes - offset)
        if length <= 0:
            return b""
        if length > MAX_INLINE_READ_BYTES or self._gate.limited:
            return None
        into = _ANSWER[:length]
        try:
            if not self._device.try_read(offset, into):
                return None
        except Exception as error:
            self._count_read(length)
            raise self._failed("read", error) from error
        self._count_read(length)
        self._statistics.durations.add(Operation.READ, perf_counter_ns() - started)
        return into

    async def read(self, offset: int, length: int) -> memoryview | bytes:
        """Read up to `length` bytes: fewer at the end of the volume, none behind it."""
        length = min(length, self._device.size_bytes - offset)
        if length <= 0:
            return b""
        if self._gate.limited:
            await self._gate.passed(reads=True, length_bytes=length)
        self._count_read(length)
        into = memoryview(bytearray(length))
        steps = self._as_profiled(
            DeviceOperation.READ,
            offset,
            length,
            lambda: self._runner.run(self._device.read(offset, into)),
        )
        await self._counted("read", Operation.READ, steps)
        return into

    def write_now(self, offset: int, data: bytes) -> int | None:
        """Write as `write` does if that needs no waiting; None, with nothing changed, if it
        would."""
        started = perf_counter_ns()
        data = self._before_end(offset, data)
        if self._durable or self._gate.limited or not data or _is_zeros(data):
            return None
        try:
            if not self._device.try_write(offset, memoryview(data)):
                return None
            self._device.commit()
        except Exception as error:
            self._count_write(len(data))
            raise self._failed("write", error) from error
        self._count_write(len(data))
        self._statistics.durations.add(Operation.WRITE, perf_counter_ns() - started)
        return len(data)

    async def write(self, offset: int, data: bytes) -> int:
        """Write, and return the number of bytes written: less than the length of `data` when it
        crosses the end of the volume. Raise EFBIG when it begins there, because a volume does not
        grow by being written to."""
        data = self._before_end(offset, data)
        if self._gate.limited and data:
            moved_bytes = 0 if _is_zeros(data) else len(data)
            await self._gate.passed(reads=False, length_bytes=moved_bytes)
        self._count_write(len(data))
        profiled = DeviceOperation.TRIM if _is_zeros(data) else DeviceOperation.WRITE
        steps = self._as_profiled(
            profiled, offset, len(data), lambda: self._write(offset, data), fua=self._durable
        )
        return await self._counted("write", Operation.WRITE, steps)

    async def _as_profiled(
        self,
        operation: DeviceOperation,
        offset: int,
        length: int,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        fua: bool = False,
    ) -> T:
        """Do the work, and wait as long as the device profile of the volume says, if it has one.
        Raises OSError, with the work not done, if the profile lets it fail."""
        plan = self._gate.plan(operation, offset, length, self._device.size_bytes, fua=fua)
        if plan is None:
            return await work()
        if plan.error is None:
            result = await work()
            await self._delays.due(self._gate, plan)
            return result
        await self._delays.due(self._gate, plan)
        raise OSError(getattr(errno, plan.error), "the device profile lets it fail")

    async def _write(self, offset: int, data: bytes) -> int:
        if _is_zeros(data):
            await self._runner.run(self._device.zero(offset, len(data), allocate=False))
        else:
            view = memoryview(data)
            if data and self._device.try_write(offset, view):
                self._device.commit()
            elif data:
                await self._runner.run(self._device.write(offset, view))
        if self._durable:
            started = perf_counter_ns()
            self._statistics.flushes += 1
            await self._runner.run(self._device.flush())
            self._statistics.durations.add(Operation.FLUSH, perf_counter_ns() - started)
        return len(data)

    def _before_end(self, offset: int, data: bytes) -> bytes:
        """What of the data lies within the volume. Raises FUSEError (EFBIG) if it begins behind
        it."""
        room = self._device.size_bytes - offset
        if room <= 0 and data:
            self._statistics.errors += 1
            raise FUSEError(errno.EFBIG)
        return data[:room]

    def _count_read(self, length: int) -> None:
        self._statistics.reads += 1
        self._statistics.read_bytes += length

    def _count_write(self, length: int) -> None:
        self._statistics.writes += 1
        self._statistics.written_bytes += length

    async def sync(self) -> None:
        """Flush for fsync and fdatasync: writes that were answered before survive a power loss."""
        self._statistics.flushes += 1
        steps = self._as_profiled(
            DeviceOperation.FLUSH, 0, 0, lambda: self._runner.run(self._device.flush())
        )
        await self._counted("flush", Operation.FLUSH, steps)

    async def _counted(self, called: str, operation: Operation, steps: Coroutine[Any, Any, T]) -> T:
        started = perf_counter_ns()
        try:
            result = await steps
        except Exception as error:
            raise self._failed(called, error) from error
        self._statistics.durations.add(operation, perf_counter_ns() - started)
        return result

    def _failed(self, called: str, error: Exception) -> FUSEError:
        self._statistics.failed(called, error)
        return FUSEError(fuse_errno(error))


def _is_zeros(data: bytes) -> bool:
    """Whether a write is large and all zeros. pyfuse3 passes no fallocate on, so this is how
    space is given back through a file. Other data differs in its first bytes: cheap."""
    return len(data) >= MIN_ZERO_BYTES and _ZEROS.startswith(data)
