"""The pool's LMDB environment: opened safely, read and changed in transactions.

Invariants:
* A change begins and commits inside one call of `LmdbIndex.update`, on one thread. It is fully
  synced when `update` returns; when it raises, nothing was changed.
* LMDB refuses everything after it could not write its meta page; the environment is opened anew
  then, so that the pool goes on when the disk does.
* data.mdb is proved before it is mapped (bockd.index.pages): a broken page would kill the process.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import lmdb

from bockd.errors import (
    DamagedError,
    DeniedError,
    DeviceError,
    IndexFullError,
    NoSpaceError,
    PoolFormatError,
    ReadOnlyFileSystemError,
    from_os_error,
)
from bockd.failpoints import Failpoint, hit
from bockd.index.allocation import allocate
from bockd.index.mapsize import read_map_size
from bockd.index.pages import PAGE_BYTES, Entry, check_metas, read_index
from bockd.index.tables import Table, declared_tables
from bockd.index.transaction import (
    NO_GAPS,
    Gap,
    Gaps,
    Handles,
    LmdbTransaction,
    is_sealed,
    unseal,
)
from bockd.model import MIB

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_READERS = 512
"""Read transactions at once, over all processes: threads of the daemon, tools, plugins."""

_LIB_VERSION = 0
"""LMDB's 0.9 file format: the one every installed LMDB tool reads."""

_NEARLY_FULL_BYTES = 1 * MIB
"""More than LMDB writes at once in one of our transactions' commits, but for the largest."""

_AHEAD_BYTES = 128 * MIB
"""Half of it is more than one of our transactions allocates. Sparse: it costs nothing."""

RESERVE_BYTES = 8 * MIB
"""Blocks of the file system that the file has beyond its last page. What frees space takes them
when the disk is full; a large deletion needs tens of pages."""

RESERVE_LEAST_BYTES = RESERVE_BYTES // 2
"""With less than this left, what takes new space is refused."""

_UNBORN_BYTES = 1 * MIB
"""More than LMDB writes before its first sync; any index that was used is longer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """LMDB's environment, and its handles of our tables."""

    env: lmdb.Environment
    tables: dict[Table, lmdb._Database]


class LmdbIndex:
    """The open environment. One per process and pool, opened after any fork."""

    def __init__(self, directory: Path, make_room: Callable[[], bool]) -> None:
        self._directory = directory
        self._data = directory / "data.mdb"
        self._make_room = make_room
        self.short = False
        """True when the disk is full: the file's reserve is for operations that free space."""
        self._allocated_bytes = 0
        """The file's blocks are allocated up to this offset."""
        self.tables = declared_tables()
        """Those that were declared when it was opened. Others that the file has are left alone."""
        self._gaps: Gaps = NO_GAPS
        self._opened: _Opened | None = None
        """None when it could not be opened anew; the next use tries again."""
        self._users = 0
        """Threads that may hold a transaction."""
        self._entering = threading.Lock()
        self._writing = threading.Lock()

    @classmethod
    def open(cls, directory: Path, make_room: Callable[[], bool]) -> LmdbIndex:
        """Open or create the environment, with the tables that have been declared so far. When
        the disk is full `make_room` is called; it returns False if it has freed nothing.

        A process that knows fewer tables than others do leaves theirs alone; `copy_to` copies them
        too. Their pages are proved, their values are not.

        Raises PoolFormatError for a file that is not LMDB's, DamagedError for one whose structure
        is damaged, NoSpaceError, and OSError for the directory's own trouble.
        """
        index = cls(directory, make_room)
        _empty_unborn(index._data)
        names = list(index.tables)
        index._gaps = read_index(index._data, names, index._find_gaps, is_sealed)
        index._opened = index._open()
        return index

    def _find_gaps(self, entries: Iterable[Entry]) -> Gaps:
        """The gaps that entries of our tables leave which fail their checksums."""
        found: dict[Table, list[Gap]] = {}
        table: Table | None = None
        before: bytes | None = None
        open_gap = False
        for entry in entries:
            if table is None or entry.table != table.name:
                table, before, open_gap = self.tables.get(entry.table), None, False
                if table is None:
                    continue
            try:
                unseal(table, entry.key, entry.value)
            except DamagedError as error:
                if not open_gap:
                    found.setdefault(table, []).append(Gap(before, None, str(error)))
                open_gap = True
                continue
            if open_gap:
                found[table][-1] = found[table][-1]._replace(before=entry.key)
            before, open_gap = entry.key, False
        return found

    def _open(self) -> _Opened:
        check_metas(self._data)
        try:
            env = lmdb.open(
                os.fsencode(self._directory),  # lmdb takes names that are not UTF-8 as bytes only
                map_size=read_map_size(self._directory),
                max_dbs=len(self.tables),
                max_readers=MAX_READERS,
                mode=0o600,
                readahead=False,  # lookups are scattered; reading ahead evicts block data
                lib_version=_LIB_VERSION,
            )
        except lmdb.Error as error:
            raise _translate(error, self._data) from error
        try:
            env.reader_check()
            handles = {table: env.open_db(table.name) for table in self.tables.values()}
            return _Opened(env, Handles(handles))
        except lmdb.Error as error:
            env.close()
            raise _translate(error, self._data) from error

    def may_miss(self, table: Table) -> bool:
        """Return whether a table has gaps, so that looking somewhere in it raises DamagedError."""
        return table in self._gaps

    def close(self) -> None:
        if self._opened is not None:
            self._opened.env.close()

    @contextmanager
    def reading(self) -> Iterator[LmdbTransaction]:
        """Begin a read transaction: a view of the index at one instant. End it soon, on the same
        thread."""
        try:
            with self._using(), self._begin(write=False) as txn:
                yield txn
        except lmdb.Error as error:
            raise _translate(error, self._data) from error

    def copy_to(self, path: Path) -> None:
        """Copy the index, as it is at one instant, to a new file, which is not synced. Raises
        OSError."""
        opened = self._opened or self._reopened(None)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with self._using():
                opened.env.copyfd(fd)
        except lmdb.Error as error:
            raise _translate(error, path) from error
        finally:
            os.close(fd)

    @contextmanager
    def examining(self) -> Iterator[LmdbTransaction]:
        """Begin a read transaction for `check`, which ignores gaps, because `check` finds them by
        itself."""
        with self.reading() as txn:
            txn.disregard_gaps()
            yield txn

    @contextmanager
    def _using(self) -> Iterator[None]:
        """While this thread may hold a transaction, nobody else closes the environment."""
        with self._entering:
            self._users += 1
        try:
            yield
        finally:
            with self._entering:
                self._users -= 1

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[LmdbTransaction]:
        """A transaction of this thread, which is `_using` the environment. lmdb.Error."""
        # Before the transaction: one that closes a gap may end between the two, and what is read
        # then is older.
        gaps = self._gaps
        opened = self._opened or self._reopened(None)
        try:
            begun = opened.env.begin(write=write)
        except lmdb.PanicError:
            opened = self._reopened(opened)
            begun = opened.env.begin(write=write)
        with begun as txn:
            yield LmdbTransaction(txn, opened.tables, gaps)

    def _reopened(self, broken: _Opened | None) -> _Opened:
        """The environment anew, after LMDB has met what it calls a fatal error: its meta page was
        not written. (It then goes back to the older one; nothing that was committed is lost.)"""
        with self._entering:
            if self._opened is not None and self._opened is not broken:
                return self._opened
            if self._users > 1:
                # Transactions that read on: the environment must not go under them.
                raise DeviceError(
                    f"the index {self._data} could not be written and is in use; try again"
                )
            if broken is not None:
                broken.env.close()
            self._opened = None
            try:
                self._opened = self._open()
            except OSError as error:
                raise from_os_error(error, f"opening the index {self._data}") from error
            log.warning("%s was opened anew after an error", self._data)
            return self._opened

    def update(self, change: Callable[[LmdbTransaction], T]) -> T:
        """Run `change` in a write transaction and commit it, synced.

        When the disk is full some room is made and `change` runs once more, so it must have
        no effect outside the transaction. An exception from `change` aborts and passes through.
        """
        with self._writing, self._using():
            try:
                try:
                    return self._attempt(change)
                except IndexFullError:
                    raise  # room on the disk would be no help
                except NoSpaceError:
                    if not self._make_room():
                        raise
                    return self._attempt(change)
            finally:
                self._stay_ahead()

    def refresh(self) -> None:
        """Do nothing: a transaction sees what any process of this machine has committed."""

    def _attempt(self, change: Callable[[LmdbTransaction], T]) -> T:
        try:
            with self._begin(write=True) as txn:
                result = change(txn)
                hit(Failpoint.INDEX_CHANGED)
        except lmdb.Error as error:
            raise _translate(error, self._data) from error
        self._gaps = txn.gaps
        hit(Failpoint.INDEX_COMMITTED)
        return result

    def _stay_ahead(self) -> None:
        """Keep the file longer (and sparse there) than it has to be.

        Pages freed in the transaction that allocated them are never written, so LMDB may leave
        the file shorter than its meta page says, which bockd.index.pages would take for damage.
        """
        opened = self._opened
        if opened is None:
            return
        self._reserve(opened.env)
        try:
            if not self._wants_more(opened.env):
                return
            # A process that died while it read would keep pages from being used again.
            opened.env.reader_check()
            # With the writer's lock: in between, another process may have made the file longer
            # than we would, and what it had written there would be cut off.
            with opened.env.begin(write=True):
                if wanted := self._wants_more(opened.env):
                    os.truncate(self._data, wanted)
        except (OSError, lmdb.Error) as error:
            log.warning("%s was not extended: %s", self._data, error)

    def replenish(self) -> None:
        """Try to make the reserve whole again. Raises NoSpaceError while the disk has no room for
        it. Blocks."""
        with self._writing, self._using():
            if self._opened is not None:
                self._reserve(self._opened.env)
        if self.short:
            raise NoSpaceError(
                f"{self._data}: the file system is full, and what the index has in reserve is for "
                "trims and deletions; free some space and try again"
            )

    def _reserve(self, env: lmdb.Environment) -> None:
        """Have blocks beyond the last page, which nobody else can take when the disk is full."""
        needed: int = (env.info()["last_pgno"] + 1) * PAGE_BYTES
        left = self._allocated_bytes - needed
        if left >= RESERVE_LEAST_BYTES and not self.short:
            return
        for length in (RESERVE_BYTES, RESERVE_LEAST_BYTES):
            try:
                allocate(self._data, needed, length)
            except OSError as error:
                self.short = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not self.short and error.errno != errno.EROFS:  # a commit says that
                    log.warning("%s has no space in reserve: %s", self._data, error)
                    return
            else:
                self.short = False
                self._allocated_bytes = needed + length
                return

    def _wants_more(self, env: lmdb.Environment) -> int:
        """The length that the file should have, or 0 when it is long enough."""
        needed: int = (env.info()["last_pgno"] + 1) * PAGE_BYTES
        if os.stat(self._data).st_size >= needed + _AHEAD_BYTES // 2:
            return 0
        return needed + _AHEAD_BYTES


def _empty_unborn(data: Path) -> None:
    """Empty a data.mdb that was made, and then its first sync failed or the power did: it has never
    held anything."""
    try:
        size = os.stat(data).st_size
    except FileNotFoundError:
        return
    if 0 < size <= _UNBORN_BYTES and not any(data.read_bytes()):
        os.truncate(data, 0)


def _translate(error: lmdb.Error, data: Path) -> Exception:
    """LMDB's error in our terms."""
    text = str(error)
    if isinstance(error, lmdb.MapFullError):
        return IndexFullError(
            f"the index {data} has reached its greatest size of {read_map_size(data.parent)} "
            "bytes: what is stored can be read; allow it more (index_map_gib in [pool] of the "
            "configuration), or copy volumes to a second pool to go on writing"
        )
    full = "No space left" in text or "quota" in text.lower()
    if "Input/output error" in text:
        # LMDB reports a short write, which is what a nearly full disk gives, as an I/O error.
        status = os.statvfs(data)
        full = status.f_bavail * status.f_frsize < _NEARLY_FULL_BYTES
    if full:
        return NoSpaceError(f"the file system of {data} is full; free some space and try again")
    if "Cannot allocate memory" in text or isinstance(error, lmdb.MemoryError):
        return DeniedError(
            f"the index {data} is mapped with {read_map_size(data.parent) >> 30} GiB of address "
            "space, which this process may not have ('ulimit -v', LimitAS=): allow it as much and "
            "4 GiB for the rest, or set index_map_gib in [pool] of bockd's configuration"
        )
    if "Read-only file system" in text:
        return ReadOnlyFileSystemError(f"changing the index {data}")
    if isinstance(error, lmdb.VersionMismatchError):
        return PoolFormatError(f"{data} was written by another LMDB format: {text}")
    return DamagedError(f"the index {data} cannot be used: {text}")
