"""The directory of the logs, and their bound.

    bockd-write-back.lock    held while a daemon uses the directory, and says what it is
    bockd-write-back.json    of which pool the logs are (binding.py)
    IMAGE.ID/                the log of a volume that is dirty, or was when it was last open

A log counts if the driver's record says so, by its id. One is *void*, and is removed, when the
record says that the volume is dirty in no log, or is gone: what it has is below, or was given up.
Of a volume that is there, one that was given up with something in it is put aside (aside.py).
While a record names another log of the same volume, all of them stay.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bockd.descriptors import SEGMENTS_SHARE, portion
from bockd.directories import claim_directory
from bockd.drivers.writeback.aside import has_unwritten, is_aside, put_aside
from bockd.drivers.writeback.binding import Binding, LoggedPool
from bockd.drivers.writeback.damagedlog import recover_prefix
from bockd.drivers.writeback.device import SharedWriteBackDevice, WriteBackDevice
from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.drivers.writeback.progress import Progress
from bockd.drivers.writeback.recovery import create, recover
from bockd.drivers.writeback.salvage import DamagedLog, Salvage
from bockd.drivers.writeback.segment import SEGMENT_BYTES, log_call, taken_by
from bockd.drivers.writeback.space import Space
from bockd.drivers.writeback.way import Way
from bockd.errors import BockdError, DamagedError, InvalidRequestError, from_os_error, named
from bockd.model import MIB
from bockd.pool.caches import LogReach
from bockd.pool.device import BlockDevice, SharedDevice
from bockd.pool.figures import Figure
from bockd.publictexts import UNREADABLE_LOG, concealed
from bockd.runtime.steps import Spawn, Steps, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)

MIN_SEGMENTS = 4
"""The bound has room for so many: with less, writes would wait all the time."""

_LOCK = "bockd-write-back.lock"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_ID_BYTES = 8
_NAME_OF_LOG = re.compile(rf"{_NAME.pattern}\.[0-9a-f]{{{2 * _ID_BYTES}}}")
"""Directories of other names, as one that somebody has moved aside, are left alone."""

_ADVICE = (
    "Only if it is lost for good, go on without it, with the state that was last written back "
    "(bock volume discard-cache)"
)


class WriteBackDirectory:
    """For the owner thread, but for `open_directory`."""

    def __init__(
        self,
        path: Path,
        space: Space,
        spawn: Spawn,
        lock: int,
        binding: Binding,
        clock: Callable[[], float],
        segment_bytes: int,
    ) -> None:
        self.path = path
        self.space = space
        self._spawn = spawn
        self._lock = lock
        self._binding = binding
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._open: dict[str, WriteBackDevice | None] = {}
        """By image; None while one is being opened."""
        self._recovering = Mutex()
        self._aside = {one for one in self.path.iterdir() if is_aside(one)}
        self._counting = False
        for one in (*self._logs(), *self._aside):
            self.space.set(one, taken_by(one))

    @classmethod
    def open_directory(
        cls,
        path: Path,
        size_bytes: int,
        spawn: Spawn,
        pool: LoggedPool,
        *,
        volume_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> WriteBackDirectory:
        """Make the directory if need be; what is dirty in it stays. Each log may take
        `volume_bytes` of the bound; None: all of it. Blocks.

        Raises:
            InUseError: another daemon has it.
            ConflictError: its logs are another pool's, or this pool was put back to an older state.
            InvalidRequestError: it has something else, or the bound is too small.
            BockdError: it cannot be read or written, or is damaged.
        """
        if size_bytes < MIN_SEGMENTS * segment_bytes:
            raise InvalidRequestError(
                f"write-back needs {MIN_SEGMENTS * segment_bytes} bytes at least, not {size_bytes}"
            )
        lock = claim_directory(path, _LOCK, "the write-back logs")
        try:
            has_logs = any(is_log(one) for one in path.iterdir())
            binding = Binding.open(path, pool, has_logs=has_logs)
            space = Space(_bounded(path, size_bytes, segment_bytes), volume_bytes)
            return cls(path, space, spawn, lock, binding, clock, segment_bytes)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise from_os_error(error, f"looking for logs in {path}") from error
            raise

    @property
    def id(self) -> str:
        """What names the directory for good: the pool's index counts the logs begun here by it."""
        return self._binding.id

    def release(self) -> None:
        """Give the directory up. No device is open."""
        assert not self._open
        os.close(self._lock)

    # -- logs ------------------------------------------------------------------------------------

    def images(self) -> list[str]:
        """Return of which images there are logs here. For any thread; blocks, as long as the disk
        hangs. Raises BockdError."""
        with named(f"looking for logs in {self.path}"):
            return sorted({_image_of(one) for one in self._logs()})

    def has(self, image: str, log_id: str) -> bool:
        """Return whether there is a log here. For any thread; blocks, as long as the disk hangs.
        Raises BockdError."""
        return has_log(self.path, image, log_id)

    async def refuse_missing(self, image: str, log_id: str) -> None:
        """Raise DamagedError if there is no log of that id here, and BockdError if the disk does
        not tell."""
        try:
            is_here = await log_call(self.has, image, log_id)
        except BockdError as error:
            raise concealed(error, UNREADABLE_LOG) from error
        if not is_here:
            raise concealed(
                DamagedError(
                    f"the volume is dirty in the log {log_path(self.path, image, log_id)}, which "
                    "is missing: put it back (under this name only when it is complete), and "
                    f"reopen the volume (bock volume reopen). {_ADVICE}"
                ),
                UNREADABLE_LOG,
            )

    def aside(self) -> list[Path]:
        """Return what was given up and put aside."""
        return sorted(self._aside)

    def figures(self, left: Sequence[float] = ()) -> list[Figure]:
        """Return what the logs take, and how it is with writing them back. `left`: since when the
        volumes are dirty in logs here that are not open, though they should be."""
        devices, now = [one for one in self._open.values() if one is not None], self._clock()
        opened = [since for one in devices if (since := one.dirty()[1]) is not None]
        waiting = [now - since for since in (*opened, *left)]
        troubled = [one for one in devices if one.trouble is not None and one.dirty()[0]]
        return [
            Figure(
                "write_back_used_bytes",
                "What the logs' files take, with those that were put aside.",
                self.space.used_bytes,
            ),
            Figure(
                "write_back_limit_bytes", "The most that they may take.", self.space.limit_bytes
            ),
            Figure(
                "write_back_oldest_seconds",
                "How long the oldest write waits that the cluster does not have yet; 0: none does.",
                max(0.0, 0.0, *waiting),
            ),
            Figure(
                "write_back_troubled_volumes",
                "Volumes with writes that only this gateway has, and that it cannot write back or "
                "cannot open (the dashboard says why), or, after a start, has not opened yet.",
                len(troubled) + len(left),
            ),
            Figure(
                "write_back_logs_aside",
                "Logs that were given up with something in them, and are kept until they are "
                "removed.",
                len(self._aside),
            ),
        ]

    async def discard(self, image: str, *, keep: bool) -> None:
        """Remove the logs of an image, which is not open; but with `keep`, put those aside that
        have something that is not below. Raises BockdError."""
        assert image not in self._open
        await self._remove_void(image, keep=keep)

    async def _remove_void(self, image: str, *, keep: bool) -> None:
        with named(f"removing the logs of {image} from {self.path}"):
            found = await log_call(self._logs_of, image)
            # Somebody may have removed one that this could not: that counts no more.
            failed = [one for one in self.space.void if _image_of(one) == image]
            for path in sorted({*found, *failed}):
                # Of one that has failed, the disk may not have taken that all of it is below.
                kept = keep and path not in self.space.void
                if kept and await log_call(has_unwritten, path):
                    aside = await log_call(put_aside, path)
                    self._aside.add(aside)
                    self.space.set(path, 0)
                    self.space.set(aside, await log_call(taken_by, aside))
                    log.warning("the write-back log %s was given up; %s", path, kept_aside(aside))
                    continue
                log.info("the write-back log %s is void, and is removed", path)
                await self.space.remove(path)

    async def _count_aside(self) -> None:
        """Give back the room of what somebody has removed that was put aside."""
        try:
            for path in self.aside():
                if not await log_call(path.exists):
                    self._aside.remove(path)
                    self.space.set(path, 0)
        except OSError as error:
            log.debug("what was put aside counts on: %s", error)
        finally:
            self._counting = False

    def _logs(self) -> list[Path]:
        return sorted(one for one in self.path.iterdir() if is_log(one))

    def _logs_of(self, image: str) -> list[Path]:
        return [one for one in self._logs() if _image_of(one) == image]

    # -- devices ---------------------------------------------------------------------------------

    async def open(
        self,
        below: BlockDevice,
        image: str,
        dirty: LogReach | None,
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
        on_unnotable: Callable[[], Steps[None]],
    ) -> WriteBackDevice:
        """Put write-back in front of a volume that was just taken.

        `dirty` is what the driver's record, read after that, says of the log that has what is
        dirty; None if nothing is: then logs of it that are here are void. `on_dirty` is awaited
        before the first write is answered from a log: it commits that the log of that id is dirty,
        and counts it. `on_clean` commits that nothing is any more: when it returns, nothing that
        was asked for earlier is committed later, though that had raised an error. Neither is called
        while the other one runs; one that raises VolumeTakenError makes the volume lost. After
        `on_clean`, whatever it raised, `on_dirty` is not called with that log's id. `on_unnotable`
        commits that more may be below than the progress of the log that is dirty says.

        Raises:
            DamagedError: that log is not here, not whole, or older than what the record says, or
                the record is older than the log.
            BockdError: it cannot be read.
        """
        assert _NAME.fullmatch(image), image
        assert image not in self._open, "it is open"
        self._open[image] = None
        try:
            if dirty is None:
                await self._remove_void(image, keep=True)
            opened = None if dirty is None else await self._recover(image, dirty)
            device = self._device(below, image, opened, on_dirty, on_clean, on_unnotable)
        except BaseException as error:
            del self._open[image]
            if isinstance(error, BockdError):
                concealed(error, UNREADABLE_LOG)
            raise
        self._open[image] = device
        return device

    async def _recover(self, image: str, dirty: LogReach) -> Log:
        path = log_path(self.path, image, dirty.log)
        await self.refuse_missing(image, dirty.log)
        try:
            async with self._recovering:  # each takes memory for three segments
                opened = await log_call(recover, path, image, dirty.log)
        except DamagedError as error:
            raise DamagedError(
                f"{error}; put back what it was, and reopen the volume (bock volume reopen). "
                f"{_ADVICE}"
            ) from error
        recovered = Log(opened, self.space, self._spawn, self._clock)
        try:
            _refuse_another_age(path, opened.progress, opened.sequence, dirty)
        except BaseException:
            await recovered.close()
            raise
        with suppress(BrokenLogError):
            # What was read back is on the disk: nothing that comes later may be below without it.
            await recovered.flush()
        return recovered

    async def salvage(self, below: BlockDevice, image: str, dirty: LogReach) -> Salvage | None:
        """Begin to write below what the log of a volume that was just taken has before its damage:
        the rest is to be given up. `dirty` is what the driver's record says of the log.

        Return what does it, which is to be closed; None: nothing of the log can be used, for it is
        missing, does not say how much of it is below, or is not of the record's age. Raises
        BockdError: it cannot be read.
        """
        assert image not in self._open, "it is open"
        self._open[image] = None
        path = log_path(self.path, image, dirty.log)
        try:
            async with self._recovering:
                prefix = await log_call(recover_prefix, path, image, dirty.log)
            try:
                _refuse_another_age(path, prefix.progress, prefix.last, dirty)
                return Salvage(
                    below,
                    prefix,
                    lambda opened: DamagedLog(opened, self.space, self._spawn, self._clock),
                    self._spawn,
                    lambda: self._closed(image),
                )
            except BaseException:
                prefix.close()
                raise
        except DamagedError as error:
            del self._open[image]
            log.warning("nothing of the damaged log %s is written back: %s", path, error)
            return None
        except BaseException:
            del self._open[image]
            raise

    def _device(
        self,
        below: BlockDevice,
        image: str,
        opened: Log | None,
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
        on_unnotable: Callable[[], Steps[None]],
    ) -> WriteBackDevice:
        kind = SharedWriteBackDevice if isinstance(below, SharedDevice) else WriteBackDevice
        way = Way(
            below,
            image,
            opened,
            make_log=lambda: self._make_log(image),
            on_dirty=lambda log_id: self._announce(log_id, on_dirty),
            on_clean=on_clean,
            on_unnotable=on_unnotable,
            on_closed=lambda: self._closed(image),
            spawn=self._spawn,
        )
        device = kind(below, way)
        if isinstance(device, SharedWriteBackDevice) and isinstance(below, SharedDevice):
            device.lost = below.lost
            below.lost.subscribe(device.lose)
        return device

    async def _announce(self, log_id: str, on_dirty: Callable[[str], Steps[None]]) -> None:
        # First for earlier ones: where that cannot be noted, the record is not made dirty, either.
        await self._binding.note_begun()
        await on_dirty(log_id)
        await self._binding.note_begun()

    def _closed(self, image: str) -> None:
        del self._open[image]

    async def _make_log(self, image: str) -> Log | None:
        """Make a new log. None if there is no room for one, or the disk fails; the log says so."""
        log_id = secrets.token_hex(_ID_BYTES)
        path = log_path(self.path, image, log_id)
        if not self.space.take(path, self._segment_bytes):
            return None
        try:
            await log_call(os.mkdir, path, 0o700)
        except OSError as error:
            self.space.set(path, 0)  # nothing is there that had to be removed
            _say_no_log(image, error)
            return None
        try:
            made = await log_call(create, path, image, log_id, self._segment_bytes)
        except OSError as error:
            with suppress(OSError):
                await self.space.remove(path)
            _say_no_log(image, error)
            return None
        return Log(made, self.space, self._spawn, self._clock)

    def look(self) -> None:
        """Have all open devices do what is due. Call this about every second."""
        for device in list(self._open.values()):
            if device is not None:
                device.way.look()
        if self._aside and not self._counting:
            self._counting = try_spawn(self._spawn, self._count_aside())


def _bounded(path: Path, size_bytes: int, segment_bytes: int) -> int:
    """Return how much the logs may take, so that the process has descriptors for their segments and
    for all else."""
    count = max(MIN_SEGMENTS, portion(SEGMENTS_SHARE, size_bytes // segment_bytes))
    bounded = min(size_bytes, count * segment_bytes)
    if bounded < size_bytes // segment_bytes * segment_bytes:
        log.warning(
            "the write-back logs in %s take %d MiB at most, and not %d MiB, for the process may "
            "have too few descriptors (ulimit -n) for their files",
            path,
            bounded // MIB,
            size_bytes // MIB,
        )
    return bounded


def _refuse_another_age(path: Path, progress: Progress, last: int, dirty: LogReach) -> None:
    """Raise DamagedError if a log, with records up to `last`, is older than what is known of it, or
    that is older than the log."""
    if dirty.done < progress.known_done or dirty.synced < progress.known_synced:
        raise DamagedError(
            f"the log {path} has gone on since the state of the pool, as one has whose pool "
            "was put back to an older state, which lacks what came between: put the newest one "
            "back, and reopen the volume (bock volume reopen). Only if that is lost for good, "
            "go on without the log (bock volume discard-cache)"
        )
    if progress.done < dirty.done or last < dirty.synced:
        raise DamagedError(
            f"the log {path} is older than what is known of it, as one is that was restored "
            "from a backup, and what came after it may be below: put the newest one back, and "
            f"reopen the volume (bock volume reopen). {_ADVICE}"
        )


def _say_no_log(image: str, error: OSError) -> None:
    log.warning("there is no write-back log for %s: %s", image, error)


def kept_aside(path: Path) -> str:
    """Say what is done about a log that was put aside."""
    return (
        f"what it has is not in the cluster, and is kept in {path}: it takes room of the logs "
        "until you remove that directory"
    )


def log_path(directory: Path, image: str, log_id: str) -> Path:
    """Return where the log of an image is, if it is in a directory of logs."""
    return directory / f"{image}.{log_id}"


def has_log(directory: Path, image: str, log_id: str) -> bool:
    """Return whether there is a log in a directory of logs. Blocks. Raises BockdError."""
    path = log_path(directory, image, log_id)
    with named(f"looking for the write-back log {path}"):
        return path.is_dir()


def is_log(path: Path) -> bool:
    """Return whether something in a directory of logs is one. Raises OSError."""
    return _NAME_OF_LOG.fullmatch(path.name) is not None and path.is_dir()


def _image_of(path: Path) -> str:
    return path.name.rpartition(".")[0]
