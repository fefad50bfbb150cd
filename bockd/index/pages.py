"""Proving data.mdb before LMDB maps it: every page that its newest meta page leads to.

LMDB trusts its file. A flipped bit in a page makes it skip entries, follow a pointer beyond the
file (which kills the process) or give out a page twice. So the trees are walked first, with plain
reads: each page is where and what it says it is, is reached once, is packed without a gap, and its
keys are in order and within what its parent says; the counts of pages and entries are those of the
tree's record; free pages are in no tree. What this cannot see are a value's own bytes and a key
that changed without leaving its place; for those the values carry checksums
(bockd.index.transaction). And one bit: where the number of the last transaction falls by two, the
file looks as LMDB leaves it when it could not write the meta page, and goes by the transaction
before.

The format is that of LMDB 0.9 (mdb.c, "Page data structures"), little-endian:

    page     number:u64 | pad:u16 | flags:u16 | lower:u16 | upper:u16 | node offsets:u16... |
             free space | nodes, packed up to the end of the page
             an overflow page has its number of pages, u32, in place of lower and upper
    node     low:u16 | high:u16 | flags:u16 | key length:u16 | key | data
             leaf: low and high are the data's length; branch: with the flags, the child's page
    tree     pad:u32 | flags:u16 | depth:u16 | branch, leaf, overflow pages, entries, root: u64 each
    meta     magic:u32 | version:u32 | address:u64 | map size:u64 | tree of free pages |
             tree of tables | last page:u64 | transaction:u64        (after a page's first 16 bytes)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from bockd.errors import DamagedError, PoolFormatError

PAGE_BYTES = 4096
"""LMDB takes the system's page size at creation; that of every machine we support."""

T = TypeVar("T")

_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_TREE = struct.Struct("<IHHQQQQQ")
_META = struct.Struct("<IIQQ")
_META_TAIL = struct.Struct("<QQ")
_PAGE_NUMBER = struct.Struct("<Q")
_PAGE_COUNT = struct.Struct("<I")
_MAGIC = 0xBEEFC0DE
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
_MAGIC_AT = _PAGE.size
_VERSION = 1
_FREE_AT, _MAIN_AT, _META_TAIL_AT = 40, 88, 136
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_BIG_DATA, _SUB_DATA = 0x01, 0x02
_INTEGER_KEYS = 0x08
_NO_PAGE = (1 << 64) - 1
_NODE_HEADER = _NODE.size
_MAX_DEPTH = 32
_META_PAGES = 2

ATTEMPTS = 5
"""Walks of a file that another process commits to meanwhile: pages are used again under us."""


class Tree(NamedTuple):
    """A tree's record; one for each table."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Meta(NamedTuple):
    """A meta page: the state of the file after one transaction."""

    transaction: int
    last_page: int
    free: Tree
    main: Tree


class Entry(NamedTuple):
    """One entry of one table, as stored."""

    table: bytes
    key: bytes
    value: bytes


class _Damage(Exception):  # noqa: N818 - becomes a DamagedError where the file's name is known
    """What is wrong, in words."""


def read_index(
    data: Path,
    tables: Collection[bytes],
    look: Callable[[Iterable[Entry]], T],
    sealed: Callable[[Entry], bool],
) -> T:
    """Prove the file's pages, and return what `look` returns for its entries.

    `look` gets every entry of the file, table by table and in order; a missing or empty file has
    none. It may be called again. `tables` are the names of the caller's tables. The file may lack
    some of them, as a pool of older code does, and may have others, which the caller does not know;
    with both, a table is refused whose name may be one of the caller's, damaged. `sealed` says
    whether an entry's checksum is right for its table's name. Blocks, about 2 us an entry.

    Raises PoolFormatError for a file that is not LMDB's, DamagedError for one that is damaged.
    """
    with _opened(data) as fd:
        if fd is None or os.fstat(fd).st_size == 0:
            return look(())
        for _ in range(ATTEMPTS):
            meta = _newest(fd, data)
            try:
                return look(_Walk(fd, meta).everything(tables, sealed))
            except (_Damage, struct.error) as damage:
                if _newest(fd, data) == meta:
                    raise _damaged(data, damage) from None
    return look(())  # somebody commits to it all the time, who has proved it at the start


@contextmanager
def _opened(data: Path) -> Iterator[int | None]:
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def check_metas(data: Path) -> None:
    """Check the meta pages and the length of the file only. Raises what `read_index` raises."""
    with _opened(data) as fd:
        if fd is not None and os.fstat(fd).st_size:
            _newest(fd, data)


def _newest(fd: int, data: Path) -> Meta:
    """The meta page that LMDB will go by."""
    head = os.pread(fd, 2 * PAGE_BYTES, 0)
    size = os.fstat(fd).st_size
    if not any(head[at : at + 4] == _MAGIC_BYTES for at in (_MAGIC_AT, PAGE_BYTES + _MAGIC_AT)):
        raise PoolFormatError(f"{data} is not an LMDB file; this is not a bockd pool")
    try:
        newest = _newer_meta(head)
    except (_Damage, struct.error) as damage:
        raise _damaged(data, damage) from None
    needed = (newest.last_page + 1) * PAGE_BYTES
    if size < needed:
        raise DamagedError(
            f"{data} is truncated: it has {size} bytes and needs {needed}; "
            "restore it from a backup before starting again"
        )
    return newest


def _damaged(data: Path, what: Exception) -> DamagedError:
    return DamagedError(
        f"the index {data} is damaged: {what}; restore the pool from a backup before starting again"
    )


def _newer_meta(head: bytes) -> Meta:
    first, second = _meta(head, 0), _meta(head, 1)
    # Each transaction writes the meta page that the one before it did not.
    if abs(first.transaction - second.transaction) > 1:
        raise _Damage("its two meta pages are not of successive transactions")
    return max(first, second, key=lambda meta: meta.transaction)


def _meta(head: bytes, number: int) -> Meta:
    at = number * PAGE_BYTES
    page, _, flags, _, _ = _PAGE.unpack_from(head, at)
    magic, version, _, _ = _META.unpack_from(head, at + _PAGE.size)
    if (page, flags, magic, version) != (number, _META_PAGE, _MAGIC, _VERSION):
        raise _Damage(f"meta page {number} is not one")
    last_page, transaction = _META_TAIL.unpack_from(head, at + _META_TAIL_AT)
    if transaction and transaction % 2 != number:
        raise _Damage(f"meta page {number} names transaction {transaction}")
    free = Tree(*_TREE.unpack_from(head, at + _FREE_AT))
    main = Tree(*_TREE.unpack_from(head, at + _MAIN_AT))
    if (free.pad, free.flags, main.pad, main.flags) != (PAGE_BYTES, _INTEGER_KEYS, 0, 0):
        raise _Damage(f"meta page {number} names pages or flags that are not ours")
    return Meta(transaction, last_page, free, main)


class _Walk:
    """One walk over all trees of a state of the file."""

    def __init__(self, fd: int, meta: Meta) -> None:
        self._fd = fd
        self._meta = meta
        self._reached = bytearray(meta.last_page + 1)
        self._counts = [0, 0, 0]
        """Branch, leaf and overflow pages of the tree that is being walked."""

    def everything(
        self, known: Collection[bytes], sealed: Callable[[Entry], bool]
    ) -> Iterator[Entry]:
        """Yield all entries of all tables. Raises _Damage, also after the entries of a table that
        it refuses."""
        tables = list(self._tree(self._meta.main))
        names = {name for name, _, _ in tables}
        missing = sorted(set(known) - names)
        for name, record, flags in tables:
            if flags != _SUB_DATA or len(record) != _TREE.size:
                raise _Damage(f"the record of table {name!r} is not one")
            tree = Tree(*_TREE.unpack(record))
            if (tree.pad, tree.flags) != (0, 0):
                raise _Damage(f"the record of table {name!r} has flags that are not ours")
            # A name that we do not know may be one of ours, damaged; ours would then seem to be
            # empty. The checksums of its entries tell, because they begin with the name.
            doubtful = bool(missing) and name not in known
            for key, value, kind in self._tree(tree):
                if kind:
                    raise _Damage(f"table {name!r} has an entry with flags that are not ours")
                entry = Entry(name, key, value)
                doubtful = doubtful and not sealed(entry)
                yield entry
            if doubtful and (tree.entries or any(_one_byte_apart(name, one) for one in missing)):
                raise _Damage(f"it has a table {name!r}, and none named {missing[0]!r}")
        self._free_pages()

    def _free_pages(self) -> None:
        """Each transaction frees some, those that it replaced."""
        previous = 0
        reserved = False
        lists = [(_PAGE_NUMBER.unpack(key)[0], ids) for key, ids, _ in self._tree(self._meta.free)]
        for transaction, ids in lists:
            if not previous < transaction <= self._meta.transaction:
                raise _Damage(f"its list of free pages names transaction {transaction}")
            previous = transaction
            count = _PAGE_NUMBER.unpack_from(ids)[0] if ids else 0
            reserved |= not count  # LMDB makes room for a list before it knows how much it needs
            if count and 8 * (count + 1) != len(ids):
                raise _Damage("a list of free pages has another length than it says")
            numbers = struct.unpack_from(f"<{count}Q", ids, 8)
            if list(numbers) != sorted(set(numbers), reverse=True):
                raise _Damage("a list of free pages is out of order")
            for number in numbers:
                self._reach(number)
        if lists and previous != self._meta.transaction:
            raise _Damage(f"transaction {self._meta.transaction} was another one")
        if reserved and self._reached.count(0) != _META_PAGES:
            raise _Damage("pages are neither used nor free, and a list of free pages is empty")

    def _tree(self, tree: Tree) -> Iterator[tuple[bytes, bytes, int]]:
        """The entries of one tree as (key, data, flags but for where the data is), in order."""
        self._counts = [0, 0, 0]
        entries = 0
        if tree.root == _NO_PAGE:
            if tree.depth:
                raise _Damage("a table has a depth but no pages")
        elif not 0 < tree.depth <= _MAX_DEPTH:
            raise _Damage(f"a table claims to be {tree.depth} pages deep")
        else:
            integers = tree.flags == _INTEGER_KEYS
            for entry in self._subtree(tree.root, tree.depth, b"", None, integers):
                entries += 1
                yield entry
        found = (*self._counts, entries)
        if found != (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries):
            raise _Damage(f"a table has {found} pages and entries, and its record says otherwise")

    def _subtree(
        self, number: int, depth: int, low: bytes, high: bytes | None, integers: bool
    ) -> Iterator[tuple[bytes, bytes, int]]:
        """Entries below one page, whose keys are at least `low` and less than `high`."""
        page = self._page(number)
        nodes = self._nodes(page, number, _LEAF if depth == 1 else _BRANCH)
        keys = [key for _, _, key in nodes]
        if depth > 1:
            keys[0] = low  # a branch's first key stands for anything smaller
        ordered = keys if not integers else [key[::-1] for key in keys]
        bound = high if high is None or not integers else high[::-1]
        if (
            any(a >= b for a, b in pairwise(ordered))
            or ordered[0] < (low[::-1] if integers else low)
            or (bound is not None and ordered[-1] >= bound)
        ):
            raise _Damage(f"the keys of page {number} are out of order")
        if depth == 1:
            yield from self._leaf_entries(page, number, nodes)
            return
        for (at, _, _), key, above in zip(nodes, keys, [*keys[1:], high], strict=True):
            words = _NODE.unpack_from(page, at)
            child = words[0] | words[1] << 16 | words[2] << 32
            yield from self._subtree(child, depth - 1, key, above, integers)

    def _nodes(self, page: bytes, number: int, kind: int) -> list[tuple[int, int, bytes]]:
        """(offset, length of the data, key) of each node of a page, in the order of their keys."""
        found, _, flags, lower, upper = _PAGE.unpack_from(page)
        if (found, flags) != (number, kind):
            raise _Damage(f"page {number} is another one or of another kind")
        self._counts[0 if kind == _BRANCH else 1] += 1
        count = (lower - _PAGE.size) // 2
        if lower % 2 or count < 1 or not lower <= upper <= PAGE_BYTES:
            raise _Damage(f"page {number} has impossible bounds")
        nodes: list[tuple[int, int, bytes]] = []
        packed: list[tuple[int, int]] = []
        for at in struct.unpack_from(f"<{count}H", page, _PAGE.size):
            if not upper <= at <= PAGE_BYTES - _NODE_HEADER:
                raise _Damage(f"page {number} has a node outside itself")
            low, high, node_flags, key_length = _NODE.unpack_from(page, at)
            length = 0
            stored = 0
            if kind == _LEAF:
                length = low | high << 16
                stored = 8 if node_flags & _BIG_DATA else length
            size = _NODE_HEADER + key_length + stored
            packed.append((at, at + size + size % 2))
            start = at + _NODE_HEADER
            nodes.append((at, length, page[start : start + key_length]))
        packed.sort()
        if [start for start, _ in packed] != [upper, *(end for _, end in packed[:-1])] or (
            packed[-1][1] != PAGE_BYTES
        ):
            raise _Damage(f"the nodes of page {number} overlap or leave gaps")
        return nodes

    def _leaf_entries(
        self, page: bytes, number: int, nodes: list[tuple[int, int, bytes]]
    ) -> Iterator[tuple[bytes, bytes, int]]:
        for at, length, key in nodes:
            flags = _NODE.unpack_from(page, at)[2]
            start = at + _NODE_HEADER + len(key)
            if flags & _BIG_DATA:
                first = _PAGE_NUMBER.unpack_from(page, start)[0]
                yield key, self._overflow(first, length), flags & ~_BIG_DATA
            elif flags & ~_SUB_DATA:
                raise _Damage(f"page {number} has a node with flags that are not ours")
            else:
                yield key, page[start : start + length], flags

    def _overflow(self, first: int, length: int) -> bytes:
        """The data of an entry that has pages of its own."""
        needed = -(-(_PAGE.size + length) // PAGE_BYTES)
        head = self._page(first)
        found, _, flags, _, _ = _PAGE.unpack_from(head)
        count = _PAGE_COUNT.unpack_from(head, 12)[0]
        # A value that was longer once keeps its pages.
        if (found, flags) != (first, _OVERFLOW) or count < needed:
            raise _Damage(f"page {first} does not begin the {needed} pages of an entry")
        self._counts[2] += count
        rest = b"".join(self._page(first + i) for i in range(1, count))
        return (head + rest)[_PAGE.size : _PAGE.size + length]

    def _page(self, number: int) -> bytes:
        self._reach(number)
        page = os.pread(self._fd, PAGE_BYTES, number * PAGE_BYTES)
        if len(page) != PAGE_BYTES:
            raise _Damage(f"page {number} is cut off")
        return page

    def _reach(self, number: int) -> None:
        if not 1 < number <= self._meta.last_page:
            _refuse_number(number)
        if self._reached[number]:
            raise _Damage(f"page {number} is in two places")
        self._reached[number] = 1


def _one_byte_apart(one: bytes, other: bytes) -> bool:
    """Return whether two names are of the same length and differ in one byte at most."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= 1


def _refuse_number(number: int) -> NoReturn:
    raise _Damage(f"it refers to page {number}, which it does not have")
