"""Which pool a directory of logs belongs to: the file `bockd-write-back.json`, written at the first
use of the directory.

    {"format": 1, "pool": the id of the pool's index, "name": where that is, "version": a number}

Whether a log is needed any more, only the index of its own pool can say, and only if it knows all
that it knew when the log was begun. So another pool's daemon is refused, and so is an index that is
older than the version here, as one is that was restored from a backup: what it says of the logs, or
that it says nothing of them, proves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bockd.directories import sync_directory
from bockd.drivers.writeback.segment import log_call, write_all
from bockd.errors import ConflictError, DamagedError, named
from bockd.failpoints import Failpoint, hit
from bockd.runtime.waiting import Mutex

FILE = "bockd-write-back.json"
FORMAT = 1
_NEW = FILE + ".new"


class LoggedPool(NamedTuple):
    """A pool of whose volumes there are logs."""

    id: str
    """Of its index, random, and the same for good."""
    name: str
    """Where it is, for people."""
    version: Callable[[], int]
    """Returns how many changes its index has had, of which this process knows. Raises
    BockdError."""


class _Content(msgspec.Struct, frozen=True):
    format: int
    pool: str
    name: str
    version: int


class Binding:
    """Of one directory, which is claimed. For the owner thread, but for `open`."""

    def __init__(self, directory: Path, pool: LoggedPool, content: _Content) -> None:
        self._directory = directory
        self._pool = pool
        self._content = content
        self._turn = Mutex()

    @classmethod
    def open(cls, directory: Path, pool: LoggedPool) -> Binding:
        """Bind a directory to a pool, or see that it is bound to that one. Blocks.

        Raises:
            ConflictError: it is bound to another pool, or the pool's index is older than the logs.
            DamagedError: the file is not what was written.
            BockdError: it cannot be read or written.
        """
        path = directory / FILE
        with named(f"opening {path}"):
            try:
                content = _decode(path, path.read_bytes())
            except FileNotFoundError:
                _refuse_logs(directory)
                content = _Content(FORMAT, pool.id, pool.name, 0)
                _write(directory, content)
        _refuse_another(directory, content, pool)
        return cls(directory, pool, content)

    async def note_version(self) -> None:
        """Make durable that the pool's index has come as far as this process knows. Raises
        BockdError."""
        version = self._pool.version()
        async with self._turn:
            if self._content.version < version:
                content = msgspec.structs.replace(self._content, version=version)
                with named(f"writing {self._directory / FILE}"):
                    await log_call(_write, self._directory, content)
                self._content = content


def _refuse_logs(directory: Path) -> None:
    if any(one.is_dir() and one.suffix for one in directory.iterdir()):
        raise DamagedError(
            f"there are write-back logs in {directory}, and no {FILE}, which says of which pool: "
            "put that file back, or name another directory (write_back.directory)"
        )


def _decode(path: Path, payload: bytes) -> _Content:
    try:
        content = msgspec.json.decode(payload, type=_Content)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{path} is not what bockd wrote there: {error}") from error
    if content.format != FORMAT:
        raise DamagedError(f"{path} has format {content.format}, and this bockd knows {FORMAT}")
    return content


def _refuse_another(directory: Path, content: _Content, pool: LoggedPool) -> None:
    if content.pool != pool.id:
        raise ConflictError(
            f"the write-back logs in {directory} are of another pool: {content.name}; this daemon "
            f"serves {pool.name}. Serve that pool again, or name another directory for this one "
            "(write_back.directory); the logs were left as they are"
        )
    if pool.version() < content.version:
        raise ConflictError(
            f"the index of {pool.name} is at version {pool.version()}, and the write-back logs in "
            f"{directory} are of version {content.version}, so an older one was put in its place. "
            "What the logs have cannot be added to that: move the directory away, or name another "
            "one (write_back.directory); the logs were left as they are"
        )


def _write(directory: Path, content: _Content) -> None:
    new = directory / _NEW
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, msgspec.json.encode(content), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    hit(Failpoint.WRITEBACK_BINDING)
    os.replace(new, directory / FILE)
    sync_directory(directory)
    hit(Failpoint.WRITEBACK_BOUND)
