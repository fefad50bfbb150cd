"""The directory of the logs, and their bound.

    bockd-write-back.lock    held while a daemon uses the directory, and says what it is
    IMAGE.ID/                the log of a volume that is dirty, or was when it was last open

A log counts if the driver's record says so, by its id. One that no record names is stale.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bockd.directories import claim_directory
from bockd.drivers.writeback.device import SharedWriteBackDevice, WriteBackDevice
from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.drivers.writeback.recovery import create, recover
from bockd.drivers.writeback.segment import SEGMENT_BYTES, log_call
from bockd.drivers.writeback.space import Space
from bockd.drivers.writeback.way import Way
from bockd.errors import DamagedError, InvalidRequestError, from_os_error
from bockd.pool.device import BlockDevice, SharedDevice
from bockd.runtime.steps import Spawn, Steps

log = logging.getLogger(__name__)

MIN_SEGMENTS = 4
"""The bound has room for so many: with less, writes would wait all the time."""

_LOCK = "bockd-write-back.lock"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_ID_BYTES = 8


class WriteBackDirectory:
    """For the owner thread, but for `open_directory`."""

    def __init__(
        self,
        path: Path,
        size_bytes: int,
        spawn: Spawn,
        lock: int,
        clock: Callable[[], float],
        segment_bytes: int,
    ) -> None:
        self.path = path
        self.space = Space(size_bytes)
        self._spawn = spawn
        self._lock = lock
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._open: dict[str, WriteBackDevice | None] = {}
        """By image; None while one is being opened."""
        self.space.used_bytes = sum(self._bytes_of(one) for one in self._logs())

    @classmethod
    def open_directory(
        cls,
        path: Path,
        size_bytes: int,
        spawn: Spawn,
        *,
        clock: Callable[[], float] = time.time,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> WriteBackDirectory:
        """Make the directory if need be; what is dirty in it stays. Blocks. Raises InUseError
        (another daemon has it), InvalidRequestError (it has something else, or the bound is too
        small), DeviceError, DeniedError, NoSpaceError."""
        if size_bytes < MIN_SEGMENTS * segment_bytes:
            raise InvalidRequestError(
                f"write-back needs {MIN_SEGMENTS * segment_bytes} bytes at least, not {size_bytes}"
            )
        lock = claim_directory(path, _LOCK, "the write-back logs")
        try:
            return cls(path, size_bytes, spawn, lock, clock, segment_bytes)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise from_os_error(error, f"looking for logs in {path}") from error
            raise

    def release(self) -> None:
        """Give the directory up. No device is open."""
        assert not self._open
        os.close(self._lock)

    # -- logs ------------------------------------------------------------------------------------

    def images(self) -> list[str]:
        """Return of which images there are logs here. Raises OSError."""
        return sorted({_image_of(one) for one in self._logs()})

    def holds(self, image: str) -> bool:
        """Return whether there is a log of an image here. Raises OSError."""
        return any(_image_of(one) == image for one in self._logs())

    async def discard(self, image: str) -> None:
        """Remove the logs of an image, which is not open, and whatever is dirty in them. Raises
        BockdError."""
        assert image not in self._open
        await self._discard_but(image, None)

    async def _discard_but(self, image: str, log_id: str | None) -> None:
        for path in self._logs():
            if _image_of(path) == image and path.name != f"{image}.{log_id}":
                log.warning("the write-back log %s is stale, and is removed", path)
                taken = self._bytes_of(path)
                try:
                    await log_call(shutil.rmtree, path)
                except OSError as error:
                    raise from_os_error(error, f"removing {path}") from error
                self.space.give_back(taken)

    def _logs(self) -> list[Path]:
        return [one for one in self.path.iterdir() if one.is_dir() and "." in one.name]

    def _bytes_of(self, path: Path) -> int:
        return sum(one.stat().st_size for one in path.iterdir() if one.suffix == ".seg")

    # -- devices ---------------------------------------------------------------------------------

    async def open(
        self,
        below: BlockDevice,
        image: str,
        log_id: str | None,
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
    ) -> WriteBackDevice:
        """Put write-back in front of a volume that was just taken.

        `log_id` is that of the log that the driver's record calls dirty; None if none is.
        `on_dirty` is awaited before the first write is answered from a log: it commits that the
        log of that id is dirty. `on_clean` commits that nothing is any more. Neither is called
        while the other one runs; one that raises VolumeTakenError makes the volume lost.

        Raises:
            DamagedError: that log is not here, or not whole.
            BockdError: it cannot be read.
        """
        assert _NAME.fullmatch(image), image
        assert image not in self._open, "it is open"
        self._open[image] = None
        try:
            await self._discard_but(image, log_id)
            opened = None if log_id is None else await self._recover(image, log_id)
            device = self._device(below, image, opened, on_dirty, on_clean)
        except BaseException:
            del self._open[image]
            raise
        self._open[image] = device
        return device

    async def _recover(self, image: str, log_id: str) -> Log:
        path = self.path / f"{image}.{log_id}"
        advice = (
            "'bock volume discard-cache' goes on without it, with the state that was last "
            "written back"
        )
        if not path.is_dir():
            raise DamagedError(f"the volume is dirty in the log {path}, which is missing; {advice}")
        taken = self._bytes_of(path)
        try:
            opened = await log_call(recover, path, image, log_id)
        except DamagedError as error:
            raise DamagedError(f"{error}; restore it, or {advice}") from error
        self.space.give_back(taken - sum(one.size_bytes for one in opened.segments))
        recovered = Log(opened, self.space, self._spawn, self._clock)
        with suppress(BrokenLogError):
            # What was read back is on the disk: nothing that comes later may be below without it.
            await recovered.flush()
        return recovered

    def _device(
        self,
        below: BlockDevice,
        image: str,
        opened: Log | None,
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
    ) -> WriteBackDevice:
        kind = SharedWriteBackDevice if isinstance(below, SharedDevice) else WriteBackDevice
        way = Way(
            below,
            image,
            opened,
            make_log=lambda: self._make_log(image),
            on_dirty=on_dirty,
            on_clean=on_clean,
            on_closed=lambda: self._closed(image),
            spawn=self._spawn,
        )
        device = kind(below, way)
        if isinstance(device, SharedWriteBackDevice) and isinstance(below, SharedDevice):
            device.lost = below.lost
            below.lost.subscribe(device.lose)
        return device

    def _closed(self, image: str) -> None:
        del self._open[image]

    async def _make_log(self, image: str) -> Log | None:
        """Make a new log. None if there is no room for one, or the disk fails; the log says so."""
        if not self.space.take(self._segment_bytes):
            return None
        log_id = secrets.token_hex(_ID_BYTES)
        path = self.path / f"{image}.{log_id}"
        try:
            made = await log_call(create, path, image, log_id, self._segment_bytes)
        except OSError as error:
            log.warning("there is no write-back log for %s: %s", image, error)
            await log_call(shutil.rmtree, path, ignore_errors=True)
            self.space.give_back(self._segment_bytes)
            return None
        return Log(made, self.space, self._spawn, self._clock)

    def look(self) -> None:
        """Have all open devices do what is due. Call this about every second."""
        for device in list(self._open.values()):
            if device is not None:
                device.way.look()


def _image_of(path: Path) -> str:
    return path.name.rpartition(".")[0]
