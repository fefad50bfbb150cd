"""Writes a log below: one epoch after the other, several requests of an epoch at once.

Invariants:
* Nothing of an epoch is sent before all of the one before it has succeeded, and then a flush.
* Nothing of it is sent before the progress of the one before that is durable: a log is replayed
  from its progress on, and must not be replayed over what is two epochs newer.
* Without a progress that the disk takes, nothing is sent before the driver has committed that
  (`on_unnotable`): nobody knows any more from the log alone how much of it is below.
* An epoch that has failed is sent again, as a whole, when none of its requests is under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from bockd.drivers.writeback.epochs import Epoch, Job, cut, jobs_of
from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.drivers.writeback.reading import fill
from bockd.drivers.writeback.records import Kind
from bockd.errors import BockdError, DamagedError, DeviceError, UnavailableError, UnreadableError
from bockd.failpoints import Failpoint, hit
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Spawn, Steps, blocking, try_spawn
from bockd.runtime.waiting import Pulse

log = logging.getLogger(__name__)

IN_FLIGHT = 16
"""Requests below at once, each of 1 MiB at most. All logs of a directory share a bound, too
(flight.py)."""


class Writer:
    """Of one log. For the owner thread."""

    def __init__(
        self,
        below: BlockDevice,
        source: Log,
        spawn: Spawn,
        on_error: Callable[[BockdError], None],
        on_unnotable: Callable[[], Steps[None]],
    ) -> None:
        """`on_error` is told of each attempt that has failed. `on_unnotable` is awaited before
        anything is sent of a log whose disk does not take its progress any more."""
        self.error: BockdError | None = None
        """Why the last attempt has failed."""
        self.stopped = False
        self.running = False
        self._below = below
        self._log = source
        self._spawn = spawn
        self._on_error = on_error
        self._on_unnotable = on_unnotable
        self._is_known_unnotable = False
        self._said = ""
        self._pulse = Pulse()

    def kick(self) -> bool:
        """Begin to write what may be written, unless that goes on. Return whether it does."""
        if self.running or self.stopped:
            return self.running
        if self._log.ready() is not None or self._log.settled < self._log.done:
            self.running = True
            if not try_spawn(self._spawn, self._run()):
                self.running = False
                self.error = UnavailableError("the log cannot be written now: no more threads")
                self._pulse.fire()
        return self.running

    def stop(self) -> None:
        """Send nothing below any more."""
        self.stopped = True
        self._log.lane.wake()
        self._pulse.fire()

    async def until(self, sequence: int) -> None:
        """Wait until all up to a sequence, which is synced, is below for good. Raises BockdError:
        the attempt has failed."""
        attempted = self.running
        while self._log.settled < sequence:
            if self.stopped:
                raise UnavailableError("the volume is closed; what is dirty is kept in its log")
            if not self.running:
                if attempted and self.error is not None:
                    raise self.error
                attempted = True
                if not self.kick() and self.error is not None:
                    raise self.error
            await self._pulse.wait()

    async def _run(self) -> None:
        try:
            self.error = None
            while not self.stopped:
                epoch = self._log.ready()
                if epoch is None:
                    await self._log.note()
                    if self._log.ready() is None:
                        break
                else:
                    await self._write(epoch)
                self._pulse.fire()
        except BrokenLogError:
            pass  # whoever is told of it goes on
        except BockdError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001 - no memory, or a fault of ours: not at once again
            self._failed(DeviceError(f"{type(error).__name__}: {error}"), cause=error)
        finally:
            self.running = False
            self._pulse.fire()
            self._log.changed.fire()

    def _failed(self, error: BockdError, cause: Exception | None = None) -> None:
        """Note why an attempt has failed; `cause`: it is none of our errors."""
        # Each attempt fails as the one before, mostly.
        again = self.stopped or str(error) == self._said
        level = logging.DEBUG if again else logging.WARNING if cause is None else logging.ERROR
        log.log(level, "writing the log %s below: %s", self._log.path, error, exc_info=cause)
        self._said = str(error)
        self.error = error
        self._on_error(error)

    async def _write(self, epoch: Epoch) -> None:
        if self._log.unnotable and not self._is_known_unnotable:
            await self._on_unnotable()
            self._is_known_unnotable = True
            if self.stopped:
                return
        await _Sending(self, epoch, self._spawn).run()
        if self.stopped:
            return
        hit(Failpoint.WRITEBACK_SENT)
        await self._below.flush()
        self._log.carried_out += 1
        if self.stopped:
            return
        hit(Failpoint.WRITEBACK_FLUSHED)
        while not self._log.settle(epoch):
            await blocking(_nothing)
            if self.stopped:
                return

    def wake(self) -> None:
        """Have whoever waits for room below look whether that is given up."""
        self._log.lane.wake()

    async def note(self) -> None:
        """Note the progress of the epoch before."""
        await self._log.note()

    async def send(self, job: Job, is_given_up: Callable[[], bool]) -> None:
        """Carry a job out, unless that is given up while it waits. Raises BockdError."""
        if job.kind is Kind.WRITE:
            while job.length:
                granted = await self._log.lane.take(job.length, is_given_up)
                if not granted:
                    return
                part, job = cut(job, granted)
                try:
                    await self._send_data(part)
                finally:
                    self._log.lane.give_back(granted)
            return
        if job.kind is Kind.TRIM:
            await self._below.trim(job.offset, job.length)
        else:
            keeps_space = job.kind is Kind.ALLOCATE
            await self._below.zero(job.offset, job.length, allocate=keeps_space)
        self._log.carried_out += 1

    async def _send_data(self, job: Job) -> None:
        data = await self._data_of(job)
        if not self.stopped:
            await self._below.write(job.offset, memoryview(data))
            self._log.carried_out += 1

    async def _data_of(self, job: Job) -> bytearray:
        data = bytearray(job.length)
        view = memoryview(data)
        parts = [
            (record, start, view[start - job.offset : end - job.offset])
            for start, end, record in job.pieces
        ]
        try:
            await fill(parts)
        except (OSError, DamagedError) as error:
            raise UnreadableError(
                f"what was to be written back cannot be read from {self._log.path}: {error}"
            ) from error
        return data


def _nothing() -> None:
    """Take a moment, in which others go on."""


class _Sending:
    """The jobs of one epoch under way, and the progress of the epoch before."""

    def __init__(self, writer: Writer, epoch: Epoch, spawn: Spawn) -> None:
        self._writer = writer
        self._spawn = spawn
        self._jobs: Iterator[Job] = jobs_of(epoch)
        self._error: Exception | None = None
        self._under_way = 0
        """Workers that have begun. One that begins when all is done has nothing to do."""
        self._ended = Pulse()

    async def run(self) -> None:
        """Carry all out. Raises what one of them has raised, once none is under way."""
        for _ in range(IN_FLIGHT):
            if not try_spawn(self._spawn, self._work()):
                break
        try:
            await self._writer.note()
        except Exception as error:  # noqa: BLE001 - raised below, when nothing is under way
            self._error = error
            self._writer.wake()
        await self._work()
        while self._under_way:
            await self._ended.wait()
        if self._error is not None:
            raise self._error

    def _is_given_up(self) -> bool:
        return self._error is not None or self._writer.stopped

    async def _work(self) -> None:
        self._under_way += 1
        try:
            while not self._is_given_up():
                job = next(self._jobs, None)
                if job is None:
                    return
                await self._writer.send(job, self._is_given_up)
                hit(Failpoint.WRITEBACK_REQUEST)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._error = self._error or error
            self._writer.wake()
        finally:
            self._under_way -= 1
            self._ended.fire()
