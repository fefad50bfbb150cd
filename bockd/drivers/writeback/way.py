"""Which way changes of a volume with write-back go: into its log, or below.

That is decided when nothing is in the way: into the log, or, while nothing of the log is dirty, to
the device below. Changes of one way end before those of the other begin. The turn from one way to
the other is taken by one operation at a time, and all changes wait for it.

Invariants:
* Nothing is answered from a log before the driver has committed that it is dirty (`announced`), nor
  after the driver was asked to commit that nothing is (`ending`): that may come later, if nobody
  knows whether it was done.
* Nothing goes below past a log that would be replayed over it later.
* After an `await` the volume may be closed, taken or refused, and the log may be another one, or
  none: whoever goes on calls `check`, and decides anew.
* When `close` has ended, nothing is sent below and no file is touched any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.drivers.writeback.logfiles import LogFiles
from bockd.drivers.writeback.turning import Turning
from bockd.drivers.writeback.writer import Writer
from bockd.errors import BockdError, UnavailableError, UnreadableError, VolumeTakenError
from bockd.failpoints import Failpoint, hit
from bockd.pool.device import BlockDevice
from bockd.publictexts import UNREADABLE_LOG, concealed
from bockd.runtime.steps import Signal, Spawn, Steps, try_spawn
from bockd.runtime.waiting import Mutex, Pulse

log = logging.getLogger(__name__)


QUIET_LOOKS = 120
"""How often nothing must have been written between two calls of `look`, about as many seconds,
until the driver is told that nothing is dirty. To begin a log again is two commits of the driver's,
and a segment of zeros: a client that writes now and then, as an idle guest does, keeps its log."""


class Way:
    """Of one volume. For the owner thread."""

    def __init__(
        self,
        below: BlockDevice,
        image: str,
        opened: Log | None,
        *,
        make_log: Callable[[], Steps[Log | None]],
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
        on_unnotable: Callable[[], Steps[None]],
        on_closed: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        """`make_log` makes a new log, or returns None if there is no room for one."""
        self.below = below
        self.image = image
        self.failed = ""
        """Why the volume is refused."""
        self.log: Log | None = None
        self._writer: Writer | None = None
        self._on_dirty = on_dirty
        self._on_clean = on_clean
        self._on_unnotable = on_unnotable
        self._on_closed = on_closed
        self._spawn = spawn
        self._through = False
        self.held = False
        self._disk_failed = False
        """The log has failed: there is no other one until the volume is opened again."""
        self._may_begin = True
        """Nothing has kept a log from being begun since the last `look`."""
        self._why_through = ""
        self._taken = False
        self._closed = False
        self._turn = Mutex()
        self._turned = Pulse()
        self._files = LogFiles(make_log)
        self._ended = Signal()
        """Fires when it is closed, and nothing is being made or removed any more."""
        self._passing = 0
        """Changes that are on their way below, not by the log."""
        self._passed_count = 0
        """Those that have ended."""
        self._flushed_count = -1
        """Those of them that a flush below has covered. None has yet what an earlier process has
        answered, whose client may go on with this one."""
        self._said = ""
        self._looking = False
        self._looked_at = 0
        """The sequence of the log's last record at the last `look`."""
        self._quiet_looks = 0
        if opened is not None:
            self._take_log(opened)
            opened.announced = not opened.clean
            self.kick()

    def _take_log(self, taken: Log) -> None:
        self.log = taken
        self._writer = Writer(self.below, taken, self._spawn, self._on_error, self._on_unnotable)
        self._looked_at = self._quiet_looks = 0

    def kick(self) -> None:
        """Have what may be written below written."""
        if self._writer is not None:
            self._writer.kick()

    # -- for the driver --------------------------------------------------------------------------

    def dirty(self) -> tuple[int, float | None]:
        """Return what is in the log and not below, in bytes of the log, and since when, in seconds
        since the epoch."""
        current = self.log
        return (0, None) if current is None else (current.dirty_bytes, current.dirty_since())

    @property
    def trouble(self) -> str | None:
        """Why what is dirty is not written below, or why nothing is put into the log."""
        if self.failed:
            return self.failed
        if self.log is not None and self.log.broken:
            return f"the log cannot be used any more: {self.log.broken}"
        if self.held:
            return "the pool does not answer this gateway, so writes wait until they are below"
        if self._writer is not None and self._writer.error is not None:
            return f"what is dirty cannot be written below: {self._writer.error}"
        return self._why_through or None

    def write_through(self) -> None:
        """Answer new changes when the device below has: once all that is dirty is there."""
        self._through = True

    def write_back(self) -> None:
        """Answer new changes when they are in the log."""
        self._through = False

    def hold(self, *, held: bool) -> None:
        """Answer writes and flushes when the device below has them, and reads from there, for as
        long as the driver does not know whether it has the volume still."""
        self.held = held

    async def drain(self) -> None:
        """Have all that was answered before the call below, and flushed there. If nothing is dirty
        then, the driver is told. Raises BockdError: it is not below, or the driver cannot commit
        that it is."""
        self.check()
        current = self.log
        if current is not None and not self._through:
            await self._sync_and_write(current)
        if self._through or self.log is None or self.log.clean:
            await self.become_clean()
        await self.flush_below()

    async def _sync_and_write(self, dirty: Log) -> None:
        """Have all that is in the log below. If the log breaks, it is left to `become_clean`."""
        wanted = dirty.sequence
        try:
            await dirty.flush()
        except BrokenLogError:
            await self.become_clean()
            return
        await self._until(dirty, wanted)

    def look(self) -> None:
        """Do what is due: a barrier for what was written before the last call, another attempt to
        write below, telling the driver that nothing is dirty. Call this about every second."""
        self._may_begin = True
        current = self.log
        if self._taken or self.failed or self._closed or current is None or self._looking:
            return
        looked_at, self._looked_at = self._looked_at, current.sequence
        self._quiet_looks = self._quiet_looks + 1 if current.sequence == looked_at else 0
        wanted = 1 if current.ending else QUIET_LOOKS
        if current.broken or (current.clean and self._quiet_looks >= wanted):
            self._begin_look(self.become_clean)
        elif 0 < current.records.current.first <= looked_at:
            self._begin_look(lambda: self._flush_log(current))
        else:
            self.kick()

    def _begin_look(self, look: Callable[[], Steps[None]]) -> None:
        self._looking = True

        async def run() -> None:
            try:
                await look()
            except BrokenLogError:
                pass  # it says so itself
            except BockdError as error:
                self._say(error)
            finally:
                self._looking = False

        if not try_spawn(self._spawn, run()):
            self._looking = False

    def _say(self, error: BockdError) -> None:
        """Log an error; what is tried every second fails as it did before, mostly."""
        level = logging.DEBUG if str(error) == self._said else logging.WARNING
        log.log(level, "write-back of %s: %s", self.image, error)
        self._said = str(error)

    async def _flush_log(self, current: Log) -> None:
        await current.flush()
        self.kick()

    def lose(self) -> None:
        """Answer nothing any more: the volume was taken. The log stays."""
        self._taken = True
        self._stop()

    async def close(self) -> None:
        """Sync the log and close it: what is dirty is kept for the next opening. Nothing is sent
        below any more; what is on its way there is not waited for. Doing so again waits for the
        first time."""
        if self._closed:
            await self._ended
            return
        self._closed = True
        self._stop()
        try:
            await self._files.close(self.log)
        finally:
            self._on_closed()
            self._ended.fire()

    def _stop(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        if self.log is not None:
            self.log.changed.fire()
        self._turned.fire()

    def check(self) -> None:
        """Raise BockdError if nothing is answered any more."""
        if self._taken:
            raise VolumeTakenError("another gateway has taken the volume")
        if self.failed:
            raise concealed(UnreadableError(self.failed), UNREADABLE_LOG)
        if self._closed:
            raise UnavailableError("the volume is closed; what is dirty is kept in its log")

    def fail(self, error: BockdError) -> None:
        """Refuse the volume: what is dirty is lost."""
        if not self.failed:
            self.failed = (
                f"{error}. Some of what was written since the last write-back cannot be read: see "
                "to the disk, and reopen the volume (bock volume reopen), which reads the log "
                "again. Only if it is lost for good, accept that (bock volume discard-cache)"
            )
            log.error("%s", self.failed)
            self._stop()

    # -- which way -------------------------------------------------------------------------------

    def log_open(self) -> Log | None:
        """Return the log if changes go into it now."""
        current = self.log
        if self._through or self.held or self._turn.held or self._taken:
            return None
        if self.failed or self._closed:
            return None
        return current if current is not None and current.announced and not current.broken else None

    async def choose(self, data_bytes: int) -> Log | None:
        """Wait until a change may be made. Return the log, with room for a record with so much
        data; None: below, and `passed` is to be called when it has ended there."""
        while True:
            self.check()
            if self._turn.held:
                if self.log is not None and self.log.ending and self.log.may_be_passed:
                    self._pass()  # the driver's commit that nothing is dirty may last
                    return None
                await self._turned.wait()
                continue
            current = self.log_open()
            if current is not None:
                if current.has_room(data_bytes):
                    return current
                await self._make_room(current, data_bytes)
            elif self._may_begin and not self._goes_through():
                await self._begin()
            elif self.log is None or self.log.may_be_passed:
                self._pass()
                return None
            else:
                await self.clean_or_pass()

    def _goes_through(self) -> bool:
        broken = self.log is not None and bool(self.log.broken)
        return self._through or self.held or self._disk_failed or broken

    async def clean_or_pass(self) -> None:
        """Have nothing dirty. That the driver cannot commit it is no reason to fail a change or a
        flush, if that may go below all the same. Raises BockdError."""
        try:
            await self.become_clean()
        except BockdError as error:
            if self.log is None or not self.log.may_be_passed:
                raise
            self._say(error)

    def _pass(self) -> None:
        self._passing += 1

    def passed(self) -> None:
        """Count a change that has ended below."""
        self._passing -= 1
        self._passed_count += 1
        if not self._passing:
            self._turned.fire()

    async def _begin(self) -> None:
        """Have the driver commit that the volume is dirty, with a log that is ready for it. If that
        cannot be had, `_may_begin` says so. Raises BockdError."""
        async with self._turning():
            self.check()
            if self._announced() or self._goes_through() or not self._may_begin:
                return
            if self.log is not None and self.log.ending:
                await self._end_before_another(self.log)
                if self._goes_through() or not self._may_begin:
                    return
            await self._wait_for_passing()
            await self.flush_below()
            if self.log is None:
                made = await self._files.make(self.check)
                if made is None:
                    self._goes_through_because("there is no room for a log")
                    return
                self._take_log(made)
            assert self.log is not None
            await self._announce(self.log)

    async def _end_before_another(self, current: Log) -> None:
        """End a log for which that has failed. If it fails again, `_may_begin` says so. Raises
        BockdError."""
        try:
            await self._end_log(current)
        except BockdError as error:
            self._goes_through_because(f"the pool cannot note that nothing is dirty: {error}")
        self.check()

    async def _announce(self, current: Log) -> None:
        """Have the driver commit that a log is dirty. Raises BockdError."""
        hit(Failpoint.WRITEBACK_ANNOUNCING)
        try:
            await self._on_dirty(current.id)
        except VolumeTakenError:
            self.lose()
            raise
        except BockdError as error:
            self._goes_through_because(f"it cannot be noted that the volume is dirty: {error}")
            return
        hit(Failpoint.WRITEBACK_ANNOUNCED)
        self.check()
        current.announced = True
        self._why_through = ""

    def _goes_through_because(self, reason: str) -> None:
        """Begin no log until the next `look`."""
        self._may_begin = False
        if reason != self._why_through:
            log.warning("%s is written through: %s", self.image, reason)
        self._why_through = reason

    def _announced(self) -> bool:
        return self.log is not None and self.log.announced and not self.log.broken

    def _turning(self) -> Turning:
        return Turning(self._turn, self._turned)

    async def _wait_for_passing(self) -> None:
        while self._passing:
            await self._turned.wait()
            self.check()

    async def flush_below(self) -> None:
        """Flush the device below, unless nothing went there that was not flushed. Raises
        BockdError."""
        self.check()
        covered = self._passed_count
        if self._flushed_count < covered:
            await self.below.flush()
            self._flushed_count = max(self._flushed_count, covered)
            self.check()

    async def _make_room(self, current: Log, data_bytes: int) -> None:
        """Do something for room in the log, or wait for somebody who does. Raises BockdError: what
        is dirty cannot be written below."""
        if not current.crowded:
            if current.spare is None:
                if current.preparing:
                    await current.changed.wait()
                    return
                await current.prepare()
            if current.spare is not None:
                if current is self.log_open() and not current.has_room(data_bytes):
                    current.switch()
                    self._own_barrier(current)
                return
        if current.broken:
            return
        if current.clean:
            # All it has is the segment that is full, and there is no room for another one.
            await self.clean_or_pass()
            return
        with suppress(BrokenLogError):
            await current.flush()
            epochs = current.records.epochs
            first = epochs[0].barrier if epochs else current.done
            await self._until(current, first)

    def _own_barrier(self, current: Log) -> None:
        if not self._looking:
            self._begin_look(lambda: self._flush_log(current))

    async def _until(self, current: Log, sequence: int) -> None:
        """Wait until all of a log up to a sequence is below for good. Raises BockdError."""
        if current is not self.log:
            return  # it was removed, for all of it is below
        assert self._writer is not None
        try:
            await self._writer.until(sequence)
        except BockdError:
            self.check()  # which may know better
            raise

    def _on_error(self, error: BockdError) -> None:
        """An attempt to write below has failed."""
        if isinstance(error, VolumeTakenError):
            self.lose()
        elif isinstance(error, UnreadableError):
            self.fail(error)

    async def become_clean(self) -> None:
        """Have all that is dirty below, and the driver commit that nothing is. Raises BockdError.
        Changes wait until they may go below."""
        async with self._turning():
            self.check()
            if self.log is not None:
                await self._end_log(self.log)

    async def _end_log(self, current: Log) -> None:
        if not current.clean or current.broken:
            await self._write_all(current)
        current.announced, current.ending = False, True
        hit(Failpoint.WRITEBACK_CLEANING)
        try:
            await self._on_clean()
        except VolumeTakenError:
            self.lose()
            raise
        hit(Failpoint.WRITEBACK_CLEANED)
        if self._closed:
            return  # whoever opens the volume next removes it
        self.log = self._writer = None
        broken, self._why_through = current.broken, ""
        if broken:
            self._disk_failed = True
            self._why_through = f"its log has failed: {broken}"
        await self._files.remove(current)

    async def _write_all(self, current: Log) -> None:
        with suppress(BrokenLogError):
            await current.flush()
            await self._until(current, current.sequence)
        if current.broken:
            with suppress(BrokenLogError):
                await current.note_end()
            current.close_unsynced()
            if not current.clean:
                await self._until(current, current.sequence)
            # Should the driver not commit it, nothing is replayed over what comes later.
            with suppress(BrokenLogError):
                await current.note_end()
        self.check()

    async def flush(self) -> None:
        """Make all that was answered before the call survive power loss. Raises BockdError."""
        current = self.log
        # One that is broken would be replayed without what it could not sync, over all that is
        # below: until the driver has committed that it is not, nothing of that is durable.
        if current is not None and (current.broken or not current.clean):
            try:
                await current.flush()
            except BrokenLogError:
                await self.become_clean()
            else:
                self.kick()
                if self.held:
                    await self.clean_or_pass()
                elif current.announced:
                    return  # what went below before was flushed then
        await self.flush_below()
