"""Transactions of the index: values with checksums, and gaps where something may be missing.

Invariants:
* Every value carries a CRC-32 that covers its table, its key and its bytes, because LMDB trusts
  its file: a flipped bit would otherwise come back as data.
* No LMDB buffer leaves a transaction; values are copied out as bytes.
* Nothing is taken for absent that may be there under a damaged key. An entry that fails its
  checksum when the index is opened keeps its place, whatever its key was; so between its sound
  neighbours is a *gap*, where looking is refused. Elsewhere the index is as good as ever.

Stored value: `crc32(table || key || payload)` as 4 little-endian bytes, then the payload.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import lmdb

from bockd.errors import DamagedError
from bockd.index.pages import Entry
from bockd.index.tables import Table

log = logging.getLogger(__name__)

_CRC = struct.Struct("<I")


def seal(table: Table, key: bytes, payload: bytes) -> bytes:
    """Return a payload in its stored form, with its checksum in front."""
    return _CRC.pack(zlib.crc32(payload, zlib.crc32(key, table.seed))) + payload


def unseal(table: Table, key: bytes, value: bytes) -> bytes:
    """Return the payload of a stored value. Raises DamagedError when its checksum does not
    match."""
    payload = value[4:]
    if len(value) < 4 or _CRC.unpack_from(value)[0] != zlib.crc32(
        payload, zlib.crc32(key, table.seed)
    ):
        raise DamagedError(
            f"the index entry {table}/{key.hex()} fails its checksum; "
            "run 'bockd check' to see what else is affected"
        )
    return payload


def is_sealed(entry: Entry) -> bool:
    """Return whether an entry of any table, also one that is not declared here, fits its
    checksum."""
    seed = zlib.crc32(entry.key, zlib.crc32(entry.table))
    return entry.value[:4] == _CRC.pack(zlib.crc32(entry.value[4:], seed))


class Gap(NamedTuple):
    """A range of keys, between two sound entries (None: an end of the table), in which entries
    failed their checksums when the index was opened. The keys of those are not known."""

    after: bytes | None
    before: bytes | None
    reason: str

    def touches(self, start: bytes, stop: bytes) -> bool:
        """Return whether a key with start <= key < stop may be missing because of this gap."""
        return (self.before is None or start < self.before) and (
            self.after is None or stop > self.after
        )

    def lies_within(self, start: bytes, stop: bytes) -> bool:
        """Return whether every key that may be missing because of this gap is one with start <= key
        < stop. Keys are as long as `start`."""
        if self.after is None or self.before is None or self.before > stop:
            return False
        length = len(start)
        follows = len(self.after) == length and _number(self.after) + 1 >= _number(start)
        return follows or self.after >= start


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


Gaps = Mapping[Table, Sequence[Gap]]
NO_GAPS: Gaps = {}


class Handles(dict[Table, lmdb._Database]):
    """LMDB's handles of our tables."""

    def __missing__(self, table: Table) -> lmdb._Database:
        raise RuntimeError(
            f"table {table} was declared after the index was opened: import its room before"
        )


class LmdbTransaction:
    """A view of the index: of one instant; a writing one sees its own changes, too. Looking where
    the index has a gap raises DamagedError."""

    author: str | None = None
    """See the contract."""

    def __init__(
        self, txn: lmdb.Transaction, tables: dict[Table, lmdb._Database], gaps: Gaps
    ) -> None:
        self.gaps = gaps
        """What is left of them: `erase` and `close_gaps` close those that they cover."""
        self._txn = txn
        self._tables = tables

    def disregard_gaps(self) -> None:
        """Allow lookups everywhere from now on, also where the index has a gap."""
        self.gaps = NO_GAPS

    def _believe(self, table: Table, start: bytes, stop: bytes) -> None:
        """Raise DamagedError if something may be missing in start <= key < stop."""
        for gap in self.gaps.get(table, ()):
            if gap.touches(start, stop):
                raise DamagedError(gap.reason)

    def get(self, table: Table, key: bytes) -> bytes | None:
        value = self._txn.get(key, db=self._tables[table])
        if value is not None:
            return unseal(table, key, bytes(value))
        if self.gaps:
            self._believe(table, key, key + b"\0")
        return None

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        self._txn.put(key, seal(table, key, payload), db=self._tables[table])

    def delete(self, table: Table, key: bytes) -> bool:
        """Remove an entry. Return False when there was none."""
        return bool(self._txn.delete(key, db=self._tables[table]))

    def erase(self, table: Table, start: bytes, stop: bytes, limit: int | None = None) -> bool:
        """Remove the entries with start <= key < stop, or the first `limit` of them, without
        reading values. Return whether it stopped at the limit.

        A gap that lies within the range is closed: what was lost there was to be removed, too.
        Raises DamagedError, with nothing removed, where a gap reaches beyond it.
        """
        touched = self._closable(table, start, stop)
        # A damaged key stands between the neighbours of its gap, if perhaps before `start`.
        begin = min([start, *(gap.after + b"\0" for gap in touched if gap.after is not None)])
        with self._txn.cursor(db=self._tables[table]) as cursor:
            key, delete = cursor.key, cursor.delete
            found, count = cursor.set_range(begin), 0
            while found and bytes(key()) < stop:
                if count == limit:
                    return True
                found, count = delete() and bool(key()), count + 1
        self._close(table, touched)
        return False

    def close_gaps(self, table: Table, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """Remove what cannot be read with start <= key < stop, and close the gaps there. Return
        where they were, each as its first key and the key behind its last.

        Raises DamagedError, with nothing removed, where a gap reaches beyond the range.
        """
        touched = self._closable(table, start, stop)
        lost: list[bytes] = []
        for gap in touched:
            for key, value in self._raw(table, (gap.after or b"") + b"\0"):
                if gap.before is not None and key >= gap.before:
                    break
                if not is_sealed(Entry(table.name, key, value)):
                    lost.append(key)
        for key in lost:
            self.delete(table, key)
        self._close(table, touched)
        return [(max(start, gap.after or start), min(stop, gap.before or stop)) for gap in touched]

    def _closable(self, table: Table, start: bytes, stop: bytes) -> list[Gap]:
        """The gaps within start <= key < stop. Raises DamagedError if one reaches beyond."""
        touched = [gap for gap in self.gaps.get(table, ()) if gap.touches(start, stop)]
        for gap in touched:
            if not gap.lies_within(start, stop):
                raise DamagedError(gap.reason)
        return touched

    def _close(self, table: Table, closed: list[Gap]) -> None:
        if closed:
            left = {**self.gaps, table: [gap for gap in self.gaps[table] if gap not in closed]}
            self.gaps = {known: gaps for known, gaps in left.items() if gaps}

    def scan(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries with start <= key < stop, in order. Do not change the table while
        scanning."""
        if self.gaps:
            self._believe(table, start, stop)
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(start):
                return
            for raw_key, value in cursor.iternext():
                key = bytes(raw_key)
                if key >= stop:
                    return
                yield key, unseal(table, key, bytes(value))

    def keys(self, table: Table, start: bytes, stop: bytes) -> Iterator[bytes]:
        """Yield the keys with start <= key < stop, in order, without reading values."""
        if self.gaps:
            self._believe(table, start, stop)
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(start):
                return
            for raw_key in cursor.iternext(keys=True, values=False):
                key = bytes(raw_key)
                if key >= stop:
                    return
                yield key

    def sound(
        self, table: Table, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries with start <= key < stop, in order, except those that fail their
        checksums, which are logged. For callers that must go on with the rest. Do not change the
        table meanwhile."""
        for key, value in self._raw(table, start):
            if stop is not None and key >= stop:
                return
            try:
                payload = unseal(table, key, value)
            except DamagedError as error:
                log.error("%s", error)  # noqa: TRY400
            else:
                yield key, payload

    def raw(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries as stored, with checksums unverified. For `check`."""
        return self._raw(table, b"")

    def _raw(self, table: Table, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, value in cursor.iternext():
                yield bytes(key), bytes(value)

    def count(self, table: Table) -> int:
        """Count the entries of a table."""
        return int(self._txn.stat(self._tables[table])["entries"])
