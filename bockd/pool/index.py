"""The index contract: tables of records that are read at one instant and changed in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from bockd.index.tables import Table

T = TypeVar("T")


class Transaction(Protocol):
    """A view of the index: of one instant; a writing one sees its own changes, too. Looking where
    something may have been lost raises DamagedError."""

    @property
    def author(self) -> str | None:
        """Who reads and changes here, where several gateways share the index: this gateway's name
        and run, as `NAME/RUN`. None where one daemon has it."""
        ...

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return what is stored under a key, or None. Raises DamagedError."""
        ...

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        """Store a value, in place of one that is there."""
        ...

    def delete(self, table: Table, key: bytes) -> bool:
        """Remove an entry. Return False when there was none."""
        ...

    def erase(self, table: Table, start: bytes, stop: bytes, limit: int | None = None) -> bool:
        """Remove the entries with start <= key < stop, damaged ones, too, or the first `limit` of
        them. Return whether it stopped at the limit. Raises DamagedError where it cannot be told
        whether something that was lost is among them."""
        ...

    def close_gaps(self, table: Table, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """Remove what is damaged with start <= key < stop, and keep the rest. Return ranges of
        keys, each as its first and the one behind its last, among which something was lost. Raises
        DamagedError as `erase` does."""
        ...

    def scan(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries with start <= key < stop, in order. Do not change the table while
        scanning."""
        ...

    def keys(self, table: Table, start: bytes, stop: bytes) -> Iterator[bytes]:
        """Yield the keys with start <= key < stop, in order, without reading values."""
        ...

    def sound(
        self, table: Table, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries with start <= key < stop, in order, but damaged ones, which are logged.
        Do not change the table meanwhile."""
        ...

    def count(self, table: Table) -> int:
        """Count the entries of a table."""
        ...


class Index(Protocol):
    """The records of a pool, and of whoever keeps some beside them."""

    def reading(self) -> AbstractContextManager[Transaction]:
        """Begin a read transaction: a view of the index at one instant. End it soon, on the same
        thread."""
        ...

    def examining(self) -> AbstractContextManager[Transaction]:
        """Begin a read transaction that passes over what was lost, for a check that reports it."""
        ...

    def update(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a write transaction and commit it; it is durable when this returns, if
        the pool is. Blocks. `change` may run twice, so it must have no effect outside the
        transaction; an exception from it aborts and passes through."""
        ...

    def refresh(self) -> None:
        """Make what anybody has committed before visible here. Blocks, where several daemons share
        the index. Raises UnavailableError, DamagedError, PoolFormatError, DeviceError,
        NoSpaceError."""
        ...
