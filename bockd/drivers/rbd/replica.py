"""A copy of the index in an LMDB file of this machine, made anew at each start: what is read here.

It is not synced, since the log has everything. It keeps the tables of other versions of bockd, too,
or a dump made of it would lose them. Only the order of versions is looked after here; that an entry
goes in only after it is in the log is up to bockd.drivers.rbd.index.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb

from bockd.drivers.rbd.entries import Entry, NamedChange, NamedRecord
from bockd.errors import BockdError, DamagedError, DeviceError, NoSpaceError
from bockd.index.mapsize import MAP_SIZE_BYTES
from bockd.index.tables import Table, declared_tables, stand_in
from bockd.index.transaction import NO_GAPS, Handles, LmdbTransaction

MAX_READERS = 512
"""Threads that read at once: far more than the daemon has."""

MAX_TABLES = 256
"""There are about twenty."""

MAX_KEY_BYTES = 511
"""LMDB's limit."""

_META = stand_in(b".replica")
_VERSION = b"version"


class ReplicaError(DeviceError):
    """LMDB could not use the replica, and may not be able to from now on."""


class ReplicaTransaction(LmdbTransaction):
    """A view of the replica; a writing one notes what it changes."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[Table, lmdb._Database]) -> None:
        super().__init__(txn, tables, NO_GAPS)
        self._changes: dict[tuple[Table, bytes], bytes | None] = {}
        self.version = int(self.get(_META, _VERSION) or b"0")
        """Of the log, up to which everything is in it."""

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        """See the contract."""
        super().put(table, key, payload)
        self._changes[table, key] = payload

    def delete(self, table: Table, key: bytes) -> bool:
        """See the contract."""
        if not super().delete(table, key):
            return False
        self._changes[table, key] = None
        return True

    def erase(self, table: Table, start: bytes, stop: bytes, limit: int | None = None) -> bool:
        """See the contract."""
        most = None if limit is None else limit + 1
        keys = list(islice(self.keys(table, start, stop), most))
        for key in keys[:limit]:
            self.delete(table, key)
        return limit is not None and len(keys) > limit

    @property
    def changes(self) -> list[NamedChange]:
        """What was changed, by table and key."""
        return [(table.name, key, payload) for (table, key), payload in self._changes.items()]

    def set_version(self, version: int) -> None:
        """Say that everything up to this version is in it."""
        super().put(_META, _VERSION, str(version).encode())
        self.version = version


class Replica:
    """One LMDB file. One thread at a time changes it; others read meanwhile."""

    def __init__(self, directory: Path, env: lmdb.Environment) -> None:
        self.directory = directory
        self.version = 0
        """Of the log, up to which everything is committed here."""
        self._env = env
        self._tables: dict[bytes, Table] = {}
        self._handles = Handles()
        self._users = 1
        """Transactions, and one for not being retired."""
        self._counting = threading.Lock()

    @classmethod
    def create(cls, directory: Path) -> Replica:
        """Make an empty one, in place of what is in the directory. Raises BockdError."""
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, mode=0o700)
            env = lmdb.open(
                os.fsencode(directory),
                map_size=MAP_SIZE_BYTES,
                max_dbs=MAX_TABLES,
                max_readers=MAX_READERS,
                mode=0o600,
                readahead=False,
                sync=False,
                metasync=False,
            )
        except (OSError, lmdb.Error) as error:
            raise _translate(error, directory) from error
        replica = cls(directory, env)
        try:
            replica._open(_META)
            for table in declared_tables().values():
                replica._tables[table.name] = replica._open(table)
        except BaseException:
            replica.retire()
            raise
        return replica

    def _open(self, table: Table) -> Table:
        if len(self._handles) == MAX_TABLES:
            raise DamagedError(f"the index in Ceph has more than {MAX_TABLES} tables")
        try:
            self._handles[table] = self._env.open_db(table.name)
        except lmdb.Error as error:
            raise _translate(error, self.directory) from error
        return table

    def _named(self, name: bytes) -> Table:
        """The table of a name. Not within a transaction, if it may be a new one."""
        if name not in self._tables:
            # LMDB's names end at a zero byte.
            if not 0 < len(name) <= MAX_KEY_BYTES or b"\0" in name or name == _META.name:
                raise DamagedError(f"the index in Ceph has a table named {name!r}")
            self._tables[name] = self._open(stand_in(name))
        return self._tables[name]

    # -- its life ----------------------------------------------------------------------------

    def enter(self) -> bool:
        """Keep it open for a transaction. Return False if it is retired."""
        with self._counting:
            if self._users == 0:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """Undo `enter`. The last one to leave a retired replica removes it."""
        with self._counting:
            self._users -= 1
            if self._users:
                return
        self._env.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def retire(self) -> None:
        """Close and remove it as soon as nobody reads it. Nothing else is called after it, but by
        those who have entered."""
        self.leave()

    # -- transactions ------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[ReplicaTransaction]:
        """Begin a read transaction. The caller has entered."""
        try:
            with self._env.begin() as txn:
                yield ReplicaTransaction(txn, self._handles)
        except lmdb.Error as error:
            raise _translate(error, self.directory) from error

    @contextmanager
    def writing(self) -> Iterator[ReplicaTransaction]:
        """Begin a write transaction. It is committed at the end of the `with` block. Raises
        BockdError: then nothing is committed."""
        try:
            with self._env.begin(write=True) as txn:
                yield (changing := ReplicaTransaction(txn, self._handles))
        except lmdb.Error as error:
            raise _translate(error, self.directory) from error
        self.version = changing.version

    # -- the log -----------------------------------------------------------------------------

    def load(self, version: int, pieces: Iterable[list[NamedRecord]]) -> None:
        """Fill an empty replica from a dump."""
        for piece in pieces:
            tables = {name: self._named(name) for name in {name for name, _, _ in piece}}
            with self.writing() as txn:
                for name, key, payload in piece:
                    txn.put(tables[name], _checked(key), payload)
        with self.writing() as txn:
            txn.set_version(version)

    def apply(self, entries: Iterable[tuple[int, Entry]]) -> None:
        """Make the changes of entries, in one transaction. They follow the replica's version
        without a gap."""
        entries = list(entries)
        for _, entry in entries:
            for name, _, _ in entry.changes:
                self._named(name)
        with self.writing() as txn:
            for version, entry in entries:
                assert version == txn.version + 1
                for name, key, payload in entry.changes:
                    if payload is None:
                        txn.delete(self._tables[name], _checked(key))
                    else:
                        txn.put(self._tables[name], _checked(key), payload)
                txn.set_version(version)

    @contextmanager
    def snapshot(self) -> Iterator[tuple[int, Iterator[NamedRecord]]]:
        """Begin a read transaction; give its version, and all that there is then, in order: two
        replicas of one version hold the same. The caller has entered."""
        tables = sorted(self._tables.items())  # before it: a later one is not in it
        with self.reading() as txn:
            yield txn.version, _records(txn, [table for _, table in tables])


def remove_replicas(directory: Path) -> None:
    """Remove what former runs have left in a directory: those below it whose names are numbers, and
    nothing else, whatever directory it is."""
    for path in directory.glob("*"):
        if path.name.isdecimal():
            shutil.rmtree(path, ignore_errors=True)


def _records(txn: ReplicaTransaction, tables: list[Table]) -> Iterator[NamedRecord]:
    for table in tables:
        for key, payload in txn.scan(table, b"", b"\xff" * (MAX_KEY_BYTES + 1)):
            yield table.name, key, payload


def _checked(key: bytes) -> bytes:
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise DamagedError(f"the index in Ceph has a key of {len(key)} bytes")
    return key


def _translate(error: Exception, directory: Path) -> BockdError:
    text = str(error)
    if "No space left" in text or "quota" in text.lower() or isinstance(error, lmdb.MapFullError):
        return NoSpaceError(
            f"the file system of {directory} has no room for the copy of the index; free some "
            "space and try again"
        )
    return ReplicaError(f"the copy of the index in {directory} cannot be used: {text}")
