"""An index in memory, in which nothing fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from bockd.index.tables import Table
from bockd.pool.index import Transaction

T = TypeVar("T")


class Records:
    """One index, in memory, in which nothing fails."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Table, bytes], bytes] = {}

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._kept.get((table, key))

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        self._kept[table, key] = payload

    def delete(self, table: Table, key: bytes) -> None:
        del self._kept[table, key]

    def scan(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        found = [(key, payload) for (its, key), payload in self._kept.items() if its is table]
        return iter(sorted(one for one in found if start <= one[0] < stop))

    def update(self, change: Callable[[Transaction], T]) -> T:
        return change(cast(Transaction, self))

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        yield cast(Transaction, self)
