"""Which pool a directory of logs belongs to: the file `bockd-write-back.json`, written at the first
use of the directory.

    {"format": 1, "id": of the directory, "pool": of the pool's index, "name": where that is,
     "begun": how many logs the index has counted}

The ids are random. Whether a log is needed any more, only the index of its own pool can say, and
only if it knows all that it knew when the log was begun. So another pool's daemon is refused, and
so is an index that has counted fewer logs of this directory than the number here, as one has that
was restored from a backup, however long ago that was: what it says of the logs, or that it says
nothing of them, proves nothing. A directory without logs is anybody's, and gets a new id then.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bockd.drivers.writeback.segment import log_call, write_all
from bockd.durable import sync_directory
from bockd.errors import ConflictError, DamagedError, named
from bockd.failpoints import Failpoint, hit
from bockd.runtime.waiting import Mutex

FILE = "bockd-write-back.json"
FORMAT = 1
_ID_BYTES = 16
_NEW = FILE + ".new"


class LoggedPool(NamedTuple):
    """A pool of whose volumes there are logs."""

    id: str
    """Of its index, random, and the same for good."""
    name: str
    """Where it is, for people."""
    logs_begun: Callable[[str], int]
    """Returns how many logs its index has counted of a directory, by the id of that, as far as this
    process knows. Raises BockdError."""


class _Content(msgspec.Struct, frozen=True):
    format: int
    id: str
    pool: str
    name: str
    begun: int


class Binding:
    """Of one directory, which is claimed. For the owner thread, but for `open`."""

    def __init__(self, directory: Path, pool: LoggedPool, content: _Content) -> None:
        self._directory = directory
        self._pool = pool
        self._content = content
        self._turn = Mutex()

    @property
    def id(self) -> str:
        """What names the directory for good."""
        return self._content.id

    @classmethod
    def open(cls, directory: Path, pool: LoggedPool, *, has_logs: bool) -> Binding:
        """See that the logs of a directory are a pool's, or bind one without logs to it. Blocks.

        Raises:
            ConflictError: they are another pool's, or the pool's index is older than they are.
            DamagedError: the file is not what was written, or is missing.
            BockdError: it cannot be read or written.
        """
        path = directory / FILE
        with named(f"opening {path}"):
            content = _read(path)
            if has_logs:
                content = _of_logs(directory, content)
                _refuse_another(directory, content, pool)
            elif content is None or not _is_bound(content, pool):
                content = _Content(FORMAT, secrets.token_hex(_ID_BYTES), pool.id, pool.name, 0)
                _write(directory, content)
        return cls(directory, pool, content)

    async def note_begun(self) -> None:
        """Make durable how many logs the pool's index has counted here. Raises BockdError."""
        begun = self._pool.logs_begun(self.id)
        async with self._turn:
            if self._content.begun < begun:
                content = msgspec.structs.replace(self._content, begun=begun)
                with named(f"writing {self._directory / FILE}"):
                    await log_call(_write, self._directory, content)
                self._content = content


def _read(path: Path) -> _Content | None:
    """Return what the file has; None if there is none. Raises OSError, DamagedError."""
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = msgspec.json.decode(payload, type=_Content)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{path} is not what bockd wrote there: {error}") from error
    if content.format != FORMAT:
        raise DamagedError(f"{path} has format {content.format}, and this bockd knows {FORMAT}")
    return content


def _of_logs(directory: Path, content: _Content | None) -> _Content:
    if content is None:
        raise DamagedError(
            f"there are write-back logs in {directory}, and no {FILE}, which says of which pool: "
            "put that file back, or name another directory (write_back.directory)"
        )
    return content


def _is_bound(content: _Content, pool: LoggedPool) -> bool:
    return content.pool == pool.id and content.begun <= pool.logs_begun(content.id)


def _refuse_another(directory: Path, content: _Content, pool: LoggedPool) -> None:
    if content.pool != pool.id:
        raise ConflictError(
            f"the write-back logs in {directory} are of another pool: {content.name}; this daemon "
            f"serves {pool.name}. Serve that pool again, or name another directory for this one "
            "(write_back.directory); the logs were left as they are"
        )
    if (known := pool.logs_begun(content.id)) < content.begun:
        raise ConflictError(
            f"the index of {pool.name} knows of {known} write-back logs that were begun in "
            f"{directory}, and there were {content.begun}, so an older one was put in its place. "
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
