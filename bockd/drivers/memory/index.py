"""The index contract in memory: what a transaction sees is never changed, only replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from bockd.index.tables import Table

T = TypeVar("T")
_NOTHING: Mapping[bytes, bytes] = {}


class MemoryTransaction:
    """A view of the tables as they were when it began, with its own changes."""

    author: str | None = None
    """See the contract."""

    def __init__(self, tables: dict[Table, Mapping[bytes, bytes]]) -> None:
        self.tables = dict(tables)
        self._copied: dict[Table, dict[bytes, bytes]] = {}

    def _changing(self, table: Table) -> dict[bytes, bytes]:
        copied = self._copied.get(table)
        if copied is None:
            copied = self._copied[table] = dict(self.tables.get(table, _NOTHING))
            self.tables[table] = copied
        return copied

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See the contract."""
        return self.tables.get(table, _NOTHING).get(key)

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        """See the contract."""
        self._changing(table)[key] = payload

    def delete(self, table: Table, key: bytes) -> bool:
        """See the contract."""
        return self._changing(table).pop(key, None) is not None

    def erase(self, table: Table, start: bytes, stop: bytes, limit: int | None = None) -> bool:
        """See the contract."""
        keys = list(self.keys(table, start, stop))
        for key in keys[:limit]:
            self.delete(table, key)
        return limit is not None and len(keys) > limit

    def close_gaps(self, table: Table, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """See the contract; nothing is ever lost here."""
        return []

    def scan(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See the contract."""
        found = self.tables.get(table, _NOTHING)
        for key in sorted(key for key in found if start <= key < stop):
            yield key, found[key]

    def keys(self, table: Table, start: bytes, stop: bytes) -> Iterator[bytes]:
        """See the contract."""
        for key, _ in self.scan(table, start, stop):
            yield key

    def sound(
        self, table: Table, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """See the contract."""
        for key, payload in sorted(self.tables.get(table, _NOTHING).items()):
            if start <= key and (stop is None or key < stop):
                yield key, payload

    def count(self, table: Table) -> int:
        """See the contract."""
        return len(self.tables.get(table, _NOTHING))


class MemoryIndex:
    """The records of a pool in memory."""

    def __init__(self) -> None:
        self._tables: dict[Table, Mapping[bytes, bytes]] = {}
        self._writing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[MemoryTransaction]:
        """See the contract."""
        yield MemoryTransaction(self._tables)

    def examining(self) -> AbstractContextManager[MemoryTransaction]:
        """See the contract; nothing is ever lost here."""
        return self.reading()

    def update(self, change: Callable[[MemoryTransaction], T]) -> T:
        """See the contract."""
        with self._writing:
            txn = MemoryTransaction(self._tables)
            result = change(txn)
            self._tables = txn.tables
            return result

    def refresh(self) -> None:
        """Do nothing: nobody else changes it."""
